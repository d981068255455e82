"""Serve or compute: the flow behind every look-up, written once for sync and async callers.

A miss becomes a flight: its leader asks the slower levels, gets the right to compute from all
processes, computes and writes; everybody else who misses the key meanwhile follows.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from ragaccel import telemetry
from ragaccel.cache.flight import Outcome, leading
from ragaccel.cache.keys import Uncacheable, key_mark
from ragaccel.cache.lookup import Found, Store, claim, find, is_worth_keeping, open_entry, write
from ragaccel.cache.waiting import ASYNC, IO, SYNC
from ragaccel.telemetry import attributes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ragaccel.cache.flight import Flight
    from ragaccel.cache.ledger import Position
    from ragaccel.cache.terms import Terms
    from ragaccel.cache.values import Entry

__all__ = ["ASYNC", "IO", "SYNC"]

T = TypeVar("T")

_FIRST_PAUSE: Final = 0.002
_LONGEST_PAUSE: Final = 0.05
#: The leader was cancelled: one of its followers leads the next flight.
ABANDONED: Final = Outcome()


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
        flight, is_leader, outcome = await _join(io, store, key, terms)
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
        store.flights.end(key, flight, Outcome(found.entry))
        return _served(io, store, key, terms, found, compute)
    return await _lead(io, store, flight, key, terms, compute)


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
        io.spawn(lambda: _refresh(io, store, key, terms, found.entry, compute))
    return found.value


async def _join(
    io: IO, store: Store, key: bytes, terms: Terms[T]
) -> tuple[Flight, bool, Outcome | None]:
    """Return the key's flight, whether the caller leads it, and otherwise how it ended.

    What was struck while a flight was under way is no answer to those who came after the strike.
    They do not wait for a flight whose known marks were struck; of others the marks are seen when
    it lands.
    """
    arrived, marks = store.ledger.position(), terms.marks() + key_mark(key)
    past: Flight | None = None

    def fits(flight: Flight) -> bool:
        began = flight.position
        return flight is not past and (
            began == arrived or store.ledger.stands(began, time.time(), flight.marks)
        )

    while True:
        flight, is_leader = store.flights.join(key, arrived, marks, fits)
        if is_leader:
            return flight, True, None
        outcome = await io.wait(flight, store.flight_timeout)
        if outcome is ABANDONED:
            continue
        entry = None if outcome is None else outcome.entry
        if entry is None or past is not None or _covers(store, key, entry, arrived):
            return flight, False, outcome
        past = flight


def _covers(store: Store, key: bytes, entry: Entry, arrived: Position) -> bool:
    """Tell whether an answer is right for somebody who came at a position of the ledger."""
    _, position, marks = claim(key, entry)
    return position == arrived or store.ledger.stands(position, entry.created, marks)


async def find_slower(
    io: IO, store: Store, key: bytes, terms: Terms[T], *, again: bool, fresh: bool = False
) -> Found[T] | None:
    """Ask the levels after the first, and the first again if something landed there since."""
    if again:
        return await find(io, store, key, terms, fresh=fresh)
    found = await find(io, store, key, terms, levels=store.levels[1:], fresh=fresh)
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
    elif outcome.entry is not None:
        opened = open_entry(store, terms, outcome.entry)
        if opened is not None:
            store.recorder.count(terms.namespace, "coalesced")
            return opened[0]
    store.recorder.count(terms.namespace, "misses")
    return await compute()


@dataclass(slots=True)
class _Right:
    """Whether the lease of a key is held: noted at once, so that no cancellation loses it."""

    held: bool = False


async def _lead(
    io: IO,
    store: Store,
    flight: Flight,
    key: bytes,
    terms: Terms[T],
    compute: Callable[[], Awaitable[T]],
) -> T:
    """Compute for everybody: in this process as the flight's leader, in all by a lease."""
    outcome, right = ABANDONED, _Right()
    try:
        found = await _claim(io, store, key, terms, right)
        if found is not None:
            outcome = Outcome(found.entry)
            return found.value
        store.recorder.count(terms.namespace, "misses")
        try:
            value, entry = await _computed(store, flight, terms, compute)
        except Exception as error:
            outcome = Outcome(error=error, traceback=error.__traceback__)
            raise
        outcome = Outcome(entry)
        flight.land(outcome)
        if entry is not None and is_worth_keeping(store, key, entry):
            await write(io, store, store.levels, (key, entry))
        return value
    finally:
        await _end(io, store, flight, key, outcome, right)


