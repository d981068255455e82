"""The look-up flows, written once for sync and async callers over an injected IO."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar

from ragaccel import telemetry
from ragaccel.cache import values
from ragaccel.cache.flight import Outcome, leading
from ragaccel.cache.keys import Uncacheable
from ragaccel.cache.levels import Stored
from ragaccel.errors import RagaccelWarning
from ragaccel.telemetry import attributes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from ragaccel.cache.flight import Flight, Flights
    from ragaccel.cache.levels import Level
    from ragaccel.cache.stats import Recorder
    from ragaccel.cache.values import Entry, Kind

T = TypeVar("T")


class IO(Protocol):
    """Everything a flow waits for."""

    async def get(self, level: Level, key: bytes) -> bytes | None:
        """Read one key of one level."""

    async def put(self, level: Level, stored: Stored) -> None:
        """Write one entry to one level."""

    async def delete(self, level: Level, key: bytes) -> None:
        """Delete one key of one level."""

    async def wait(self, flight: Flight, timeout: float) -> Outcome | None:
        """Wait for another caller's computation; None where that cannot be waited for."""


class SyncIO(IO):
    """Blocks instead of suspending, so that `io.run` can drive a flow."""

    async def get(self, level: Level, key: bytes) -> bytes | None:
        return level.get_many((key,)).get(key)

    async def put(self, level: Level, stored: Stored) -> None:
        level.put_many((stored,))

    async def delete(self, level: Level, key: bytes) -> None:
        level.delete_many((key,))

    async def wait(self, flight: Flight, timeout: float) -> Outcome | None:
        return flight.wait(timeout)


class AsyncIO(IO):
    """Waits on the running event loop."""

    async def get(self, level: Level, key: bytes) -> bytes | None:
        return (await level.aget_many((key,))).get(key)

    async def put(self, level: Level, stored: Stored) -> None:
        await level.aput_many((stored,))

    async def delete(self, level: Level, key: bytes) -> None:
        await level.adelete_many((key,))

    async def wait(self, flight: Flight, timeout: float) -> Outcome | None:
        return await flight.await_(timeout)


SYNC: Final = SyncIO()
ASYNC: Final = AsyncIO()


@dataclass(frozen=True, slots=True)
class Found(Generic[T]):
    """A value that a level served, with its stored form."""

    value: T
    body: bytes
    level: str
    age: float


@dataclass(frozen=True, slots=True)
class Store:
    """The parts of a cache that its flows use."""

    levels: Sequence[Level]
    flights: Flights
    recorder: Recorder
    flight_timeout: float


async def find(
    io: IO, store: Store, key: bytes, kind: Kind[T], *, levels: Sequence[Level] | None = None
) -> Found[T] | None:
    """Ask the levels in order; a hit is written back to the faster ones that missed it.

    Args:
        io: How to wait.
        store: The cache.
        key: The digest.
        kind: How the value is stored.
        levels: Which levels to ask; all by default, and then a miss is counted.
    """
    missed: list[Level] = []
    for level in store.levels if levels is None else levels:
        entry = await _read(io, store, level, key)
        if entry is not None:
            now = time.time()
            opened = None
            if entry.expires > now:
                opened = _open(store, kind, entry)
                if opened is None:
                    await _delete(io, store, level, key)
            if opened is not None:
                value, renewed = opened
                if renewed is not None:
                    entry = replace(entry, body=renewed)
                    missed.append(level)
                await write(io, store, missed, key, entry)
                store.recorder.hit(level.name, entry.cost)
                return Found(value, entry.body, level.name, now - entry.created)
        missed.append(level)
    if levels is None:
        store.recorder.count("misses")
    return None


async def write(io: IO, store: Store, levels: Sequence[Level], key: bytes, entry: Entry) -> None:
    """Write an entry to levels; a level that fails is counted and passed over."""
    for level in levels:
        blob = values.frame(entry, compress=level.compress)
        try:
            await io.put(level, Stored(key, blob, entry.expires))
        except Exception as error:  # noqa: BLE001 - a level's fault never reaches the caller
            _fault(store, level, error)


async def remove(io: IO, store: Store, key: bytes) -> None:
    """Delete a key from every level."""
    for level in store.levels:
        await _delete(io, store, level, key)


