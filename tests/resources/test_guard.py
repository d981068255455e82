"""Memory is given up from a limit on, the cheapest first, and taken again when there is enough."""

from __future__ import annotations

import doctest
import itertools
import json
import mmap
import os
import subprocess
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragaccel import MemoryLevel, MicroBatcher, MultiLevelCache
from ragaccel.errors import ConfigurationError
from ragaccel.resources import (
    Lazy,
    MemoryGuard,
    Relief,
    anonymous_bytes,
    guard,
    memory_limit_bytes,
)
from tests.cache.helpers import script, wait_until

MB = 1 << 20
LIMIT, RESUME = 1_000, 700


class Part:
    """Something of the application's own that holds memory, and what it was asked."""

    def __init__(self, holds, relief=Relief.CACHE, *, tells=True):
        self.holds, self.relief, self.tells = holds, relief, tells
        self.asked, self.restored = [], 0

    def relieve(self, needed_bytes):
        self.asked.append(needed_bytes)
        given_up = min(self.holds, needed_bytes)
        self.holds -= given_up
        return given_up if self.tells else 0

    def restore(self):
        self.restored += 1


class Application:
    """Parts, and what is in use beside them; time goes by when it is told."""

    def __init__(self, *parts, **options):
        self.parts, self.used, self.now, self.events = parts, 0, 0.0, []
        self.guard = MemoryGuard(
            LIMIT, RESUME, settle=10, reading=self.read, clock=lambda: self.now,
            on_change=self.events.append, **options,
        )  # fmt: skip
        for part in parts:
            self.guard.watch(part)

    def read(self):
        return self.used + sum(part.holds for part in self.parts)

    def check(self, used, seconds=0.0):
        self.used, self.now = used, self.now + seconds
        return self.guard.check()


def test_nobody_is_asked_below_the_limit():
    """Between the two bounds, too, until the limit was reached."""
    part = Part(100)
    application = Application(part)
    assert [application.check(used) for used in (0, 650, 899)] == ["normal"] * 3
    assert part.asked == []
    assert application.events == []


def test_the_cheapest_is_asked_first_and_no_more_than_is_needed():
    """Caches before what is loaded before work; of equals the first watched."""
    work, loaded = Part(0, Relief.WORK, tells=False), Part(200, Relief.LOADED, tells=False)
    first, second = Part(50), Part(60)
    application = Application(work, loaded, first, second)
    application.check(700)
    assert [part.asked for part in (first, second, loaded, work)] == [[310], [260], [200], []]
    assert application.read() == RESUME
    application.check(LIMIT)
    assert [part.asked[-1] for part in (first, second, loaded, work)] == [300] * 4


def test_it_goes_on_until_there_is_enough_and_no_longer():
    """Above `resume` more is given up at every reading, below it nothing."""
    part = Part(1_000)
    application = Application(part)
    assert application.check(500) == "pressure"
    assert part.asked == [800]
    assert application.check(600) == "pressure"
    assert part.asked == [800, 100]
    for used in (600, 700, 850, 899, 899):
        assert application.check(used) == "relieved"
    assert part.asked == [800, 100]
    assert application.check(950) == "pressure"
    assert part.asked == [800, 100, 350]


def test_it_is_restored_when_memory_was_low_for_a_while():
    """A reading between the bounds begins the while anew."""
    part = Part(0)
    application = Application(part)
    application.check(LIMIT)
    assert application.check(RESUME) == "relieved"
    assert application.check(600, seconds=9) == "relieved"
    assert application.check(800, seconds=9) == "relieved"
    assert application.check(600, seconds=9) == "relieved"
    assert application.check(600, seconds=9) == "relieved"
    assert part.restored == 0
    assert application.check(600, seconds=1) == "normal"
    assert part.restored == 1
    assert application.check(800) == "normal"
    assert part.restored == 1


def test_every_change_of_state_is_told_and_logged_once(caplog):
    """With what was in use then, and the bounds in bytes."""
    application = Application()
    for used in (500, 1_000, 1_001, 700, 650):
        application.check(used)
    application.check(650, seconds=10)
    assert [(event.state, event.used_bytes) for event in application.events] == [
        ("pressure", 1_000),
        ("relieved", 700),
        ("normal", 650),
    ]
    assert {(event.limit_bytes, event.resume_bytes) for event in application.events} == {
        (LIMIT, RESUME)
    }
    assert [record.name for record in caplog.records] == ["ragaccel.resources"] * 3
    assert [record.args[0] for record in caplog.records] == ["pressure", "relieved", "normal"]


