"""What servers tell of themselves, for people to read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ragaccel.io import run

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ragaccel.cache.levels.redis.ledger import RedisLedger
    from ragaccel.cache.levels.redis.server import Server


def describe(server: Server, ledger: RedisLedger) -> dict[str, Any]:
    """Ask every node that keeps data, and the ledger.

    Returns:
        `mode`, `nodes`, `version`, `policy`; `used_memory`, `maxmemory` and `keys`, sums over the
        nodes of all that is on them; `strikes` and `marks` of the ledger, `contact` (whether
        strikes of others are heard) and the `breaker`'s state.
    """
    answers = run(server.everywhere(server.wire, ("INFO",), ("DBSIZE",)))
    told = []
    keys = 0
    for info, size in answers.values():
        for reply in (info, size):
            if isinstance(reply, Exception):
                raise reply
        told.append(_facts(info))
        keys += size
    strikes, marks = run(server.send(server.wire, ledger.commands()))
    first: Mapping[str, Any] = told[0]
    return {
        "mode": server.target.mode,
        "nodes": [f"{host}:{port}" if port else host for host, port in answers],
        "version": str(first.get("valkey_version") or first.get("redis_version")),
        "used_memory": sum(int(info["used_memory"]) for info in told),
        "maxmemory": sum(int(info["maxmemory"]) for info in told),
        "policy": first["maxmemory_policy"],
        "keys": keys,
        "strikes": int(strikes or 0),
        "marks": max(int(marks) - 1, 0),
        "contact": ledger.contact,
        "breaker": server.breaker.state,
    }


def _facts(info: Any) -> Mapping[str, Any]:
    """Read what INFO replied, unless a client of the caller's has read it already."""
    if not isinstance(info, bytes):
        facts: Mapping[str, Any] = info
        return facts
    lines = [line.partition(":") for line in info.decode().splitlines()]
    return {name: value for name, _, value in lines}
