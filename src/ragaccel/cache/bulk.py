"""Flows over many keys at once: one call of each level, whatever the number of keys."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from ragaccel.cache.flow import delete, open_entry, readable, write
from ragaccel.cache.keys import key_mark, namespace_mark

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ragaccel.cache.flow import IO, Store
    from ragaccel.cache.levels import Level
    from ragaccel.cache.terms import Terms
    from ragaccel.cache.values import Body, Entry


async def find(io: IO, store: Store, keys: Sequence[bytes], terms: Terms[Any]) -> dict[bytes, Any]:
    """Return the values that are found, asking each level for what the faster ones do not have."""
    found: dict[bytes, Any] = {}
    missing = list(dict.fromkeys(keys))
    missed: list[Level] = []
    for level in store.levels:
        if not missing:
            break
        served = []
        for key, entry in await _read(io, store, level, missing, terms.namespace):
            opened = open_entry(store, terms, entry) if entry.fresh > time.time() else None
            if opened is not None:
                found[key] = opened[0]
                served.append((key, entry))
                store.recorder.hit(terms.namespace, level.name, entry)
        await write(io, store, missed, *served)
        missing = [key for key in missing if key not in found]
        missed.append(level)
    for _ in missing:
        store.recorder.count(terms.namespace, "misses")
    return found


async def keep(io: IO, store: Store, items: Sequence[tuple[bytes, Terms[Any], Any, Body]]) -> None:
    """Store values that were not computed; those that are replaced are struck everywhere.

    Raises:
        Exception: The strike could not be told to others, who may go on serving the old values.
    """
    if store.ledger.shared:
        await io.prepare(store.ledger)
        keys, namespace = [item[0] for item in items], items[0][1].namespace if items else ""
        replaced = await _read(io, store, store.levels[-1], keys, namespace)
        if replaced:
            await io.strike(store.ledger, [key_mark(key) for key, _ in replaced])
    position = store.ledger.position()
    entries = []
    for key, terms, value, body in items:
        entry = terms.entry(value, body, position, 0.0)
        if entry is not None:
            entries.append((key, entry))
    await write(io, store, store.levels, *entries)


async def remove(io: IO, store: Store, keys: Sequence[bytes]) -> None:
    """Delete keys from every level, also for computations that are under way.

    Raises:
        Exception: The strike could not be told to others, who may go on serving the values.
    """
    for level in store.levels:
        await delete(io, store, level, *keys)
    if store.ledger.shared or any(map(store.flights.is_under_way, keys)):
        await io.strike(store.ledger, [key_mark(key) for key in keys])


def scan(store: Store, terms: Terms[Any]) -> Iterator[Any]:
    """Yield every value of a namespace that may be served, once."""
    seen: set[bytes] = set()
    namespace = namespace_mark(terms.namespace)
    for level in store.levels:
        try:
            for key, blob in level.scan(namespace):
                if key in seen:
                    continue
                entry = readable(store, terms.namespace, key, blob)
                opened = None if entry is None else open_entry(store, terms, entry)
                if opened is not None:
                    seen.add(key)
                    yield opened[0]
        except Exception as error:  # noqa: BLE001 - the other levels are still read
            store.recorder.fault(level.name, "reads", error)


async def _read(
    io: IO, store: Store, level: Level, keys: Sequence[bytes], namespace: str
) -> list[tuple[bytes, Entry]]:
    try:
        blobs = await io.get_many(level, keys)
    except Exception as error:  # noqa: BLE001 - a level's fault never reaches the caller
        store.recorder.fault(level.name, "reads", error)
        return []
    store.recorder.works(level.name, "reads")
    found = ((key, readable(store, namespace, key, blob)) for key, blob in blobs.items())
    return [(key, entry) for key, entry in found if entry is not None]
