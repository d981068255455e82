"""Reading and writing the levels of a cache: what is found, what may be served, what is kept."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Generic, TypeVar, cast

from ragaccel.cache import values
from ragaccel.cache.keys import key_mark
from ragaccel.cache.ledger import MARK_BYTES
from ragaccel.cache.levels import Stored
from ragaccel.cache.levels.memory import MemoryLevel
from ragaccel.cache.values import MAX_MARKS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ragaccel.cache.flight import Flights
    from ragaccel.cache.leases import Leases
    from ragaccel.cache.ledger import Ledger, Position
    from ragaccel.cache.levels import Level
    from ragaccel.cache.stats import Recorder
    from ragaccel.cache.terms import Terms
    from ragaccel.cache.values import Body, Entry
    from ragaccel.cache.waiting import IO

    #: An entry, its position, and its marks with that of its key.
    Claim = tuple[Entry, Position, bytes]

T = TypeVar("T")

#: Seconds for which an entry is kept on the faster levels that the shared one did not take: a
#: process that replaces it later does not know that it is there.
_UNSHARED_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class Store:
    """The parts of a cache that its flows use."""

    levels: Sequence[Level]
    ledger: Ledger
    leases: Leases | None
    flights: Flights
    recorder: Recorder
    flight_timeout: float


@dataclass(slots=True, eq=False)
class Found(Generic[T]):
    """A value that a level served, with its stored form."""

    value: T
    entry: Entry
    level: str


def glance(
    store: Store, level: MemoryLevel, key: bytes, terms: Terms[T], *, fresh: bool = False
) -> Found[T] | None:
    """Look into memory, which nobody waits for; an entry is checked and taken apart only once.

    Args:
        store: The cache.
        level: Its first.
        key: The digest.
        terms: Whose value it is, and how it is stored.
        fresh: Whether to pass over what is only good enough while it is computed anew.
    """
    place = level.look(key)
    if place is None:
        return None
    since = store.ledger.position()
    known: Claim | None = place.opened
    if known is None:
        unframed = values.unframe(key, place.blob)
        if unframed is None:
            store.recorder.count(terms.namespace, "damaged")
            level.delete_many((key,))
            return None
        known = place.opened = claim(key, unframed)
    if not may_serve(store, terms, known, fresh=fresh):
        return None
    entry = known[0]
    opened = open_entry(store, terms, entry)
    if opened is None:
        level.delete_many((key,))
        return None
    value, body = opened
    renewed = None if body is None else _renewed(terms, entry, value, body, since)
    if renewed is not None:
        entry = renewed
        level.exchange(place, stored(key, entry, compress=False))
    store.recorder.hit(terms.namespace, level.name, entry)
    return Found(value, entry, level.name)


async def find(
    io: IO,
    store: Store,
    key: bytes,
    terms: Terms[T],
    *,
    levels: Sequence[Level] | None = None,
    fresh: bool = False,
    counted: bool = True,
) -> Found[T] | None:
    """Ask the levels in order; a hit is written back to the faster ones that missed it.

    Args:
        io: How to wait.
        store: The cache.
        key: The digest.
        terms: Whose value it is, and how it is stored.
        levels: Which levels to ask; all by default.
        fresh: See `glance`.
        counted: Whether the statistics hear of it: not where a look-up looks once more.
    """
    missed: list[Level] = []
    since = store.ledger.position()
    for level in store.levels if levels is None else levels:
        if counted and type(level) is MemoryLevel:
            found = glance(store, level, key, terms, fresh=fresh)
            if found is not None:
                return found
            missed.append(level)
            continue
        entry = await _read(io, store, level, key, terms, fresh=fresh, counted=counted)
        opened = None if entry is None else open_entry(store, terms, entry, counted=counted)
        if entry is not None and opened is not None:
            value, body = opened
            renewed = None if body is None else _renewed(terms, entry, value, body, since)
            if renewed is not None:
                entry = renewed
                missed.append(level)
            if missed:
                await write(io, store, missed, (key, entry))
            if counted:
                store.recorder.hit(terms.namespace, level.name, entry)
            return Found(value, entry, level.name)
        if entry is not None:
            await delete(io, store, level, key)
        missed.append(level)
    return None


async def write(
    io: IO, store: Store, levels: Sequence[Level], *entries: tuple[bytes, Entry]
) -> bool:
    """Write keys and entries to levels; one that fails is counted and passed over.

    The slowest is written first: what the level that others share did not take is kept on the
    faster ones for a short time only.

    Returns:
        Whether no level failed.
    """
    whole = True
    for level in reversed(levels) if entries else ():
        try:
            await io.put_many(
                level, [stored(key, entry, compress=level.compress) for key, entry in entries]
            )
        except Exception as error:  # noqa: BLE001 - a level's fault never reaches the caller
            store.recorder.fault(level.name, "writes", error)
            whole = False
            if store.ledger.shared and level is store.levels[-1]:
                until = time.time() + _UNSHARED_SECONDS
                entries = tuple((key, entry.until(until)) for key, entry in entries)
        else:
            store.recorder.works(level.name, "writes")
    return whole


async def delete(io: IO, store: Store, level: Level, *keys: bytes) -> bool:
    """Delete keys of a level, and tell whether it could; a fault is counted and passed over."""
    try:
        await io.delete(level, keys)
    except Exception as error:  # noqa: BLE001 - see write
        store.recorder.fault(level.name, "writes", error)
        return False
    return True


async def _read(
    io: IO,
    store: Store,
    level: Level,
    key: bytes,
    terms: Terms[T],
    *,
    fresh: bool,
    counted: bool,
) -> Entry | None:
    """Return the entry of a level that may be served."""
    try:
        blob = await io.get(level, key)
    except Exception as error:  # noqa: BLE001 - see write
        store.recorder.fault(level.name, "reads", error)
        return None
    store.recorder.works(level.name, "reads")
    if blob is None:
        return None
    entry = values.unframe(key, blob)
    if entry is None:
        if counted:
            store.recorder.count(terms.namespace, "damaged")
        await delete(io, store, level, key)
        return None
    fit = may_serve(store, terms, claim(key, entry), fresh=fresh, counted=counted)
    return entry if fit else None


def claim(key: bytes, entry: Entry) -> Claim:
    """Return an entry with what tells whether it may be served; its key can be struck too."""
    return entry, cast("Position", entry[6:8]), entry.marks + key_mark(key)


def may_serve(
    store: Store, terms: Terms[T], claimed: Claim, *, fresh: bool = False, counted: bool = True
) -> bool:
    """Tell whether an entry is of the namespace and kind, has not expired and was not struck."""
    entry, position, marks = claimed
    until = entry.fresh if fresh else entry.expires
    if until <= time.time() or not marks.startswith(terms.prefix):
        return False
    if store.ledger.stands(position, entry.created, marks):
        return True
    if counted:
        store.recorder.count(terms.namespace, "invalidated")
    return False


def stored(key: bytes, entry: Entry, *, compress: bool) -> Stored:
    """Return an entry as a level keeps it."""
    blob = values.frame(key, entry, compress=compress)
    return Stored(key, blob, entry.expires, entry.cost, entry.namespace)


def open_entry(
    store: Store, terms: Terms[T], entry: Entry, *, counted: bool = True
) -> tuple[T, bytes | None] | None:
    """Return a fresh value and perhaps a new body, or None for what must not be served."""
    try:
        return terms.kind.open(entry.body)
    except values.Stale:
        reason = "stale"
    except Exception:  # noqa: BLE001 - a body that does not decode is as good as none
        reason = "damaged"
    if counted:
        store.recorder.count(terms.namespace, reason)
    return None


def _renewed(terms: Terms[T], entry: Entry, value: T, body: Body, since: Position) -> Entry | None:
    """Return what takes the place of an entry whose value was brought up to date; None for nothing.

    It is struck by the documents that it holds now. What was struck before `since` was asked of the
    old entry before that one was opened.
    """
    marks = terms.marks(terms.kind.documents(value))
    if since.ledger != entry.ledger or len(marks) > MAX_MARKS * MARK_BYTES:
        return None
    return entry._replace(seq=since.seq, marks=marks, body=body)


def is_worth_keeping(store: Store, key: bytes, entry: Entry) -> bool:
    """Tell whether a computed entry may take the place of what was stored meanwhile.

    It may not if it was struck; a ledger that is another one by now cannot tell.
    """
    _, position, marks = claim(key, entry)
    is_told = store.ledger.position()[0] == entry.ledger
    struck = is_told and not store.ledger.stands(position, entry.created, marks)
    return entry.is_kept and not struck
