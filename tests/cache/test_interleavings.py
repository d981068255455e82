"""Every order in which two look-ups of one key can meet, played in one thread without a sleep.

A flow waits only where its IO does. Here every method of the IO yields once, so that a test decides
which flow goes on, and plays all orders there are. Flows may also be of two processes, which share
nothing but the slow level, its ledger and its leases.
"""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import itertools
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragaccel.cache import PLAIN, MemoryLevel, Uncacheable, bulk, flow, lookup
from ragaccel.cache.flight import Flight, Flights, Outcome
from ragaccel.cache.keys import namespace_mark
from ragaccel.cache.ledger import ProcessLedger
from ragaccel.cache.stats import Recorder
from ragaccel.cache.terms import Policy, Terms
from ragaccel.cache.values import Entry, unframe
from ragaccel.io import run
from tests.cache.helpers import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator, Sequence

    from ragaccel.cache import Level, Stored
    from ragaccel.cache.ledger import Ledger

KEY = b"k" * 20
TERMS = Terms(PLAIN, "default", Policy(60.0, None, 0.0, 0.0), 60.0)


class Point:
    """A place where a flow stops until the player lets it go on."""

    def __await__(self) -> Generator[None, None, None]:
        yield


class Named(MemoryLevel):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name


class Document(ProcessLedger):
    """A ledger, and what the document says whose answers may be struck in it."""

    def __init__(self, *, shared: bool) -> None:
        super().__init__()
        self.shared = shared
        self.is_prepared = not shared
        self.says = "old"
        self.is_struck = False


class Leases:
    """Leases of several processes; one is given back by its holder only."""

    def __init__(self) -> None:
        self.held: dict[bytes, Any] = {}

    def acquire(self, key: bytes, holder: Any = None) -> bool:
        if key in self.held:
            return False
        self.held[key] = holder
        return True

    def release(self, key: bytes, holder: Any = None) -> None:
        if key in self.held and self.held[key] is holder:
            del self.held[key]


