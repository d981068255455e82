"""How long an answer is served: lifetimes, empty answers, and computing anew in the background."""

from __future__ import annotations

import asyncio
import functools
import math
import threading
import time
import warnings
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from ragaccel.cache import MISSING, DiskLevel, Kind, MemoryLevel, MultiLevelCache, jittered
from ragaccel.cache.keys import namespace_mark
from ragaccel.cache.terms import Policy
from ragaccel.cache.values import PLAIN, Entry
from ragaccel.errors import ConfigurationError, RagaccelWarning
from tests.cache.helpers import PATIENCE, Compute, stored, together, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cache.helpers import Face


def lives(cache: MultiLevelCache, clock: Any, seconds: float, name: str = "a") -> None:
    """Assert that a key is served until about so many seconds from now."""
    clock.pass_(seconds - 1)
    assert cache.get(name) is not MISSING
    assert cache.get_many([name]) != [MISSING]
    clock.pass_(2)
    assert cache.get(name) is MISSING
    assert cache.get_many([name]) == [MISSING]


# ---- lifetimes -----------------------------------------------------------------------------------

LIFETIMES = {
    "seconds": (100, 100),
    "a fraction": (99.5, 99.5),
    "a timedelta": (timedelta(minutes=2), 120),
    "a function": (lambda query, result: 50, 50),
    "a function that gives a timedelta": (lambda query, result: timedelta(seconds=50), 50),
}


@pytest.mark.parametrize("of", ["cache", "call", "set"])
@pytest.mark.parametrize("ttl", LIFETIMES)
def test_a_lifetime_ends(open_cache, clock, face, of, ttl):
    """Given to the cache, to the call or to set(), in whatever form."""
    given, seconds = LIFETIMES[ttl]
    cache = open_cache(ttl=given if of == "cache" else 10)
    own = {} if of == "cache" else {"ttl": given}
    if of == "set":
        face.set(cache, "a", 1, **own)
    else:
        assert face.get_or_compute(cache, "a", lambda: 1, **own) == 1
    lives(cache, clock, seconds)
    assert face.get_or_compute(cache, "a", lambda: 2) == 2


@pytest.mark.parametrize("given", [math.inf, "none of the cache", lambda query, result: None])
def test_no_limit_is_none(open_cache, clock, given):
    """Infinity, None for the cache, and a function that returns None."""
    forever = given == "none of the cache"
    cache = open_cache(ttl=None if forever else 10)
    cache.get_or_compute("a", lambda: 1, ttl=None if forever else given)
    cache.set("b", 1, ttl=None if forever else given)
    clock.pass_(1e9)
    assert cache.get_many(["a", "b"]) == [1, 1]
    assert open_cache().get_many(["a", "b"]) == [1, 1]


@pytest.mark.parametrize("ttl", [0, -1, -math.inf, math.nan, timedelta(0), "60", []])
def test_no_time_at_all_is_a_wrong_argument(open_cache, ttl, face):
    """A fixed lifetime that keeps nothing is a mistake, said at once."""
    with pytest.raises(ConfigurationError):
        open_cache(ttl=ttl)
    cache = open_cache()
    with pytest.raises(ConfigurationError):
        face.set(cache, "a", 1, ttl=ttl)
    with pytest.raises(ConfigurationError):
        face.get_or_compute(cache, "a", lambda: 1, ttl=ttl)


def test_a_function_is_shown_the_query_and_the_result(open_cache, face):
    """The key of a call, or what an adapter says the query is; and what the user sees."""
    shown = []

    def ttl(query, result):
        shown.append((query, result))
        return 60

    cache = open_cache(ttl=ttl)
    face.get_or_compute(cache, "the key", lambda: ["the result"])
    face.set(cache, ["another", 1], {"a": 1})
    assert shown == [("the key", ["the result"]), (["another", 1], {"a": 1})]
    wrapped = Kind("wrapped", PLAIN.pack, PLAIN.open, result=lambda value: value["seen"])
    cache.get_or_compute("k", lambda: {"seen": "this"}, kind=wrapped)
    assert shown[-1] == ("k", "this")


@pytest.mark.parametrize(
    "nothing", [0, 0.0, -5, timedelta(0), timedelta(seconds=-1), -math.inf], ids=repr
)
def test_a_function_may_keep_nothing(open_cache, face, nothing):
    """The caller is served, nothing is stored, and it is no fault."""
    cache = open_cache()
    for _ in range(2):
        compute = Compute()
        assert face.get_or_compute(cache, "a", compute, ttl=lambda *_: nothing) == "value"
        assert compute.calls == 1
    face.set(cache, "a", 1, ttl=lambda *_: nothing)
    assert cache.get("a") is MISSING
    assert [usage.entries for usage in cache.stats().levels.values()] == [0, 0]
    assert cache.stats().errors == {}


