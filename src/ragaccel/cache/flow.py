"""The look-up flows, written once for sync and async callers over an injected IO."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Generic, TypeVar, cast

from ragaccel import telemetry
from ragaccel.cache import values
from ragaccel.cache.flight import Outcome, leading
from ragaccel.cache.keys import Uncacheable, namespace_mark
from ragaccel.cache.ledger import MARK_BYTES
from ragaccel.cache.levels import Stored
from ragaccel.cache.levels.memory import MemoryLevel
from ragaccel.cache.waiting import ASYNC, IO, SYNC
from ragaccel.telemetry import attributes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from ragaccel.cache.flight import Flight, Flights
    from ragaccel.cache.leases import Leases
    from ragaccel.cache.ledger import Ledger, Position
    from ragaccel.cache.levels import Level
    from ragaccel.cache.stats import Recorder
    from ragaccel.cache.terms import Terms
    from ragaccel.cache.values import Entry

__all__ = ["ASYNC", "IO", "SYNC"]

T = TypeVar("T")

_FIRST_PAUSE: Final = 0.002
_LONGEST_PAUSE: Final = 0.05


@dataclass(slots=True, eq=False)
class Found(Generic[T]):
    """A value that a level served, with its stored form."""

    value: T
    entry: Entry
    level: str


@dataclass(frozen=True, slots=True)
class Store:
    """The parts of a cache that its flows use."""

    levels: Sequence[Level]
    ledger: Ledger
    leases: Leases | None
    flights: Flights
    recorder: Recorder
    flight_timeout: float


def glance(store: Store, level: MemoryLevel, key: bytes, terms: Terms[T]) -> Found[T] | None:
    """Look into memory, which nobody waits for; an entry is checked and taken apart only once."""
    place = level.look(key)
    if place is None:
        return None
    entry: Entry | None = place.opened
    if entry is None:
        entry = place.opened = values.unframe(key, place.blob)
    if entry is None or not may_serve(store, terms.namespace, key, entry):
        if entry is None:
            store.recorder.count(terms.namespace, "damaged")
            level.delete_many((key,))
        return None
    opened = open_entry(store, terms, entry)
    if opened is None:
        level.delete_many((key,))
        return None
    value, renewed = opened
    if renewed is not None:
        entry = entry._replace(body=renewed)
        level.put_many((stored(key, entry, compress=False),))
    store.recorder.hit(terms.namespace, level.name, entry)
    return Found(value, entry, level.name)


async def find(
    io: IO, store: Store, key: bytes, terms: Terms[T], *, levels: Sequence[Level] | None = None
) -> Found[T] | None:
    """Ask the levels in order; a hit is written back to the faster ones that missed it.

    Args:
        io: How to wait.
        store: The cache.
        key: The digest.
        terms: Whose value it is, and how it is stored.
        levels: Which levels to ask; all by default.
    """
    missed: list[Level] = []
    for level in store.levels if levels is None else levels:
        if type(level) is MemoryLevel:
            found = glance(store, level, key, terms)
            if found is not None:
                return found
            missed.append(level)
            continue
        entry = await _read(io, store, level, key, terms.namespace)
        opened = None if entry is None else open_entry(store, terms, entry)
        if entry is not None and opened is not None:
            value, renewed = opened
            if renewed is not None:
                entry = entry._replace(body=renewed)
                missed.append(level)
            await write(io, store, missed, (key, entry))
            store.recorder.hit(terms.namespace, level.name, entry)
            return Found(value, entry, level.name)
        if entry is not None:
            await delete(io, store, level, key)
        missed.append(level)
    return None


async def write(
    io: IO, store: Store, levels: Sequence[Level], *entries: tuple[bytes, Entry]
) -> None:
    """Write keys and entries to levels; a level that fails is counted and passed over."""
    for level in levels if entries else ():
        try:
            await io.put_many(
                level, [stored(key, entry, compress=level.compress) for key, entry in entries]
            )
        except Exception as error:  # noqa: BLE001 - a level's fault never reaches the caller
            store.recorder.fault(level.name, "writes", error)
        else:
            store.recorder.works(level.name, "writes")


async def find_or_compute(
    io: IO, store: Store, key: bytes, terms: Terms[T], compute: Callable[[], Awaitable[T]]
) -> T:
    """Serve the key, or compute it once for all callers that miss it together.

    Only the first level is asked by everybody. The slower ones are asked by the leader of a flight,
    who looks at the first one again if another flight landed in between.
    """
    if store.flights.is_inside(key):
        return await compute()
    if not store.ledger.is_prepared:
        await io.prepare(store.ledger)
    with telemetry.stage("cache.lookup") as span:
        landed = store.flights.landed
        found = await find(io, store, key, terms, levels=store.levels[:1])
        if found is not None:
            _tell(span, found)
            return _served(io, store, key, terms, found, compute)
        flight, is_leader, outcome = await _join(io, store, key)
        if not is_leader:
            span.set({attributes.CACHE_HIT: False, attributes.CACHE_COALESCED: True})
            return await _follow(io, store, key, outcome, terms, compute)
        try:
            again = store.flights.landed != landed
            found = await find_slower(io, store, key, terms, again=again)
        except BaseException:
            store.flights.end(key, flight, ABANDONED)
            raise
        _tell(span, found)
    if found is not None:
        store.flights.end(key, flight, Outcome(found.entry.body))
        return _served(io, store, key, terms, found, compute)
    store.recorder.count(terms.namespace, "misses")
    return await _lead(io, store, flight, key, terms, compute)


#: The leader was cancelled: one of its followers leads the next flight.
ABANDONED: Final = Outcome()


def _served(
    io: IO,
    store: Store,
    key: bytes,
    terms: Terms[T],
    found: Found[T],
    compute: Callable[[], Awaitable[T]],
) -> T:
    """Give out what was found, and see to it that it is computed anew where that is due."""
    if terms.policy.is_due(found.entry) and not store.flights.is_under_way(key):
        io.spawn(lambda: _refresh(io, store, key, terms, compute))
    return found.value


async def _join(io: IO, store: Store, key: bytes) -> tuple[Flight, bool, Outcome | None]:
    """Return the key's flight, whether the caller leads it, and otherwise how it ended."""
    while True:
        flight, is_leader = store.flights.join(key, store.ledger.position())
        if is_leader:
            return flight, True, None
        outcome = await io.wait(flight, store.flight_timeout)
        if outcome is not ABANDONED:
            return flight, False, outcome