def test_what_fails_disturbs_nobody(caplog):
    """It is logged once, until it works again."""

    class Faulty(Part):
        def relieve(self, needed_bytes):
            super().relieve(needed_bytes)
            if len(self.asked) != 3:
                raise OSError("no")
            return 0

        def restore(self):
            super().restore()
            raise OSError("no")

    faulty, part = Faulty(0), Part(10)
    application = Application(faulty, part)
    for _ in range(2):
        assert application.check(LIMIT) == "pressure"
    assert len(part.asked) == 2
    assert [record.args[1] for record in caplog.records if record.exc_info] == ["OSError"]
    for _ in range(3):
        application.check(LIMIT)
    assert len(faulty.asked) == 5
    assert len([record for record in caplog.records if record.exc_info]) == 2
    application.check(0)
    application.check(0, seconds=10)
    assert (faulty.restored, part.restored) == (1, 1)


def test_a_callback_that_fails_or_asks_the_guard_again_is_no_harm():
    """It neither ends the guard nor waits for itself."""
    part, told = Part(0), []

    def tell(event):
        told.append((event.state, guarded.check()))
        raise ValueError("not now")

    guarded = MemoryGuard(LIMIT, RESUME, reading=lambda: LIMIT, on_change=tell)
    guarded.watch(part)
    assert guarded.check() == "pressure"
    assert told == [("pressure", "pressure")]
    assert part.asked == [300]


def test_a_reading_that_fails_changes_nothing(caplog):
    """The next one counts."""

    def read():
        if (used := next(readings)) is None:
            raise OSError("no such file")
        return used

    readings = iter([LIMIT, LIMIT, None, None, 0])
    part = Part(0)
    guarded = MemoryGuard(LIMIT, RESUME, reading=read)
    guarded.watch(part)
    assert [guarded.check() for _ in range(4)] == [*["pressure"] * 3, "relieved"]
    assert len([record for record in caplog.records if record.exc_info]) == 1


def test_what_is_not_watched_any_more_is_restored_and_left_alone():
    """Watching twice is watching once."""
    part, other = Part(0), Part(0)
    application = Application(part, other)
    application.guard.watch(part)
    application.check(LIMIT)
    assert len(part.asked) == 1
    application.guard.unwatch(part)
    assert part.restored == 1
    application.check(LIMIT)
    assert (len(part.asked), len(other.asked)) == (1, 2)


def test_the_parts_of_a_rag_application_give_memory_up_in_order():
    """Real ones: the cache is trimmed, then the model unloaded, then batches shrink."""
    level, batcher = MemoryLevel(8 * MB), MicroBatcher(list, max_size=8)
    cache = MultiLevelCache([level])
    model = Lazy(lambda: bytes(100), clock=lambda: 0.0)
    cache.set_many([(number, bytes(10_000)) for number in range(300)])
    with model:
        pass
    application = Application()
    for part in (batcher, model, cache):
        assert application.guard.watch(part) is part
    full = level.bytes_used
    application.check(LIMIT)
    assert full - 30_000 <= level.bytes_used < full
    assert model.is_loaded
    level.clear()
    application.check(LIMIT)
    assert not model.is_loaded
    assert batcher._limits.shrink.by == 2
    application.check(0)
    application.check(0, seconds=10)
    assert batcher._limits.shrink.by == 1
    cache.set_many([(number, bytes(10_000)) for number in range(300)])
    assert level.bytes_used == full


def guard_threads():
    return [thread for thread in threading.enumerate() if thread.name == "ragaccel-memory"]


def test_a_thread_looks_while_the_guard_is_entered():
    """It is a daemon, ends with the guard, and leaves nothing shrunk."""
    part = Part(0)
    application = Application(part, interval=0.001)
    assert not guard_threads()
    with application.guard as same, same:
        [thread] = guard_threads()
        assert thread.daemon
        application.used = LIMIT
        wait_until(lambda: len(part.asked) > 2)
        assert same.state == "pressure"
    assert not guard_threads()
    assert part.restored == 1
    assert application.guard.state == "normal"
    with application.guard:
        wait_until(lambda: application.guard.state == "pressure")
    assert part.restored == 2


def test_who_leaves_it_ends_it_for_nobody_else():
    """It looks until the last one who entered it has left."""
    application = Application(Part(0), interval=0.001)
    with application.guard:
        with application.guard:
            pass
        application.used = LIMIT
        wait_until(lambda: application.guard.state == "pressure")
    assert application.guard.state == "normal"


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # of forks amid threads
def test_after_a_fork_the_child_hangs_nowhere():
    """It is not guarded, can leave the guard, and can enter it anew."""
    application = Application(Part(0), interval=0.001)
    with application.guard:
        application.used = LIMIT
        wait_until(lambda: application.guard.state == "pressure")
        child = os.fork()
        if not child:
            is_new = application.guard.state == "normal"
            application.guard.__exit__()
            with application.guard:
                wait_until(lambda: application.guard.state == "pressure")
            os._exit(not is_new)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_shares_are_of_what_the_container_may_use():
    """Not of the host's memory; `resume` is seven eighths of the limit."""
    events = []
    guarded = MemoryGuard("80%", reading=lambda: 1 << 50, on_change=events.append)
    guarded.check()
    [event] = events
    assert event.limit_bytes == int(memory_limit_bytes() * 0.8)
    assert event.resume_bytes == pytest.approx(memory_limit_bytes() * 0.7, rel=1e-6)
    with_resume = MemoryGuard("50 %", "12.5%", reading=lambda: 1 << 50, on_change=events.append)
    with_resume.check()
    assert events[1].resume_bytes == memory_limit_bytes() // 8