def test_set_with_a_function_that_keeps_nothing_forgets_the_old_value(open_cache):
    """What was replaced by a value that is not kept is not served either."""
    one, other = open_cache(), open_cache()
    one.set("a", "old")
    assert other.get("a") == "old"
    one.set("a", "new", ttl=lambda *_: 0)
    assert [one.get("a"), other.get("a")] == [MISSING, MISSING]


def test_set_that_keeps_nothing_forgets_the_old_value_in_memory():
    """The same for a cache in memory."""
    with MultiLevelCache([MemoryLevel()]) as cache:
        cache.set("a", "old")
        cache.set("a", "new", ttl=lambda *_: 0)
        assert cache.get("a") is MISSING


@pytest.mark.parametrize(
    "wrong",
    ["a string", math.nan, object(), ValueError("broken")],
    ids=["a string", "nan", "an object", "an error"],
)
def test_a_function_that_fails_is_warned_about_once(open_cache, face, wrong):
    """Every caller is served, nothing is kept, and the log is not flooded."""

    def ttl(query, result):
        if isinstance(wrong, Exception):
            raise wrong
        return wrong

    cache = open_cache(ttl=ttl)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("default")
        for number in range(5):
            assert face.get_or_compute(cache, number, lambda: "served") == "served"
            assert cache.get(number) is MISSING
    assert [warning.category for warning in seen] == [RagaccelWarning]
    with pytest.warns(RagaccelWarning, match="nothing is kept"):
        face.set(cache, "a", 1)


@pytest.mark.parametrize("empty", [None, [], "", {}, b"", ()], ids=repr)
def test_empty_answers_are_kept_for_less_long(open_cache, clock, face, empty):
    """What was not found may be found soon."""
    cache = open_cache(ttl=1000, negative_ttl=100)
    value = list(empty) if empty == () else empty
    face.get_or_compute(cache, "a", lambda: value)
    face.get_or_compute(cache, "full", lambda: [0])
    face.get_or_compute(cache, "zero", lambda: 0)
    lives(cache, clock, 100)
    assert cache.get_many(["full", "zero"]) == [[0], 0]


def test_the_shorter_of_both_counts_for_empty_answers(open_cache, clock):
    """An own lifetime below the negative one holds; None makes no difference; inf is bounded."""
    cache = open_cache(ttl=1000, negative_ttl=timedelta(seconds=100))
    cache.set("short", None, ttl=20)
    cache.set("inf", None, ttl=math.inf)
    cache.set("function", None, ttl=lambda *_: 500)
    other = open_cache(namespace="other", negative_ttl=None, ttl=1000)
    other.set("long", [])
    clock.pass_(30)
    assert cache.get_many(["short", "inf", "function"]) == [MISSING, None, None]
    clock.pass_(71)
    assert cache.get_many(["inf", "function"]) == [MISSING, MISSING]
    assert other.get("long") == []
    with pytest.raises(ConfigurationError):
        open_cache(negative_ttl=0)


def test_jittered_lifetimes_end_apart(open_cache, clock):
    """Entries of one moment do not end in one moment."""
    cache = open_cache(ttl=jittered(100, 0.5))
    names = list(range(200))
    cache.set_many([(name, name) for name in names])
    left = []
    for _ in range(4):
        left.append(sum(found is not MISSING for found in cache.get_many(names)))
        clock.pass_(40)
    assert left[0] == left[1] == 200
    assert 80 < left[2] < 200  # at 80 s of 50 to 150: 140 expected
    assert left[3] < 100  # at 120 s: 60 expected


# ---- served once more while it is computed anew --------------------------------------------------


class Background:
    """A cache whose entry "a" is due, and whose computations a test lets end."""

    def __init__(self, cache: MultiLevelCache, face: Face, clock: Any) -> None:
        self.cache, self.face, self.clock = cache, face, clock

    def due(self, value: Any = "old", **options: Any) -> None:
        self.face.get_or_compute(self.cache, "a", lambda: value, **options)
        self.clock.pass_(101)

    def ask(self, compute: Callable[[], Any], **options: Any) -> Any:
        return self.face.get_or_compute(self.cache, "a", compute, **options)

    def settle(self, so: Callable[[], bool]) -> None:
        """Let the background go on until something is so."""
        end = time.monotonic() + PATIENCE
        while not so():
            assert time.monotonic() < end
            if self.face.name == "async":
                self.face.loop.run_until_complete(asyncio.sleep(0.005))
            else:
                time.sleep(0.005)