async def find_slower(
    io: IO, store: Store, key: bytes, terms: Terms[T], *, again: bool
) -> Found[T] | None:
    """Ask the levels after the first, and the first again if something landed there since."""
    if again:
        return await find(io, store, key, terms)
    found = await find(io, store, key, terms, levels=store.levels[1:])
    if found is not None:
        await write(io, store, store.levels[:1], (key, found.entry))
    return found


async def _follow(
    io: IO,
    store: Store,
    key: bytes,
    outcome: Outcome | None,
    terms: Terms[T],
    compute: Callable[[], Awaitable[T]],
) -> T:
    """Take what the leader left; where that cannot be had, look for oneself, or compute."""
    if outcome is None:
        found = await find(io, store, key, terms)
        if found is not None:
            return found.value
    elif outcome.error is not None:
        store.recorder.count(terms.namespace, "coalesced")
        raise outcome.error.with_traceback(outcome.traceback)
    elif outcome.body is not None:
        try:
            value, _ = terms.kind.open(outcome.body)
        except values.Stale:
            store.recorder.count(terms.namespace, "stale")
        else:
            store.recorder.count(terms.namespace, "coalesced")
            return value
    store.recorder.count(terms.namespace, "misses")
    return await compute()


async def _lead(
    io: IO,
    store: Store,
    flight: Flight,
    key: bytes,
    terms: Terms[T],
    compute: Callable[[], Awaitable[T]],
) -> T:
    """Compute for everybody: in this process as the flight's leader, in all by a lease."""
    outcome, held = ABANDONED, False
    try:
        held, found = await _claim(io, store, key, terms)
        if found is not None:
            outcome = Outcome(found.entry.body)
            return found.value
        position, started = store.ledger.position(), time.perf_counter()
        try:
            with leading(flight):
                value = await compute()
        except Exception as error:
            outcome = Outcome(error=error, traceback=error.__traceback__)
            raise
        cost = time.perf_counter() - started
        try:
            body = terms.kind.pack(value)
            entry = terms.entry(value, body, position, cost)
        except Uncacheable as reason:
            store.recorder.bypass(reason.reason)
            outcome = Outcome()
            return value
        outcome = Outcome(body)
        flight.land(outcome)
        if entry is not None:
            await write(io, store, store.levels, (key, entry))
        return value
    finally:
        await _end(io, store, flight, key, outcome, held=held)


