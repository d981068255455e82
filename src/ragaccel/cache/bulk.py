"""Flows over many keys at once: one call of each level, whatever the number of keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ragaccel import telemetry
from ragaccel.cache import values
from ragaccel.cache.keys import Uncacheable, key_mark, namespace_mark
from ragaccel.cache.lookup import (
    claim,
    delete,
    is_worth_keeping,
    may_serve,
    open_entry,
    write,
)
from ragaccel.telemetry import attributes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from ragaccel.cache.ledger import Position
    from ragaccel.cache.levels import Level
    from ragaccel.cache.lookup import Store
    from ragaccel.cache.terms import Terms
    from ragaccel.cache.values import Body, Entry
    from ragaccel.cache.waiting import IO


async def find(io: IO, store: Store, keys: Sequence[bytes], terms: Terms[Any]) -> dict[bytes, Any]:
    """Return the values that are found, asking each level for what the faster ones do not have."""
    with telemetry.stage("cache.lookup", {attributes.ITEMS: len(keys)}) as span:
        found, levels = await _find(io, store, keys, terms)
        span.set({attributes.CACHE_HIT: all(key in found for key in keys)})
        if len(levels) == 1:
            span.set({attributes.CACHE_LEVEL: levels[0]})
    return found


async def _find(
    io: IO, store: Store, keys: Sequence[bytes], terms: Terms[Any]
) -> tuple[dict[bytes, Any], list[str]]:
    """Return the values, and which levels had some of them."""
    found: dict[bytes, Any] = {}
    levels: list[str] = []
    missing = list(dict.fromkeys(keys))
    missed: list[Level] = []
    for level in store.levels:
        if not missing:
            break
        served = []
        entries = await _read(io, store, level, missing, terms)
        for (key, entry), opened in zip(entries, _open(store, terms, entries), strict=True):
            if opened is not None:
                found[key] = opened[0]
                served.append((key, entry))
                store.recorder.hit(terms.namespace, level.name, entry)
        if served:
            levels.append(level.name)
            await write(io, store, missed, *served)
        missing = [key for key in missing if key not in found]
        missed.append(level)
    if missing:
        store.recorder.count(terms.namespace, "misses", len(missing))
    return found, levels


def _open(
    store: Store, terms: Terms[Any], entries: Sequence[tuple[bytes, Entry]]
) -> Sequence[tuple[Any, ...] | None]:
    """Return a fresh value of each entry, or None for those that must not be served."""
    try:
        values_ = terms.kind.open_many([entry.body for _, entry in entries])
    except Exception:  # noqa: BLE001 - one of them is damaged, and found out one by one
        values_ = None
    if values_ is not None:
        return [(value,) for value in values_]
    return [open_entry(store, terms, entry) for _, entry in entries]


async def keep(io: IO, store: Store, items: Sequence[tuple[bytes, Terms[Any], Any, Body]]) -> None:
    """Store values that were not computed; those that are replaced are struck everywhere.

    Raises:
        Uncacheable: An entry has more marks than it can carry.
        Exception: The strike could not be told to others, who may go on serving the old values.
    """
    if not items:
        return
    if store.ledger.shared:
        await io.prepare(store.ledger)
    before, terms = store.ledger.position(), items[0][1]
    entries = {key: its.entry(value, body, before, 0.0) for key, its, value, body in items}
    await _strike(io, store, terms, await _outdated(io, store, terms, entries))
    unkept = [key for key, entry in entries.items() if not entry.is_kept]
    whole = True
    for level in store.levels if unkept else ():
        whole &= await delete(io, store, level, *unkept)
    whole &= await _write(io, store, entries)
    if not whole and not store.ledger.shared:
        await _strike(io, store, terms, entries)
        await _write(io, store, entries)


async def keep_computed(
    io: IO,
    store: Store,
    items: Sequence[tuple[bytes, Terms[Any], Any]],
    since: Position,
    cost: float,
) -> None:
    """Store values that were computed from a position of the ledger on, unless struck since then.

    A fault, or a value that has no faithful form, is counted; the values' user has them already.
    """
    kept = []
    for key, terms, value in items:
        try:
            entry = terms.entry(value, terms.kind.pack(value), since, cost)
        except Uncacheable as reason:
            store.recorder.bypass(reason.reason)
            continue
        if is_worth_keeping(store, key, entry):
            kept.append((key, entry))
    await write(io, store, store.levels, *kept)


async def _outdated(
    io: IO, store: Store, terms: Terms[Any], keys: Iterable[bytes]
) -> Iterable[bytes]:
    """Return those keys of which somebody may have, or be computing, an older value."""
    under_way = {key for key in keys if store.flights.is_under_way(key)}
    if not store.ledger.shared:
        return under_way
    last = store.levels[-1]
    has_lost = getattr(last, "has_lost", None)
    try:
        if has_lost is not None and has_lost():
            return keys
    except Exception as error:  # noqa: BLE001 - see _read
        store.recorder.fault(last.name, "reads", error)
        return keys
    return under_way.union(key for key, _ in await _read(io, store, last, list(keys), terms))


async def _strike(io: IO, store: Store, terms: Terms[Any], keys: Iterable[bytes]) -> None:
    marks = [key_mark(key) for key in keys]
    if marks:
        await io.strike(store.ledger, namespace_mark(terms.namespace), marks)


async def _write(io: IO, store: Store, entries: dict[bytes, Entry]) -> bool:
    ledger, seq = store.ledger.position()
    kept = [
        (key, entry._replace(ledger=ledger, seq=seq))
        for key, entry in entries.items()
        if entry.is_kept
    ]
    return await write(io, store, store.levels, *kept)


async def remove(io: IO, store: Store, keys: Sequence[bytes], terms: Terms[Any]) -> None:
    """Delete keys from every level, also for computations that are under way.

    Raises:
        Exception: The strike could not be told to others, who may go on serving the values.
    """
    landed, whole = store.flights.landed, True
    for level in store.levels:
        whole &= await delete(io, store, level, *keys)
    busy = store.flights.landed != landed or any(map(store.flights.is_under_way, keys))
    if store.ledger.shared or len(store.levels) > 1 or busy or not whole:
        await _strike(io, store, terms, keys)


def scan(store: Store, terms: Terms[Any]) -> Iterator[Any]:
    """Yield every value of a namespace and kind that may be served, once."""
    seen: set[bytes] = set()
    namespace = namespace_mark(terms.namespace)
    for level in store.levels:
        try:
            for key, entry in _readable(store, terms, level.scan(namespace)):
                opened = None if key in seen else open_entry(store, terms, entry)
                if opened is not None:
                    seen.add(key)
                    yield opened[0]
        except Exception as error:  # noqa: BLE001 - the other levels are still read
            store.recorder.fault(level.name, "reads", error)


async def _read(
    io: IO, store: Store, level: Level, keys: Sequence[bytes], terms: Terms[Any]
) -> list[tuple[bytes, Entry]]:
    """Return the entries of a level that may be served."""
    try:
        blobs = list((await io.get_many(level, keys)).items())
    except Exception as error:  # noqa: BLE001 - a level's fault never reaches the caller
        store.recorder.fault(level.name, "reads", error)
        return []
    store.recorder.works(level.name, "reads")
    return list(_readable(store, terms, blobs))


def _readable(
    store: Store, terms: Terms[Any], blobs: Iterable[tuple[bytes, bytes]]
) -> Iterator[tuple[bytes, Entry]]:
    """Yield the entries among what a level gave that may be served."""
    for key, blob in blobs:
        entry = values.unframe(key, blob)
        if entry is None:
            store.recorder.count(terms.namespace, "damaged")
        elif may_serve(store, terms, claim(key, entry), fresh=True):
            yield key, entry