@pytest.fixture
def background(open_cache, face, clock):
    return Background(open_cache(ttl=100, stale_while_revalidate=50), face, clock)


def test_the_old_value_is_served_while_it_is_computed_anew(background):
    """The caller does not wait; the next one gets the new value."""
    background.due()
    assert background.ask(lambda: "new") == "old"
    background.settle(lambda: background.cache.stats().refreshed == 1)
    assert background.cache.get("a") == "new"
    assert background.ask(lambda: "newer") == "new"
    assert background.cache.stats().misses == 1


def test_many_callers_make_one_refresh(background):
    """However many ask while it is under way."""
    background.due()
    compute, end = Compute("new"), threading.Event()

    def slow() -> Any:
        end.wait(PATIENCE)
        return compute()

    if background.face.name == "async":

        async def aslow() -> Any:
            return await asyncio.to_thread(slow)

        async def ask() -> list[Any]:
            asks = [background.cache.aget_or_compute("a", aslow) for _ in range(100)]
            return await asyncio.gather(*asks)

        found = background.face.loop.run_until_complete(ask())
    else:
        found = together(20, lambda _: background.ask(slow)) + [background.ask(slow)] * 80
    assert found == ["old"] * 100
    end.set()
    background.settle(lambda: background.cache.stats().refreshed == 1)
    assert compute.calls == 1
    assert background.cache.get("a") == "new"


def test_after_the_time_for_it_callers_wait(background):
    """What is older than both together is not served."""
    background.due()
    background.clock.pass_(50)
    assert background.ask(lambda: "new") == "new"


def test_get_serves_nothing_that_is_due(background):
    """`get` and `get_many` compute nothing, so they would serve it over and over."""
    background.due()
    assert background.face.get(background.cache, "a") is MISSING
    assert background.cache.get_many(["a"]) == [MISSING]
    assert background.ask(lambda: "new") == "old"


def test_scan_serves_nothing_that_is_due(background):
    """As `get` does not."""
    background.due()
    assert list(background.cache.scan()) == []


def test_an_error_of_the_refresh_keeps_the_old_value(background):
    """It is counted, nobody sees it, and the next caller tries again."""
    background.due()

    def fail() -> Any:
        raise ValueError("broken")

    for number in range(3):
        assert background.ask(fail) == "old"
        background.settle(lambda n=number: background.cache.stats().refresh_errors == n + 1)
    assert background.ask(lambda: "new") == "old"
    background.settle(lambda: background.cache.stats().refreshed == 1)
    assert background.cache.get("a") == "new"


@pytest.mark.parametrize("by", ["tag", "key", "namespace"])
def test_what_was_invalidated_is_not_served_again(background, by):
    """Being due is no licence for being wrong."""
    background.due(tags=["t"])
    if by == "tag":
        background.cache.invalidate(["t"])
    elif by == "key":
        background.cache.delete("a")
    else:
        background.cache.invalidate(namespace="default")
    assert background.ask(lambda: "new") == "new"


def test_a_refresh_from_before_a_strike_does_not_stand(background):
    """What the background was computing when it was struck is not served."""
    background.due(tags=["t"])
    started, end = threading.Event(), threading.Event()

    def slow() -> str:
        started.set()
        end.wait(PATIENCE)
        return "of before"

    if background.face.name == "async":

        async def within() -> None:
            async def aslow() -> str:
                return await asyncio.to_thread(slow)

            assert await background.cache.aget_or_compute("a", aslow, tags=["t"]) == "old"
            await asyncio.to_thread(started.wait, PATIENCE)
            await background.cache.ainvalidate(["t"])
            end.set()

        background.face.loop.run_until_complete(within())
    else:
        assert background.ask(slow, tags=["t"]) == "old"
        started.wait(PATIENCE)
        background.cache.invalidate(["t"])
        end.set()
    background.settle(lambda: background.cache.stats().refreshed == 1)
    assert background.cache.get("a") is MISSING
    assert background.ask(lambda: "new") == "new"


def test_a_refresh_that_may_not_be_kept_leaves_the_old(background):
    """A policy that says so while computing anew; the old value goes when its time has come."""
    background.due()
    assert background.ask(lambda: "unkept", ttl=lambda *_: 0) == "old"
    background.settle(lambda: background.cache.stats().refreshed == 1)
    assert background.ask(lambda: "new") in {"old", "new"}