async def _claim(io: IO, store: Store, key: bytes, terms: Terms[T]) -> tuple[bool, Found[T] | None]:
    """Get the right to compute, or what another process computed while this one waited for it.

    Returns:
        Whether the lease is held, and what was found. Without either the caller computes: the
        leases cannot be had, or their holder takes too long.
    """
    if store.leases is None:
        return False, None
    deadline, pause = time.monotonic() + store.flight_timeout, _FIRST_PAUSE
    while True:
        try:
            held = await io.acquire(store.leases, key)
        except Exception as error:  # noqa: BLE001 - the caller's request goes on
            store.recorder.fault(store.levels[-1].name, "leases", error)
            return False, None
        found = await find(io, store, key, terms, levels=store.levels[-1:])
        if found is not None:
            await write(io, store, store.levels[:-1], (key, found.entry))
        if held or found is not None or time.monotonic() > deadline:
            return held, found
        await io.sleep(pause)
        pause = min(pause * 1.5, _LONGEST_PAUSE)


async def _refresh(
    io: IO, store: Store, key: bytes, terms: Terms[T], compute: Callable[[], Awaitable[T]]
) -> None:
    """Compute a value anew while the old one is served; one caller of all processes does it."""
    flight, is_leader = store.flights.join(key, store.ledger.position())
    if not is_leader:
        return
    held, outcome = False, ABANDONED
    try:
        if store.leases is not None:
            held = await io.acquire(store.leases, key)
            if not held:
                return
        position, started = store.ledger.position(), time.perf_counter()
        with leading(flight):
            value = await compute()
        body = terms.kind.pack(value)
        outcome = Outcome(body)
        entry = terms.entry(value, body, position, time.perf_counter() - started)
        if entry is not None:
            await write(io, store, store.levels, (key, entry))
        store.recorder.count(terms.namespace, "refreshed")
    except Exception:  # noqa: BLE001 - the old value was served; the next caller tries again
        store.recorder.count(terms.namespace, "refresh_errors")
    finally:
        await _end(io, store, flight, key, outcome, held=held)


async def _end(
    io: IO, store: Store, flight: Flight, key: bytes, outcome: Outcome, *, held: bool
) -> None:
    """Let others compute the key again: those of this process, and of all if a lease was held."""
    store.flights.end(key, flight, outcome)
    if held and store.leases is not None:
        await io.release(store.leases, key)


def _tell(span: telemetry.Stage, found: Found[T] | None) -> None:
    span.set({attributes.CACHE_HIT: found is not None})
    if found is not None:
        age = time.time() - found.entry.created
        span.set({attributes.CACHE_LEVEL: found.level, attributes.CACHE_AGE: age})


async def _read(io: IO, store: Store, level: Level, key: bytes, namespace: str) -> Entry | None:
    """Return the entry of a level that may be served."""
    try:
        blob = await io.get(level, key)
    except Exception as error:  # noqa: BLE001 - see write
        store.recorder.fault(level.name, "reads", error)
        return None
    store.recorder.works(level.name, "reads")
    if blob is None:
        return None
    entry = readable(store, namespace, key, blob)
    if entry is None and values.unframe(key, blob) is None:
        await delete(io, store, level, key)
    return entry


def readable(store: Store, namespace: str, key: bytes, blob: bytes) -> Entry | None:
    """Return what a level gave, if it may be served."""
    entry = values.unframe(key, blob)
    if entry is None:
        store.recorder.count(namespace, "damaged")
        return None
    return entry if may_serve(store, namespace, key, entry) else None


def may_serve(store: Store, namespace: str, key: bytes, entry: Entry) -> bool:
    """Tell whether an entry is the namespace's, has not expired and was not struck."""
    marks = entry.marks
    if entry.expires <= time.time() or not marks.startswith(namespace_mark(namespace)):
        return False
    position = cast("Position", entry[6:8])
    if store.ledger.stands(position, entry.created, marks + key[:MARK_BYTES]):
        return True
    store.recorder.count(namespace, "invalidated")
    return False


def stored(key: bytes, entry: Entry, *, compress: bool) -> Stored:
    """Return an entry as a level keeps it."""
    blob = values.frame(key, entry, compress=compress)
    return Stored(key, blob, entry.expires, entry.cost, entry.marks[:MARK_BYTES])


async def delete(io: IO, store: Store, level: Level, *keys: bytes) -> None:
    """Delete keys of a level; one that fails is counted and passed over."""
    try:
        await io.delete(level, keys)
    except Exception as error:  # noqa: BLE001 - see write
        store.recorder.fault(level.name, "writes", error)


def open_entry(store: Store, terms: Terms[T], entry: Entry) -> tuple[T, bytes | None] | None:
    """Return a fresh value and perhaps a new body, or None for what must not be served."""
    try:
        return terms.kind.open(entry.body)
    except values.Stale:
        store.recorder.count(terms.namespace, "stale")
    except Exception:  # noqa: BLE001 - a body that does not decode is as good as none
        store.recorder.count(terms.namespace, "damaged")
    return None