@pytest.mark.parametrize(
    "options",
    [
        {"limit": "80"},
        {"limit": "120%"},
        {"limit": 0.8},
        {"limit": 0},
        {"limit": "80%", "resume": "80%"},
        {"limit": "80%", "resume": MB},
        {"limit": MB, "resume": 2 * MB},
        {"interval": 0},
        {"interval": float("inf")},
        {"settle": -1},
    ],
    ids=str,
)
def test_options_that_cannot_work_are_refused(options):
    """It is said which."""
    with pytest.raises(ConfigurationError, match="|".join(options)):
        MemoryGuard(**options)


def test_what_cannot_be_asked_is_refused():
    """It is said what it lacks."""
    with pytest.raises(ConfigurationError, match="relieve"):
        MemoryGuard().watch({})


@given(st.lists(st.tuples(st.integers(0, 1_300), st.sampled_from([0, 4, 20])), max_size=40))
def test_it_never_acts_between_the_bounds_once_memory_was_low(readings):
    """It begins at the limit only, goes on above `resume` only, and restores below it only."""
    part = Part(0)
    application = Application(part)
    acts = False
    for used, seconds in readings:
        asked, restored = len(part.asked), part.restored
        state = application.check(used, seconds)
        acts = used >= LIMIT or (acts and used > RESUME)
        assert len(part.asked) - asked == acts
        assert (state == "pressure") == acts
        assert part.restored == restored or used <= RESUME
    states = [event.state for event in application.events]
    assert all(one != other for one, other in itertools.pairwise(states))
    assert "relieved" not in states[:1]
    assert part.restored == states.count("normal")


def test_the_example_works():
    """What the docstring shows is so."""
    assert doctest.testmod(guard).failed == 0


def test_mapped_files_do_not_count_and_children_do(tmp_path):
    """Pages of files can be taken back at any time; those of a child cannot."""
    size = 64 * MB
    file = tmp_path / "vectors.bin"
    file.write_bytes(bytes(size))
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as pages:
        before = anonymous_bytes()
        assert sum(pages[at] for at in range(0, size, 4096)) == 0
        assert anonymous_bytes() - before < size / 4
    own = bytearray(os.urandom(MB) * 64)
    assert anonymous_bytes() - before > size * 0.9
    del own
    before = anonymous_bytes()
    code = f"import os; held = os.urandom(1 << 20) * 64; print(len(held) == {size}); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout.readline() == b"True\n"
        assert anonymous_bytes() - before > size * 0.9
        child.communicate(b"\n")


FILLING = """
import json, resource, sys, time
import psutil
from ragaccel import MemoryLevel
from ragaccel.cache import Stored
from ragaccel.resources import Lazy, MemoryGuard, anonymous_bytes

MB = 1 << 20
before, reserved = anonymous_bytes(), psutil.Process().memory_info().data
resource.setrlimit(resource.RLIMIT_DATA, (reserved + 250 * MB, -1))
level, model = MemoryLevel(4096 * MB), Lazy(lambda: b"x" * 20 * MB)
guard = MemoryGuard(before + 100 * MB, interval=0.005)
guard.watch(level)
guard.watch(model)
with model:
    pass
if sys.argv[1] == "guarded":
    guard.__enter__()
peak = put = 0
try:
    while put < 300 * MB:
        blob = b"x" * 200_000
        level.put_many([Stored(put.to_bytes(20, "big"), blob, time.time() + 60)])
        put += len(blob)
        time.sleep(0.001)
        if not put % (10 * len(blob)):
            peak = max(peak, anonymous_bytes() - before)
except MemoryError:
    level.clear()
print(json.dumps({"peak": peak / MB, "put": put / MB, "left": len(level)}))
"""


def test_a_guarded_process_stays_where_an_unguarded_one_dies():
    """Both fill a cache without end, under a limit of the kernel's."""
    guarded, bare = (json.loads(script(FILLING, how)) for how in ("guarded", "bare"))
    assert guarded["put"] >= 300
    assert guarded["peak"] < 150
    assert guarded["left"] > 100
    assert bare["put"] < 300
    assert bare["peak"] > 150