def test_what_cannot_be_stored_is_no_refresh(background):
    """A value that has no faithful form is counted as an error of the refresh."""
    background.due()
    assert background.ask(object) == "old"
    background.settle(lambda: background.cache.stats().refresh_errors == 1)
    assert background.ask(lambda: "new") == "old"


def test_of_all_processes_one_computes_anew(open_cache, clock, face):
    """A cache whose memory still has the old value takes the new one from the disk."""
    one, other = (open_cache(ttl=100, stale_while_revalidate=50) for _ in range(2))
    one.set("a", "old")
    assert other.get("a") == "old"
    clock.pass_(101)
    first = Background(one, face, clock)
    assert first.ask(lambda: "new") == "old"
    first.settle(lambda: one.stats().refreshed == 1)
    compute, second = Compute("newer"), Background(other, face, clock)
    assert second.ask(compute) in {"old", "new"}
    second.settle(lambda: other.get("a") is not MISSING)
    assert compute.calls == 0


def test_get_goes_past_a_level_whose_entry_is_due(open_cache, clock, face):
    """What another process has refreshed is found on the disk."""
    one, other = (open_cache(ttl=100, stale_while_revalidate=50) for _ in range(2))
    one.set("a", "old")
    assert other.get("a") == "old"
    clock.pass_(101)
    first = Background(one, face, clock)
    first.ask(lambda: "new")
    first.settle(lambda: one.stats().refreshed == 1)
    assert face.get(other, "a") == "new"


def test_a_refresh_survives_a_close(open_cache, clock):
    """Closing the cache while a thread computes anew does no harm."""
    cache = open_cache(ttl=100, stale_while_revalidate=50)
    cache.set("a", "old")
    clock.pass_(101)
    started, end = threading.Event(), threading.Event()

    def slow() -> str:
        started.set()
        end.wait(PATIENCE)
        return "new"

    assert cache.get_or_compute("a", slow) == "old"
    started.wait(PATIENCE)
    cache.close()
    end.set()
    wait_until(lambda: cache.stats().refreshed + cache.stats().refresh_errors == 1)


def test_an_event_loop_that_ends_takes_its_refreshes_along(open_cache, clock):
    """The next loop, or a thread, refreshes instead."""
    cache = open_cache(ttl=100, stale_while_revalidate=50)
    cache.set("a", "old")
    clock.pass_(101)

    async def hang() -> str:
        await asyncio.sleep(PATIENCE)
        return "never"

    async def once() -> None:
        assert await cache.aget_or_compute("a", hang) == "old"
        await asyncio.sleep(0.02)

    asyncio.run(once())
    asyncio.run(once())
    assert cache.get_or_compute("a", lambda: "new") == "old"
    wait_until(lambda: cache.stats().refreshed == 1)
    assert cache.get("a") == "new"


def test_more_refreshes_than_threads_for_them(open_cache, clock):
    """Those that find no thread are left for later callers; nobody waits."""
    cache = open_cache(ttl=100, stale_while_revalidate=50)
    cache.set_many([(number, "old") for number in range(30)])
    clock.pass_(101)
    end = threading.Event()

    def slow() -> str:
        end.wait(PATIENCE)
        return "new"

    before = threading.active_count()
    start = time.monotonic()
    assert [cache.get_or_compute(n, slow) for n in range(30)] == ["old"] * 30
    assert time.monotonic() - start < PATIENCE / 3
    assert threading.active_count() - before <= 16
    end.set()

    def all_new() -> bool:
        return [cache.get_or_compute(n, slow) for n in range(30)] == ["new"] * 30

    wait_until(all_new)


# ---- computed anew before its time ---------------------------------------------------------------


@pytest.mark.parametrize(("beta", "early"), [(1e9, True), (0.0, False)])
def test_early_refresh(open_cache, face, clock, beta, early):
    """The more eager, the earlier; 0 never."""
    cache = open_cache(ttl=1000, early_refresh=beta)
    background = Background(cache, face, clock)

    def compute() -> str:
        time.sleep(0.01)
        return "old"

    assert background.ask(compute) == "old"
    for _ in range(5):
        assert background.ask(lambda: "new") in ({"old", "new"} if early else {"old"})
        if early:
            background.settle(lambda: cache.stats().refreshed > 0)
    assert (cache.stats().refreshed > 0) is early
    assert cache.get("a") == ("new" if early else "old")


