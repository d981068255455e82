"""The ledger on the server: strikes that every process hears of, and what each knows of them.

The server counts: one script gives a strike its number and writes it down. A process keeps a copy
of the strikes, which its tracker brings up to date, so that telling whether an entry stands asks
nobody. All keys of a ledger have one hash tag and so lie on one node of a cluster.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import secrets
import threading
import time
from typing import TYPE_CHECKING, Any

from ragaccel.cache.ledger import (
    CAPACITY,
    EVERYTHING,
    FEW,
    MARK_BYTES,
    Position,
    Strike,
    Strikes,
)
from ragaccel.cache.levels.breaker import Unavailable
from ragaccel.cache.levels.redis.scripts import READ, STRIKE
from ragaccel.cache.levels.redis.tracking import Tracker
from ragaccel.io import run
from ragaccel.resources import Forkable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ragaccel.cache.levels.redis.followers import Followers
    from ragaccel.cache.levels.redis.server import Server
    from ragaccel.cache.levels.redis.wires import Wire


_ALL = EVERYTHING * 2

# Seconds by which the tracker's own time-out may be late: so it settles within the wait for it.
_MARGIN = 0.04


class RedisLedger(Forkable):
    """A ledger that all users of a server share; see `cache.ledger.Ledger`.

    Args:
        server: Where it is.
        prefix: What the level's keys begin with.
        followers: Who keeps copies of entries.
        grace: Seconds for which entries are served after contact to the server was lost, when
            strikes of others are no longer heard.
    """

    shared = True

    def __init__(self, server: Server, prefix: bytes, followers: Followers, grace: float) -> None:
        self._server, self._followers, self._grace = server, followers, grace
        self._entries, self._tag = prefix + b"e:", prefix + b"{ledger}:"
        self._keys = [self._tag + name for name in (b"id", b"seq", b"floor", b"marks")]
        self._lock = threading.Lock()
        self._tracker: Tracker | None = None
        # What is known of the server's ledger, up to which number it was read, and the ledger that
        # stands in for it while there is none or something could not be written down there.
        self._known: Strikes | None = None
        self._read_to = 0
        self._own = self._current = Strikes(secrets.randbits(52))
        self._position = self._current.position
        self._untold: dict[bytes, None] = {}
        self._contact, self._exact = False, False
        self._lost_at = -math.inf
        self.follow_forks()

    @property
    def contact(self) -> bool:
        """Whether every strike of others is heard now."""
        return self._contact

    # ---- what callers ask ------------------------------------------------------------------------

    @property
    def is_prepared(self) -> bool:
        """Whether a tracker listens or tries to."""
        return self._tracker is not None

    def position(self) -> Position:
        """Return where the ledger stands, as far as this process has heard."""
        return self._position

    def stands(self, position: Position, created: float, marks: bytes) -> bool:
        """Tell whether an entry may be served; see `Ledger`."""
        if self._exact:
            return self._current.stand(position, marks)
        known, own = self._known, self._own
        strikes = own if position[0] == own.ledger else known
        if strikes is None or not strikes.stand(position, marks):
            return False
        return self._contact or time.time() - max(self._lost_at, created) < self._grace

    def strike(self, namespace: bytes, marks: Sequence[bytes]) -> None:
        """Let no entry of a namespace with one of the marks stand from now on; see `Ledger`.

        What could not be told to the server is told as soon as it can be reached again.
        """
        members = [namespace + mark for mark in marks]
        try:
            with self._server.calling():
                told = run(self._tell(self._server.wire, members))
        except BaseException:
            self._keep(members)
            raise
        self._note(told, members)

    async def astrike(self, namespace: bytes, marks: Sequence[bytes]) -> None:
        """Do what `strike` does, without blocking the event loop."""
        if self._server.blocking:
            await asyncio.to_thread(self.strike, namespace, marks)
            return
        members = [namespace + mark for mark in marks]
        try:
            with self._server.calling():
                told = await self._tell(self._server.awire(), members)
        except BaseException:
            self._keep(members)
            raise
        self._note(told, members)

    def prepare(self) -> None:
        """Get into contact with the server, once; waits for about the level's `timeout` at most."""
        if self._tracker is None:
            with contextlib.suppress(OSError, RuntimeError):  # no more sockets or threads
                self._listen().settled.wait(self._server.timeout + _MARGIN)

    async def aprepare(self) -> None:
        """Do what `prepare` does, without blocking the event loop."""
        if self._tracker is None:
            await asyncio.to_thread(self.prepare)

    def _listen(self) -> Tracker:
        with self._lock:
            if self._tracker is None:
                self._tracker = Tracker(self._server, (self._entries, self._tag), self)
            return self._tracker

    def close(self) -> None:
        """Stop listening; `prepare` begins again."""
        with self._lock:
            tracker, self._tracker = self._tracker, None
        if tracker is not None:
            tracker.stop()

    def commands(self) -> list[tuple[Any, ...]]:
        """Return commands whose replies are the number of strikes and of marks plus one."""
        return [("GET", self._keys[1]), ("ZCARD", self._keys[3])]

    # ---- what the tracker tells ------------------------------------------------------------------

    def gained(self) -> None:
        """Read what was struck meanwhile: from now on every strike is heard."""
        self._refresh()
        with self._lock:
            self._contact = True
            self._settle()
        self._followers.lost()
        with contextlib.suppress(Unavailable), self._server.breaker.call():
            pass  # the server answers: callers may use it again

    def lost(self) -> None:
        """Begin the time of grace."""
        with self._lock:
            if self._contact:
                self._lost_at = time.time()
            self._contact = self._exact = False
        self._followers.lost()

    def heard(self, names: Sequence[bytes]) -> None:
        """Pass on changed entries; read what was struck."""
        start = len(self._entries)
        changed = []
        for name in names:
            if name.startswith(self._entries):
                with contextlib.suppress(ValueError):
                    changed.append(bytes.fromhex(name[start:].decode("ascii", "replace")))
        if len(changed) < len(names):
            self._refresh()
        if changed:
            self._followers.changed(changed)

    def flushed(self) -> None:
        """The ledger may be gone with everything else."""
        self._refresh()
        self._followers.lost()

    def tick(self) -> None:
        """Try again to tell what could not be told."""
        if self._untold:
            self._refresh()

    def after_fork_in_child(self) -> None:
        """Listen anew at the next `prepare`: the parent's thread did not come along."""
        self._lock = threading.Lock()
        tracker, self._tracker = self._tracker, None
        if tracker is not None:
            tracker.left_behind()
        if self._contact:
            self._lost_at = time.time()
        self._contact = self._exact = False
        self._followers.after_fork()

    # ---- the server ------------------------------------------------------------------------------

    async def _tell(self, wire: Wire, members: Iterable[bytes]) -> tuple[int, int]:
        """Write a strike down; return the ledger's id and the strike's number."""
        arguments = [secrets.randbits(52), CAPACITY, FEW, _ALL, *members]
        ledger, seq = await self._server.run(wire, STRIKE, self._keys, arguments)
        return int(ledger), int(seq)

    def _refresh(self) -> None:
        """Tell what is untold and read what is unread; on the tracker's thread."""
        from redis.exceptions import ResponseError

        server = self._server
        self._tell_untold(ResponseError)
        with self._lock:
            known = self._known if self._current is self._known else None
            since, name = (0, -1) if known is None else (self._read_to, known.ledger)
        arguments = [secrets.randbits(52), since, name]
        read = run(server.run(server.wire, READ, self._keys, arguments))
        ledger, seq, floor = (int(number) for number in read[:3])
        struck = [
            _strike(member, int(float(at))) for member, at in zip(*[iter(read[3])] * 2, strict=True)
        ]
        with self._lock:
            if known is None or ledger != name:
                known = Strikes(ledger)
            known.add(struck)
            known.seq = max(known.seq, seq)
            if floor > known.floor:
                known.forget(floor)
            _add(known, self._untold, seq + 1)
            self._known, self._read_to = known, seq
            self._settle()

    def _tell_untold(self, refusal: type[Exception]) -> None:
        """Tell the server what it could not be told before; what it refuses stays untold."""
        with self._lock:
            untold, self._untold = self._untold, {}
        if untold:
            try:
                run(self._tell(self._server.wire, list(untold)))
            except BaseException as error:
                with self._lock:
                    self._untold.update(untold)
                if not isinstance(error, refusal):
                    raise

    def _settle(self) -> None:
        """Go by the server's ledger if nothing is missing in it; with the lock held."""
        if self._known is not None and not self._untold:
            if self._current is self._own:
                self._own = Strikes(secrets.randbits(52))  # its entries do not stand any more
            self._current = self._known
        self._position = self._current.position
        self._exact = self._contact and self._current is self._known

    def _note(self, told: tuple[int, int], members: Sequence[bytes]) -> None:
        """Take note of a strike that the server has numbered."""
        ledger, seq = told
        with self._lock:
            _add(self._own, members, self._own.seq + 1)
            if self._known is not None and self._known.ledger == ledger:
                _add(self._known, members, seq)
            else:
                # Another ledger than the one known: its older entries may have been struck, too.
                known = Strikes(ledger, seq, floor=seq)
                if self._current is not self._own:
                    self._current = known
                self._known, self._read_to = known, seq
            self._position = self._current.position

    def _keep(self, members: Sequence[bytes]) -> None:
        """Strike here what could not be told, and remember to tell it."""
        with self._lock:
            _add(self._own, members, self._own.seq + 1)
            if self._known is not None:
                _add(self._known, members, self._known.seq + 1)
            self._current, self._exact = self._own, False
            self._position = self._own.position
            self._untold.update(dict.fromkeys(members))
            if len(self._untold) > CAPACITY:
                self._untold = _fewer(self._untold)


def _strike(member: bytes, seq: int) -> Strike:
    """Read a member of the server's set of marks."""
    return Strike(member[:MARK_BYTES], member[MARK_BYTES:], seq)


def _add(strikes: Strikes, members: Iterable[bytes], seq: int) -> None:
    """Write down a strike of members, within bounds."""
    strikes.add(_strike(member, seq) for member in members)
    strikes.fold()


def _fewer(members: Iterable[bytes]) -> dict[bytes, None]:
    """Strike all of the namespaces with the most marks, until there is room for others again."""
    by_namespace: dict[bytes, list[bytes]] = {}
    for member in members:
        by_namespace.setdefault(member[:MARK_BYTES], []).append(member)
    left = sum(map(len, by_namespace.values()))
    for namespace, of_it in sorted(by_namespace.items(), key=lambda item: -len(item[1])):
        if left <= CAPACITY // 2:
            break
        if len(of_it) < FEW:
            return {_ALL: None}
        left -= len(of_it) - 1
        by_namespace[namespace] = [namespace * 2]
    return dict.fromkeys(member for of_it in by_namespace.values() for member in of_it)