async def _computed(
    store: Store, flight: Flight, terms: Terms[T], compute: Callable[[], Awaitable[T]]
) -> tuple[T, Entry | None]:
    """Return what was computed, and the entry of it if it can have one."""
    position, started = store.ledger.position(), time.perf_counter()
    with leading(flight):
        value = await compute()
    cost = time.perf_counter() - started
    try:
        return value, terms.entry(value, terms.kind.pack(value), position, cost)
    except Uncacheable as reason:
        store.recorder.bypass(reason.reason)
        return value, None


async def _claim(
    io: IO, store: Store, key: bytes, terms: Terms[T], right: _Right
) -> Found[T] | None:
    """Get the right to compute, or what another process computed while this one waited for it.

    Without either the caller computes: the leases cannot be had, or their holder takes too long.
    """
    if store.leases is None:
        return None
    last = store.levels[-1]
    deadline, pause = time.monotonic() + store.flight_timeout, _FIRST_PAUSE
    while True:
        try:
            right.held = await io.acquire(store.leases, key)
        except Exception as error:  # noqa: BLE001 - the caller's request goes on
            store.recorder.fault(last.name, "leases", error)
            return None
        store.recorder.works(last.name, "leases")
        found = await find(io, store, key, terms, levels=(last,), counted=False)
        if found is not None:
            store.recorder.hit(terms.namespace, found.level, found.entry)
            await write(io, store, store.levels[:-1], (key, found.entry))
        if right.held or found is not None or time.monotonic() > deadline:
            return found
        await io.sleep(pause)
        pause = min(pause * 1.5, _LONGEST_PAUSE)


async def _refresh(
    io: IO,
    store: Store,
    key: bytes,
    terms: Terms[T],
    old: Entry,
    compute: Callable[[], Awaitable[T]],
) -> None:
    """Compute a value anew while the old one is served; one caller of all processes does it."""
    flight, is_leader = store.flights.join(
        key, store.ledger.position(), terms.marks() + key_mark(key), lambda _: True
    )
    if not is_leader:
        return
    outcome, right = ABANDONED, _Right()
    try:
        if store.leases is not None:
            right.held = await io.acquire(store.leases, key)
            if not right.held:
                return
        found = await find(io, store, key, terms, levels=store.levels[1:], counted=False)
        if found is not None and found.entry.created > old.created:
            await write(io, store, store.levels[:1], (key, found.entry))
            return
        _, entry = await _computed(store, flight, terms, compute)
        outcome = Outcome(entry)
        if entry is not None and is_worth_keeping(store, key, entry):
            await write(io, store, store.levels, (key, entry))
        name = "refresh_errors" if entry is None else "refreshed"
        store.recorder.count(terms.namespace, name)
    except Exception:  # noqa: BLE001 - the old value was served; the next caller tries again
        store.recorder.count(terms.namespace, "refresh_errors")
    finally:
        await _end(io, store, flight, key, outcome, right)


async def _end(
    io: IO, store: Store, flight: Flight, key: bytes, outcome: Outcome, right: _Right
) -> None:
    """Let others compute the key again: those of this process, and of all if a lease was held."""
    store.flights.end(key, flight, outcome)
    if right.held and store.leases is not None:
        try:
            await io.release(store.leases, key)
        except Exception as error:  # noqa: BLE001 - the caller has its value; leases end by themselves
            store.recorder.fault(store.levels[-1].name, "leases", error)


def _tell(span: telemetry.Stage, found: Found[T] | None) -> None:
    span.set({attributes.CACHE_HIT: found is not None})
    if found is not None:
        age = time.time() - found.entry.created
        span.set({attributes.CACHE_LEVEL: found.level, attributes.CACHE_AGE: age})