async def find_or_compute(
    io: IO,
    store: Store,
    key: bytes,
    kind: Kind[T],
    compute: Callable[[], Awaitable[T]],
    ttl: float,
) -> T:
    """Serve the key, or compute it once for all callers that miss it together.

    Only the first level is asked by everybody. The slower ones are asked by the leader of a flight,
    who looks at the first one again: another flight may have landed in between.
    """
    if store.flights.is_inside(key):
        return await compute()
    with telemetry.stage("cache.lookup") as span:
        found = await find(io, store, key, kind, levels=store.levels[:1])
        if found is not None:
            _tell(span, found)
            return found.value
        while True:
            flight, is_leader = store.flights.join(key)
            if is_leader:
                break
            outcome = await io.wait(flight, store.flight_timeout)
            if outcome is not ABANDONED:
                span.set({attributes.CACHE_HIT: False, attributes.CACHE_COALESCED: True})
                return await _follow(io, store, key, outcome, kind, compute)
        try:
            found = await find(io, store, key, kind)
        except BaseException:
            _end(store, key, flight, ABANDONED)
            raise
        _tell(span, found)
    if found is not None:
        _end(store, key, flight, Outcome(found.body))
        return found.value
    return await _lead(io, store, flight, key, kind, compute, ttl)


#: The leader was cancelled: one of its followers leads the next flight.
ABANDONED: Final = Outcome()


async def _follow(
    io: IO,
    store: Store,
    key: bytes,
    outcome: Outcome | None,
    kind: Kind[T],
    compute: Callable[[], Awaitable[T]],
) -> T:
    """Take what the leader left; where that cannot be had, look for oneself, or compute."""
    if outcome is None:
        found = await find(io, store, key, kind)
        return await compute() if found is None else found.value
    if outcome.error is not None:
        raise outcome.error
    if outcome.body is not None:
        try:
            value, _ = kind.open(outcome.body)
        except values.Stale:
            store.recorder.count("stale")
        else:
            store.recorder.count("coalesced")
            return value
    return await compute()


async def _lead(
    io: IO,
    store: Store,
    flight: Flight,
    key: bytes,
    kind: Kind[T],
    compute: Callable[[], Awaitable[T]],
    ttl: float,
) -> T:
    outcome = ABANDONED
    try:
        started = time.perf_counter()
        try:
            with leading(flight):
                value = await compute()
        except Exception as error:
            outcome = Outcome(error=error)
            raise
        cost = time.perf_counter() - started
        try:
            body = kind.pack(value)
        except Uncacheable as reason:
            store.recorder.bypass(reason.reason)
            outcome = Outcome()
            return value
        outcome = Outcome(body)
        flight.land(outcome)
        now = time.time()
        await write(io, store, store.levels, key, values.Entry(body, now, now + ttl, cost))
        return value
    finally:
        _end(store, key, flight, outcome)


def _end(store: Store, key: bytes, flight: Flight, outcome: Outcome) -> None:
    store.flights.remove(key)
    flight.land(outcome)


def _tell(span: telemetry.Stage, found: Found[T] | None) -> None:
    span.set({attributes.CACHE_HIT: found is not None})
    if found is not None:
        span.set({attributes.CACHE_LEVEL: found.level, attributes.CACHE_AGE: found.age})


async def _read(io: IO, store: Store, level: Level, key: bytes) -> Entry | None:
    try:
        blob = await io.get(level, key)
        if blob is None:
            return None
    except Exception as error:  # noqa: BLE001 - see write
        _fault(store, level, error)
        return None
    entry = values.unframe(blob)
    if entry is None:
        store.recorder.count("damaged")
        await _delete(io, store, level, key)
    return entry


async def _delete(io: IO, store: Store, level: Level, key: bytes) -> None:
    try:
        await io.delete(level, key)
    except Exception as error:  # noqa: BLE001 - see write
        _fault(store, level, error)


def _open(store: Store, kind: Kind[T], entry: Entry) -> tuple[T, bytes | None] | None:
    try:
        return kind.open(entry.body)
    except values.Stale:
        store.recorder.count("stale")
    except Exception:  # noqa: BLE001 - a body that does not decode is as good as none
        store.recorder.count("damaged")
    return None


def _fault(store: Store, level: Level, error: Exception) -> None:
    if store.recorder.error(level.name) == 1:
        warnings.warn(
            f"the {level.name} level of the cache failed and is passed over while it does: "
            f"{type(error).__name__}: {error}",
            RagaccelWarning,
            stacklevel=2,
        )
