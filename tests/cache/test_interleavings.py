"""Every order in which two look-ups of one key can meet, played in one thread without a sleep.

A flow waits only where its IO does. Here every method of the IO yields once, so that a test decides
which flow goes on, and plays all orders there are.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragaccel.cache import PLAIN, MemoryLevel, Uncacheable, flow
from ragaccel.cache.flight import Flight, Flights, Outcome
from ragaccel.cache.stats import Recorder
from ragaccel.io import run

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Iterator, Sequence

    from ragaccel.cache import Level, Stored

KEY = b"k" * 20
TTL = 60.0


class Point:
    """A place where a flow stops until the player lets it go on."""

    def __await__(self) -> Generator[None, None, None]:
        yield


class Named(MemoryLevel):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name


class ScriptedIO(flow.IO):
    """Yields once in every method: on the way to the level, or on the way back from it."""

    def __init__(self, *, answers_travel: bool) -> None:
        self.answers_travel = answers_travel
        self.waits_for: Flight | None = None

    async def get(self, level: Level, key: bytes) -> bytes | None:
        return await self._travel(lambda: level.get_many((key,)).get(key))

    async def put(self, level: Level, stored: Stored) -> None:
        await self._travel(lambda: level.put_many((stored,)))

    async def delete(self, level: Level, key: bytes) -> None:
        await self._travel(lambda: level.delete_many((key,)))

    async def wait(self, flight: Flight, timeout: float) -> Outcome | None:
        self.waits_for = flight
        await Point()
        return flight.outcome

    async def _travel(self, do: Callable[[], Any]) -> Any:
        if self.answers_travel:
            done = do()
            await Point()
            return done
        await Point()
        return do()

    @property
    def stuck(self) -> bool:
        return self.waits_for is not None and self.waits_for.outcome is None


@dataclass
class Played:
    """What happened in one order.

    Attributes:
        order: Which flow went on at each step.
        choices: Which flows could have gone on at each step.
        results: What each flow returned, or the error that ended it.
        computed: Start and end of each computation, in steps.
        store: The cache's parts afterwards.
    """

    store: flow.Store
    order: list[int] = field(default_factory=list)
    choices: list[list[int]] = field(default_factory=list)
    results: dict[int, Any] = field(default_factory=dict)
    computed: list[list[int]] = field(default_factory=list)

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
    """

    flows: int = 2
    answers_travel: bool = False
    outcome: Callable[[int], Any] = "value {}".format
    cancel: tuple[int, int] | None = None


def play(scene: Scene, order: Sequence[int]) -> Played:
    """Let the flows go on in an order; where the order ends or cannot be, the first that can."""
    store = flow.Store([Named("fast"), Named("slow")], Flights(), Recorder(), 60.0)
    played = Played(store)
    ios = [ScriptedIO(answers_travel=scene.answers_travel) for _ in range(scene.flows)]
    calls = {
        number: flow.find_or_compute(io, store, KEY, PLAIN, _computing(scene, played), TTL)
        for number, io in enumerate(ios)
    }
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
    held = [level.get_many((KEY,)) for level in played.store.levels]
    return not played.store.flights._flights and held[0] == held[1]


# ---- two flows, every order ----------------------------------------------------------------------


def test_every_order_of_two_flows_computes_once():
    """While answers arrive at once, whoever misses meets the other's computation or its value."""
    orders = list(all_orders(Scene()))
    assert len(orders) > 100
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
        (held,) = played.store.levels[0].get_many((KEY,)).values()
        assert held


@pytest.mark.parametrize("answers_travel", [False, True])
def test_every_order_of_two_flows_whose_computation_fails(answers_travel):
    """The error reaches both, from one computation or from two that did not overlap."""
    scene = Scene(answers_travel=answers_travel, outcome=lambda n: LookupError(f"failure {n}"))
    for played in all_orders(scene):
        assert all(isinstance(result, LookupError) for result in played.results.values())
        assert not played.overlap()
        assert not played.store.flights._flights
        assert not played.store.levels[0].get_many((KEY,))


@pytest.mark.parametrize("answers_travel", [False, True])
def test_every_order_of_two_flows_whose_value_cannot_be_shared(answers_travel):
    """Each flow gets an object of its own, and nothing is stored."""
    scene = Scene(answers_travel=answers_travel, outcome=lambda n: (n,))
    for played in all_orders(scene):
        assert sorted(played.results.values()) == [(1,), (2,)]
        assert not played.store.flights._flights
        assert not played.store.levels[0].get_many((KEY,))


@pytest.mark.parametrize("answers_travel", [False, True])
def test_every_order_with_a_cancellation_at_every_step(answers_travel):
    """Wherever one of two flows is cancelled, the other gets its value and nothing is left over."""
    longest = max(len(played.order) for played in all_orders(Scene()))
    for step in range(1, longest + 1):
        for played in all_orders(Scene(answers_travel=answers_travel, cancel=(0, step))):
            assert played.results[1] in {"value 1", "value 2"}
            assert isinstance(played.results[0], asyncio.CancelledError | str)
            assert not played.overlap()
            assert not played.store.flights._flights


def test_a_third_flow_finds_what_two_left():
    """After every order of two flows, also one with a cancellation, the value is served."""
    for played in all_orders(Scene()):
        io = flow.SyncIO()
        again = run(flow.find_or_compute(io, played.store, KEY, PLAIN, _must_not_compute, TTL))
        assert again == "value 1"


async def _must_not_compute() -> Any:
    raise AssertionError("the value was there")


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
    assert not played.store.flights._flights


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
    store = flow.Store([Named("fast")], Flights(), Recorder(), 60.0)

    async def suspends() -> str:
        await Point()
        return "never"

    with pytest.raises(RuntimeError, match="tried to wait"):
        run(flow.find_or_compute(flow.SYNC, store, KEY, PLAIN, suspends, TTL))
    assert not store.flights._flights


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