class ScriptedIO(flow.IO):
    """Yields once in every method: on the way to the level, or on the way back from it.

    It yields for nothing that belongs to a process alone, where flows are of several: no other flow
    can tell.
    """

    def __init__(self, leases: Leases, *, answers_travel: bool, processes: bool) -> None:
        self.leases = leases
        self.answers_travel = answers_travel
        self.processes = processes
        self.waits_for: Flight | None = None
        self.sleeps = False
        self.spawned: list[Coroutine[Any, Any, None]] = []

    async def get(self, level: Level, key: bytes) -> bytes | None:
        return await self._travel(lambda: level.get_many((key,)).get(key), level)

    async def get_many(self, level: Level, keys: Sequence[bytes]) -> Any:
        return await self._travel(lambda: level.get_many(keys), level)

    async def put_many(self, level: Level, entries: Sequence[Stored]) -> None:
        await self._travel(lambda: level.put_many(entries), level)

    async def delete(self, level: Level, keys: Sequence[bytes]) -> None:
        await self._travel(lambda: level.delete_many(keys), level)

    async def wait(self, flight: Flight, timeout: float) -> Outcome | None:
        self.waits_for = flight
        await Point()
        return flight.outcome

    async def prepare(self, ledger: Ledger) -> None:
        await self._travel(ledger.prepare)

    async def strike(self, ledger: Ledger, namespace: bytes, marks: Sequence[bytes]) -> None:
        await self._travel(lambda: ledger.strike(namespace, marks))

    async def acquire(self, leases: Any, key: bytes) -> bool:
        try:
            return await self._travel(lambda: leases.acquire(key, self))
        except asyncio.CancelledError:
            leases.release(key, self)  # nobody hears the answer: a lease ends by itself
            raise

    async def release(self, leases: Any, key: bytes) -> None:
        try:
            await self._travel(lambda: leases.release(key, self))
        except asyncio.CancelledError:
            leases.release(key, self)  # nobody renews it any more: it ends by itself
            raise

    async def sleep(self, seconds: float) -> None:
        """Sleep until the lease is free, so that there is an end to the orders."""
        self.sleeps = True
        await Point()
        self.sleeps = False

    def spawn(self, flow: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self.spawned.append(flow())

    async def _travel(self, do: Callable[[], Any], level: Level | None = None) -> Any:
        if self.processes and level is not None and level.name == "fast":
            return do()
        if self.answers_travel:
            done = do()
            await Point()
            return done
        await Point()
        return do()

    @property
    def stuck(self) -> bool:
        waits = self.waits_for is not None and self.waits_for.outcome is None
        return waits or (self.sleeps and bool(self.leases.held))


@dataclass
class Played:
    """What happened in one order.

    Attributes:
        order: Which flow went on at each step.
        choices: Which flows could have gone on at each step.
        results: What each flow returned, or the error that ended it.
        computed: Start and end of each computation, in steps.
        stores: Each process's parts of the cache afterwards; one of them, or one for each flow.
        leases: Those of all processes.
    """

    stores: list[lookup.Store]
    leases: Leases
    order: list[int] = field(default_factory=list)
    choices: list[list[int]] = field(default_factory=list)
    results: dict[int, Any] = field(default_factory=dict)
    computed: list[list[int]] = field(default_factory=list)

    @property
    def under_way(self) -> bool:
        """Whether anything is left of a computation."""
        return bool(self.leases.held) or any(store.flights._flights for store in self.stores)

    def overlap(self) -> bool:
        """Tell whether two computations ran at the same time."""
        spans = sorted(self.computed)
        return any(earlier[1] > later[0] for earlier, later in itertools.pairwise(spans))


@dataclass(frozen=True)
class Scene:
    """What is played: so many flows that ask for one key.

    Attributes:
        flows: How many.
        answers_travel: Whether the IO yields after a level has done something, or before.
        outcome: What the computation gives, for the number of the computation.
        cancel: The flow that is cancelled, and at which of its own steps.
        processes: Whether each flow is of a process of its own.
        asks: What a flow is, given its IO and the store, if it is no plain look-up.
        shared: Whether the ledger says that others write there too.
        held: What all levels hold before.
    """

    flows: int = 2
    answers_travel: bool = False
    outcome: Callable[[int], Any] = "value {}".format
    cancel: tuple[int, int] | None = None
    processes: bool = False
    asks: dict[int, Callable[[ScriptedIO, lookup.Store], Coroutine[Any, Any, Any]]] = field(
        default_factory=dict
    )
    shared: bool = True
    held: Entry | None = None

    def stores(self, leases: Leases) -> list[lookup.Store]:
        slow = Named("slow")
        slow.ledger = Document(shared=self.shared)
        stores = [
            lookup.Store(
                [Named("fast"), slow],
                slow.ledger,
                leases if self.processes else None,
                Flights(),
                Recorder(),
                PATIENCE,
            )
            for _ in range(self.flows if self.processes else 1)
        ]
        for level in [level for store in stores for level in store.levels if self.held]:
            level.put_many([lookup.stored(KEY, self.held, compress=False)])
        return stores


def play(scene: Scene, order: Sequence[int]) -> Played:
    """Let the flows go on in an order; where the order ends or cannot be, the first that can."""
    leases = Leases()
    played = Played(scene.stores(leases), leases)
    compute = _computing(scene, played)
    options = {"answers_travel": scene.answers_travel, "processes": scene.processes}
    ios = [ScriptedIO(leases, **options) for _ in range(scene.flows)]
    calls = {}
    for number, io in enumerate(ios):
        store = played.stores[number % len(played.stores)]
        asks = scene.asks.get(number)
        calls[number] = (
            flow.find_or_compute(io, store, KEY, TERMS, compute)
            if asks is None
            else asks(io, store)
        )
    contexts = [contextvars.copy_context() for _ in ios]
    steps = [0] * scene.flows
    while calls:
        able = [number for number in calls if not ios[number].stuck]
        assert able, "every flow waits for another one"
        step = len(played.order)
        number = order[step] if step < len(order) and order[step] in able else able[0]
        played.order.append(number)
        played.choices.append(able)
        steps[number] += 1
        cancelled = scene.cancel == (number, steps[number])
        resume = _cancel if cancelled else _go_on
        try:
            contexts[number].run(resume, calls[number])
        except StopIteration as stop:
            played.results[number] = stop.value
            del calls[number]
        except (LookupError, asyncio.CancelledError) as error:
            played.results[number] = error
            del calls[number]
        while ios[number].spawned:
            calls[len(ios)] = ios[number].spawned.pop()
            contexts.append(contexts[number].copy())
            steps.append(0)
            ios.append(ios[number])
    return played


def _go_on(call: Any) -> None:
    call.send(None)


def _cancel(call: Any) -> None:
    call.throw(asyncio.CancelledError())


def _computing(scene: Scene, played: Played) -> Callable[[], Awaitable[Any]]:
    async def compute() -> Any:
        span = [len(played.order), len(played.order)]
        played.computed.append(span)
        number = len(played.computed)
        await Point()
        span[1] = len(played.order)
        result = scene.outcome(number)
        if isinstance(result, Exception):
            raise result
        return result

    return compute


def all_orders(scene: Scene) -> Iterator[Played]:
    """Play every order there is."""
    to_play: list[list[int]] = [[]]
    while to_play:
        begin = to_play.pop()
        played = play(scene, begin)
        yield played
        for step in range(len(begin), len(played.order)):
            others = set(played.choices[step]) - {played.order[step]}
            to_play += [[*played.order[:step], other] for other in others]


def settled(played: Played) -> bool:
    """Tell whether nothing is under way any more and the levels agree on what they hold."""
    held = [level.get_many((KEY,)) for store in played.stores for level in store.levels]
    return not played.under_way and all(one == held[0] for one in held)


# ---- two flows, every order ----------------------------------------------------------------------


def test_every_order_of_two_flows_computes_once():
    """While answers arrive at once, whoever misses meets the other's computation or its value."""
    orders = list(all_orders(Scene()))
    assert len(orders) > 90
    for played in orders:
        assert played.results == {0: "value 1", 1: "value 1"}
        assert len(played.computed) == 1
        assert settled(played)


def test_every_order_of_two_flows_whose_answers_travel():
    """An answer on its way may be overtaken, and even then nothing is computed twice.

    A miss that a level has given and the flow has not yet heard of is overtaken when the other flow
    computes, stores and leaves meanwhile. A flow that then took the lead without a second look
    would compute what is already there.
    """
    orders = list(all_orders(Scene(answers_travel=True)))
    assert len(orders) > 100
    for played in orders:
        assert set(played.results) == {0, 1}
        assert not played.overlap()
        assert settled(played)
    twice = [played.order for played in orders if len(played.computed) > 1]
    assert twice == [], f"{len(twice)} of {len(orders)} orders computed twice, such as {twice[0]}"


def test_two_computations_never_run_together():
    """Where an answer on its way is overtaken the value is still the one last computed."""
    for played in all_orders(Scene(answers_travel=True)):
        assert not played.overlap()
        assert played.results[played.order[-1]] == f"value {len(played.computed)}"
        (held,) = played.stores[0].levels[0].get_many((KEY,)).values()
        assert held


@pytest.mark.parametrize("answers_travel", [False, True])
def test_every_order_of_two_flows_whose_computation_fails(answers_travel):
    """The error reaches both, from one computation or from two that did not overlap."""
    scene = Scene(answers_travel=answers_travel, outcome=lambda n: LookupError(f"failure {n}"))
    for played in all_orders(scene):
        assert all(isinstance(result, LookupError) for result in played.results.values())
        assert not played.overlap()
        assert not played.under_way
        assert not played.stores[0].levels[0].get_many((KEY,))


@pytest.mark.parametrize("answers_travel", [False, True])
def test_every_order_of_two_flows_whose_value_cannot_be_shared(answers_travel):
    """Each flow gets an object of its own, and nothing is stored."""
    scene = Scene(answers_travel=answers_travel, outcome=lambda n: (n,))
    for played in all_orders(scene):
        assert sorted(played.results.values()) == [(1,), (2,)]
        assert not played.under_way
        assert not played.stores[0].levels[0].get_many((KEY,))


@pytest.mark.parametrize("answers_travel", [False, True])
def test_every_order_with_a_cancellation_at_every_step(answers_travel):
    """Wherever one of two flows is cancelled, the other gets its value and nothing is left over."""
    longest = max(len(played.order) for played in all_orders(Scene()))
    for step in range(1, longest + 1):
        for played in all_orders(Scene(answers_travel=answers_travel, cancel=(0, step))):
            assert played.results[1] in {"value 1", "value 2"}
            assert isinstance(played.results[0], asyncio.CancelledError | str)
            assert not played.overlap()
            assert not played.under_way


def test_a_third_flow_finds_what_two_left():
    """After every order of two flows, also one with a cancellation, the value is served."""
    for played in all_orders(Scene()):
        again = run(
            flow.find_or_compute(flow.SYNC, played.stores[0], KEY, TERMS, _must_not_compute)
        )
        assert again == "value 1"


async def _must_not_compute() -> Any:
    raise AssertionError("the value was there")


# ---- two processes, every order ------------------------------------------------------------------


@pytest.mark.parametrize("answers_travel", [False, True])
def test_every_order_of_two_processes_computes_once(answers_travel):
    """Of two processes that miss a key together one computes, and the other gets its value."""
    orders = list(all_orders(Scene(processes=True, answers_travel=answers_travel)))
    assert len(orders) > 100
    for played in orders:
        assert played.results == {0: "value 1", 1: "value 1"}
        assert len(played.computed) == 1
        assert settled(played)


def test_every_order_of_two_processes_whose_computation_fails():
    """An error stays in its process: the other one computes for itself, afterwards."""
    scene = Scene(processes=True, outcome=lambda n: LookupError(f"failure {n}"))
    for played in all_orders(scene):
        assert sorted(map(str, played.results.values())) == ["failure 1", "failure 2"]
        assert not played.overlap()
        assert not played.under_way


@pytest.mark.slow
@pytest.mark.parametrize("answers_travel", [False, True])
def test_every_order_of_two_processes_with_a_cancellation_at_every_step(answers_travel):
    """Wherever a process's caller is cancelled, its lease is given back, and the other goes on."""
    scene = Scene(processes=True, answers_travel=answers_travel)
    longest = max(len(played.order) for played in all_orders(scene))
    for step in range(1, longest + 1):
        for played in all_orders(dataclasses.replace(scene, cancel=(0, step))):
            assert played.results[1] in {"value 1", "value 2"}
            assert not played.overlap()
            assert not played.under_way


# ---- invalidation, every order -------------------------------------------------------------------


async def _reads(io: flow.IO, store: lookup.Store) -> tuple[bool, Any]:
    """Look up what the document says; tell also whether it was struck before."""
    document: Any = store.ledger
    was_struck = document.is_struck

    async def compute() -> str:
        says = document.says
        if isinstance(io, ScriptedIO):
            await Point()
        return says

    return was_struck, await flow.find_or_compute(io, store, KEY, TERMS, compute)


async def _invalidates(io: ScriptedIO, store: lookup.Store) -> None:
    document: Any = store.ledger
    document.says = "new"
    await io.strike(document, namespace_mark("default"), [namespace_mark("default")])
    document.is_struck = True


async def _deletes(io: ScriptedIO, store: lookup.Store) -> None:
    document: Any = store.ledger
    document.says = "new"
    await bulk.remove(io, store, [KEY], TERMS)
    document.is_struck = True


@pytest.mark.parametrize("answers_travel", [False, True])
@pytest.mark.parametrize(
    ("forgets", "shared", "processes"),
    [
        (_invalidates, False, False),
        (_invalidates, True, False),
        (_invalidates, True, True),
        (_deletes, True, False),
        (_deletes, True, True),
        (_deletes, False, False),
    ],
)
def test_every_order_of_a_look_up_and_an_invalidation(forgets, shared, processes, answers_travel):
    """A look-up that begins after an invalidation has ended never gets what was before it.

    Nor does one get it from a computation that began before and ends after.
    """
    scene = Scene(
        asks={0: _reads, 1: forgets},
        shared=shared,
        processes=processes,
        answers_travel=answers_travel,
    )
    orders = 0
    for played in all_orders(scene):
        orders += 1
        assert played.results[0] != (True, "old")
        for store in played.stores:
            assert run(_reads(flow.SYNC, store)) == (True, "new")
    assert orders > 10


@given(st.lists(st.integers(0, 3), max_size=60), st.booleans(), st.booleans())
@settings(deadline=None, max_examples=500)
def test_three_look_ups_and_an_invalidation(order, processes, answers_travel):
    """In whatever order they go on, nobody who begins afterwards gets what was before."""
    asks = dict.fromkeys(range(3), _reads) | {3: _invalidates}
    scene = Scene(4, processes=processes, answers_travel=answers_travel, asks=asks)
    played = play(scene, order)
    assert all(played.results[number] != (True, "old") for number in range(3))
    assert not played.under_way


# ---- computing anew in the background, every order -----------------------------------------------


@pytest.mark.parametrize("processes", [False, True])
@pytest.mark.parametrize("answers_travel", [False, True])
def test_every_order_of_two_flows_that_find_an_entry_past_its_time(processes, answers_travel):
    """The old value is served at once; it is computed anew by one at a time."""
    now = time.time()
    body = PLAIN.pack("old")
    held = Entry(now - 60, now - 1, now + 60, 0.0, 0, 0, 0, 0, TERMS.prefix, body)
    for played in all_orders(Scene(processes=processes, answers_travel=answers_travel, held=held)):
        assert {played.results[0], played.results[1]} <= {"old", "value 1"}
        assert "old" in (played.results[0], played.results[1])
        assert 1 <= len(played.computed) <= 2
        assert not played.overlap()
        assert not played.under_way
        (blob,) = played.stores[0].levels[-1].get_many((KEY,)).values()
        entry = unframe(KEY, blob)
        assert PLAIN.open(entry.body)[0] == f"value {len(played.computed)}"


# ---- three flows, random orders ------------------------------------------------------------------


@given(st.lists(st.integers(0, 2), max_size=40))
@settings(deadline=None, max_examples=500)
def test_three_flows_compute_once(order):
    """In whatever order three flows go on, one computes and all get its value."""
    played = play(Scene(flows=3), order)
    assert played.results == dict.fromkeys(range(3), "value 1")
    assert len(played.computed) == 1
    assert settled(played)


@given(
    st.lists(st.integers(0, 2), max_size=40),
    st.tuples(st.integers(0, 2), st.integers(1, 10)),
    st.booleans(),
)
@settings(deadline=None, max_examples=500)
def test_three_flows_survive_a_cancellation(order, cancel, answers_travel):
    """Whoever is cancelled wherever, the other two get a value, and no two compute together."""
    played = play(Scene(flows=3, cancel=cancel, answers_travel=answers_travel), order)
    others = [played.results[number] for number in range(3) if number != cancel[0]]
    assert all(isinstance(value, str) for value in others)
    assert not played.overlap()
    assert not played.under_way


@given(st.lists(st.integers(0, 2), max_size=40), st.booleans())
@settings(deadline=None, max_examples=300)
def test_three_flows_share_an_error(order, answers_travel):
    """In whatever order three flows go on, a failure reaches each, and none waits for ever."""
    scene = Scene(flows=3, answers_travel=answers_travel, outcome=lambda _: LookupError())
    played = play(scene, order)
    assert [type(result) for result in played.results.values()] == [LookupError] * 3
    assert not played.overlap()


# ---- the bridge ----------------------------------------------------------------------------------


def test_run_refuses_a_flow_that_suspends():
    """A flow with an IO that yields is no sync flow: `run` says so and closes it."""
    closed = []

    async def suspends() -> None:
        try:
            await Point()
        finally:
            closed.append(True)

    with pytest.raises(RuntimeError, match="tried to wait"):
        run(suspends())
    assert closed == [True]


def test_run_refuses_a_look_up_with_a_scripted_io():
    """The same for a whole look-up; what it had begun is undone, and the key stays usable."""
    leases = Leases()
    store, _ = Scene(processes=True).stores(leases)

    async def suspends() -> str:
        assert leases.held
        await Point()
        return "never"

    with pytest.raises(RuntimeError, match="tried to wait"):
        run(flow.find_or_compute(flow.SYNC, store, KEY, TERMS, suspends))
    assert not store.flights._flights
    assert not leases.held


def test_run_hands_values_and_errors_through():
    """What a flow returns or raises is what `run` returns or raises."""

    async def gives(value: Any) -> Any:
        return value

    async def fails() -> None:
        raise Uncacheable("value")

    assert run(gives(None)) is None
    assert run(gives((1, 2))) == (1, 2)
    with pytest.raises(Uncacheable):
        run(fails())


async def test_run_works_inside_a_running_loop():
    """A sync call made by a coroutine needs no loop of its own."""

    async def gives() -> str:
        return "value"

    assert run(gives()) == "value"