def test_early_refresh_is_drawn_by_lot_near_the_end():
    """With the factor of the paper: hardly ever long before, nearly always at the very end."""
    policy, now = Policy(1000, None, 0.0, 1.0), time.time()
    made = Entry(now, math.inf, math.inf, 10.0, 0, 0, 0, 0, b"", b"")
    shares = []
    for left in (100, 10, 0.1):
        near = made._replace(fresh=now + left)
        shares.append(sum(policy.is_due(near) for _ in range(2000)) / 2000)
    assert shares[0] < 0.01  # e ** -10
    assert 0.3 < shares[1] < 0.44  # e ** -1
    assert shares[2] > 0.95
    assert not policy.is_due(made)


@pytest.mark.parametrize("wrong", [-1, -0.001])
def test_a_negative_eagerness_is_a_wrong_argument(open_cache, wrong):
    """And so is no time to serve what is due."""
    with pytest.raises(ConfigurationError):
        open_cache(early_refresh=wrong)
    with pytest.raises(ConfigurationError):
        open_cache(stale_while_revalidate=wrong)


def test_what_never_ends_is_never_refreshed(open_cache, face, clock):
    """Entries without limit are neither due nor early."""
    cache = open_cache(ttl=None, stale_while_revalidate=10, early_refresh=1e9)
    background = Background(cache, face, clock)
    background.ask(lambda: "old")
    clock.pass_(1e9)
    assert background.ask(lambda: "new") == "old"
    assert cache.stats().refreshed == 0


# ---- bounds --------------------------------------------------------------------------------------


def held(level: DiskLevel) -> dict[str, int]:
    found = level.describe()["namespaces"]
    names = {namespace_mark(name).hex(): name for name in ("noisy", "quiet")}
    return {names[mark]: counts["bytes"] for mark, counts in found.items()}


def test_a_namespace_is_bounded_on_disk(tmp_path):
    """One that writes a lot makes room for itself and for no other."""
    level = DiskLevel(tmp_path / "cache.sqlite", 1_000_000, namespace_bytes=100_000)
    quiet = MultiLevelCache([level], namespace="quiet")
    noisy = MultiLevelCache([level], namespace="noisy")
    quiet.set_many([(number, "q" * 500) for number in range(50)])
    for number in range(1_000):
        noisy.set(number, "n" * 500)
        assert noisy.get(number) == "n" * 500
    assert held(level)["noisy"] <= 100_000
    assert held(level)["noisy"] > 50_000
    assert quiet.get_many(list(range(50))) == ["q" * 500] * 50
    assert noisy.get(0) is MISSING
    assert noisy.get(999) == "n" * 500
    assert level.usage().evictions > 800
    level.close()


def test_all_namespaces_together_stay_within_the_level(tmp_path):
    """However many there are, each within its own bound; the oldest go."""
    level = DiskLevel(tmp_path / "cache.sqlite", 200_000, namespace_bytes=100_000)
    for number in range(60):
        cache = MultiLevelCache([level], namespace=f"tenant {number}")
        cache.set_many([(lap, f"{number}" * 400) for lap in range(30)])
    assert level.usage().bytes <= 200_000
    assert cache.get_many(list(range(30))) == ["59" * 400] * 30
    level.close()


def test_wrong_bounds(tmp_path):
    """Sizes are positive."""
    for bound in (0, -1):
        with pytest.raises(ConfigurationError):
            DiskLevel(tmp_path / "c", namespace_bytes=bound)
        with pytest.raises(ConfigurationError):
            MemoryLevel(namespace_bytes=bound)


def test_a_full_level_writes_about_as_fast_as_one_with_room(tmp_path):
    """What a write costs, in steps of SQLite, does not grow with what the level holds."""

    def write_all(level: DiskLevel, count: int) -> int:
        steps = list[None]()
        step = functools.partial(steps.append, None)
        level._file.do(lambda db: db.set_progress_handler(step, 10))
        for number in range(count):
            level.put_many([stored(("new", number), bytes(8_000))])
        return len(steps)

    bound = 20_000_000
    fill = [stored(number, bytes(8_000)) for number in range(bound // 8_192 - 1)]
    full, roomy = DiskLevel(tmp_path / "full", bound), DiskLevel(tmp_path / "roomy", 10 * bound)
    for level in (full, roomy):
        level.put_many(fill)
    took = {level: write_all(level, 50) for level in (roomy, full)}
    assert full.usage().evictions >= 49
    for level in (full, roomy):
        level.close()
    assert took[full] < 8 * took[roomy]  # it holds 2,440 entries
