"""The guard on live requests: who sees the change, when it is taken back, and what comes after."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from ragaccel import telemetry
from ragaccel.errors import ConfigurationError
from ragaccel.knobs import Knob
from ragaccel.telemetry.stage import recording
from ragaccel.tuning.canary import Terms
from ragaccel.tuning.goals import Goal
from ragaccel.tuning.guard import Guard

HALF = Terms(shares=(0.5,))
UNJUDGED = Terms(shares=(0.5,), warm_up=10_000)


class Service:
    """Something that takes as long as its setting says."""

    def __init__(self, delay=0.0):
        self.delay = delay
        self.knob = Knob("delay", [0.0, 0.01, 0.5], lambda: self.delay, self.set)
        self.turned = []

    def set(self, value):
        self.turned.append(value)
        self.delay = value

    def ask(self):
        with telemetry.stage("query"):
            time.sleep(0.0005 + self.delay)


class Local(Service):
    """The same, with a setting of each context."""

    def __init__(self):
        super().__init__()
        self.variable = contextvars.ContextVar("delay", default=0.0)
        self.knob = Knob("delay", [0.0, 0.01], self.variable.get, self.variable.set)

    def ask(self):
        with telemetry.stage("query"):
            time.sleep(0.0005 + self.variable.get())
            return self.variable.get()


@pytest.fixture
def service():
    return Service()


@pytest.fixture
def attach(service):
    with contextlib.ExitStack() as stack:

        def attached(knob=service.knob, value=0.01, **options):
            options.setdefault("terms", HALF)
            goals = options.pop("goals", ())
            return stack.enter_context(Guard.attach(service, [(knob, value)], goals, **options))

        yield attached


def ask_until_settled(guard, ask, most=3000):
    for _ in range(most):
        if guard.trial.state != "trying":
            return guard.trial
        ask()
    return guard.trial


def test_a_bad_change_is_taken_back(attach, service):
    """Within a few requests; then the guard is out of the way."""
    guard = attach()
    trial = ask_until_settled(guard, service.ask)
    assert trial.state == "rolled back"
    assert trial.canaries <= 40
    assert "slower" in trial.reason
    assert service.delay == 0.0
    assert not recording()


def test_a_good_change_is_applied(attach, service):
    """It stays when the guard is gone."""
    service.delay = 0.01
    guard = attach(value=0.0)
    trial = ask_until_settled(guard, service.ask)
    assert (trial.state, trial.share, trial.was) == ("applied", 1.0, {"delay": 0.01})
    guard.detach()
    assert service.delay == 0.0
    assert not recording()


def test_one_request_sees_it_and_the_next_one_does_not(attach, service):
    """One after another, every request is judged, and has a setting of its own."""
    guard = attach(terms=UNJUDGED)
    for _ in range(110):
        service.ask()
    seen = []
    for _ in range(5):
        with guard.request():
            seen.append(service.delay)
        assert service.delay == 0.0
    assert set(seen) <= {0.0, 0.01}
    assert guard.trial.controls + guard.trial.canaries == 115


def test_nobody_sees_it_before_the_usual_is_known(attach, service):
    """The first hundred requests are controls."""
    guard = attach()
    for _ in range(100):
        service.ask()
    assert (guard.trial.controls, guard.trial.canaries) == (100, 0)
    assert service.turned == [0.01, 0.0]


def test_requests_beside_a_canary_are_not_judged(attach, service):
    """A setting of all is turned for one judged request at a time."""
    guard, asked = attach(), 0
    with ThreadPoolExecutor(8) as pool:
        while guard.trial.state == "trying":
            asked += len(list(pool.map(lambda _: service.ask(), range(40))))
    assert guard.trial.canaries + guard.trial.controls < asked
    assert guard.trial.state == "rolled back"
    assert service.delay == 0.0


@pytest.mark.parametrize("side_by_side", ["threads", "tasks"])
def test_a_setting_of_a_context_is_seen_by_its_request_only(side_by_side):
    """Its neighbours have the usual one, in threads and in tasks; nothing stays behind."""
    local = Local()
    seen = []

    async def ask():
        with guard.request():
            first = local.variable.get()
            await asyncio.sleep(0.001)
            seen.append((first, local.variable.get(), await asyncio.to_thread(local.variable.get)))
        assert local.variable.get() == 0.0

    async def several():
        await asyncio.gather(*(ask() for _ in range(40)))

    with Guard.attach(local, [(local.knob, 0.01)], terms=UNJUDGED) as guard:
        for _ in range(100):
            with guard.request():
                pass
        if side_by_side == "tasks":
            asyncio.run(several())
        else:
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(lambda _: asyncio.run(ask()), range(40)))
        assert guard.trial.controls + guard.trial.canaries == 140
    assert {one for three in seen for one in three} == {0.0, 0.01}
    assert all(len(set(three)) == 1 for three in seen)
    assert local.variable.get() == 0.0


def test_a_setting_of_a_context_is_applied_to_each_request():
    """It cannot be set for all at once."""
    local = Local()
    local.variable.set(0.01)
    guard = Guard.attach(local, [(local.knob, 0.0)], terms=HALF)
    assert ask_until_settled(guard, local.ask).state == "applied"
    assert local.ask() == 0.0
    assert local.variable.get() == 0.01
    telemetry.unlisten(guard)


def test_whoever_sees_it_sees_it_each_time(attach):
    """The same share of sessions, whatever they ask."""
    local = Local()
    who = contextvars.ContextVar("who", default=None)
    seen = {}
    with Guard.attach(
        local, [(local.knob, 0.01)], session=who.get, terms=Terms((0.25,), warm_up=1000)
    ) as guard:
        for _ in range(100):
            local.ask()
        for at in range(600):
            who.set(f"session {at % 100}")
            with guard.request():
                seen.setdefault(at % 100, set()).add(local.variable.get())
        assert all(len(one) == 1 for one in seen.values())
        assert 10 <= sum(one == {0.01} for one in seen.values()) <= 45


def test_what_is_inside_a_request_is_part_of_it(attach, service):
    """A search inside a retrieval inside a query is one request."""
    guard = attach()
    with telemetry.stage("query"), telemetry.stage("retrieve"), telemetry.stage("search"):
        pass
    with telemetry.stage("embed"):
        pass
    assert guard.trial.controls == 1


def test_three_failures_take_it_back(attach, service):
    """Though it is not slow."""

    def ask():
        with contextlib.suppress(LookupError), telemetry.stage("query"):
            if service.delay:
                raise LookupError

    trial = ask_until_settled(attach(), ask)
    assert "3 of its first" in trial.reason
    assert trial.canaries < 20


def test_one_that_hangs_takes_it_back(attach, service):
    """The next request finds that nothing was heard of it, and the setting is back at once."""
    guard = attach(timeout=0.05)
    for _ in range(100):
        service.ask()
    released = threading.Event()

    def hang():
        with guard.request():
            hanging.set()
            released.wait()

    while True:
        hanging = threading.Event()
        released.clear()
        thread = threading.Thread(target=hang)
        thread.start()
        hanging.wait()
        if service.delay:
            break
        released.set()
        thread.join()
    time.sleep(0.06)
    service.ask()
    assert guard.trial.reason == "nothing was heard of it for 0.05 s"
    assert service.delay == 0.0
    released.set()
    thread.join()
    assert service.delay == 0.0


def test_a_goal_that_it_breaks_takes_it_back(attach, service):
    """Of goals that live traffic cannot tell, it is known that they are not watched."""
    recall = Goal.at_least("recall@10", 0.9)
    goals = [Goal.at_most("latency_p95", 0.01), recall, Goal.at_most("error_rate", 0.01)]
    guard = attach(goals=goals, terms=Terms((0.5,), slack=1000.0))
    assert guard.unwatched == [recall]
    assert ask_until_settled(guard, service.ask).state == "rolled back"


def test_callbacks_hear_of_it(attach, service):
    """Sync or async, in order; one that raises or hangs touches nothing."""
    heard, never = [], threading.Event()

    async def on_rollback(trial):
        await asyncio.sleep(0)
        heard.append(("back", trial.state, trial.settings))

    def on_trial(trial):
        heard.append(("trial", trial.state, trial.settings))
        raise LookupError("a secret")

    guard = attach(on_trial=on_trial, on_rollback=on_rollback, on_apply=lambda _: never.set())
    ask_until_settled(guard, service.ask)
    assert guard.callbacks.wait(10)
    assert heard == [
        ("trial", "trying", {"delay": 0.01}),
        ("back", "rolled back", {"delay": 0.01}),
    ]
    assert not never.is_set()


def test_improvements_and_application_are_told(attach, service):
    """At each share that it comes through; at the last one it is applied."""
    service.delay = 0.01
    heard = []
    guard = attach(
        value=0.0, terms=Terms((0.4, 0.5)), on_improvement=lambda trial: heard.append(trial.share),
        on_apply=lambda trial: heard.append(trial.state),
    )  # fmt: skip
    ask_until_settled(guard, service.ask)
    assert guard.callbacks.wait(10)
    assert heard == [0.5, "applied"]


def test_a_knob_that_cannot_be_turned_breaks_no_request(attach, service, caplog):
    """It is taken back, and nobody hears of it but the log and the callbacks."""

    def turn(value):
        if value and len(service.turned) > 3:
            raise LookupError("a secret")
        service.set(value)

    guard = attach(knob=Knob("delay", [0.0, 0.01], lambda: service.delay, turn))
    assert ask_until_settled(guard, service.ask).reason == "it could not be set"
    assert service.delay == 0.0
    assert "secret" not in caplog.text


def test_a_knob_may_make_requests_when_it_is_turned(attach, service):
    """As one that measures recall; they are none of the traffic."""

    def turn(value):
        service.set(value)
        service.ask()

    guard = attach(knob=Knob("delay", [0.0, 0.01], lambda: service.delay, turn))
    assert ask_until_settled(guard, service.ask).state == "rolled back"


def test_a_detached_trial_may_be_tried_again(attach, service, tmp_path):
    """It is taken back, and the journal can be opened."""
    for _ in range(2):
        guard = attach(journal=tmp_path / "journal")
        assert guard.trial.state == "trying"
        guard.detach()
        assert (guard.trial.state, service.delay) == ("stopped", 0.0)


def test_what_was_rolled_back_is_not_tried_again(attach, service, tmp_path):
    """Until the journal is deleted."""
    ask_until_settled(attach(journal=tmp_path / "journal"), service.ask)
    again = attach(journal=tmp_path / "journal")
    assert again.trial.state == "rolled back"
    assert "slower" in again.trial.reason
    (tmp_path / "journal").unlink()
    assert attach(journal=tmp_path / "journal").trial.state == "trying"


def test_what_was_applied_is_applied_again(attach, service, tmp_path):
    """A process begins with it, and a later trial begins from it."""
    service.delay = 0.01
    ask_until_settled(attach(value=0.0, journal=tmp_path / "journal"), service.ask)
    service.delay = 0.01  # as of a process that begins
    again = attach(value=0.0, journal=tmp_path / "journal")
    assert (again.trial.state, service.delay) == ("applied", 0.0)
    service.delay = 0.01
    later = attach(value=0.5, journal=tmp_path / "journal")
    assert (later.trial.state, later.trial.was, service.delay) == ("trying", {"delay": 0.0}, 0.0)


_KILLED = """
import json, os, signal, sys
from pathlib import Path
from ragaccel.knobs import Knob
from ragaccel.tuning.canary import Terms
from ragaccel.tuning.guard import Guard

setting, journal = Path(sys.argv[1]), sys.argv[2]  # a setting that outlives the process
knob = Knob("probes", [1, 2], lambda: int(setting.read_text()),
            lambda value: setting.write_text(str(value)))
guard = Guard.attach(None, [(knob, 2)], terms=Terms((0.5,)), journal=journal)
print(guard.trial.state, guard.trial.reason, setting.read_text(), flush=True)
while guard.trial.state == "trying":
    with guard.request():
        if setting.read_text() == "2":
            os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_begins_again_with_what_was(tmp_path):
    """SIGKILL comes while a canary is served; what killed it is not tried again."""
    (tmp_path / "setting").write_text("1")
    command = [sys.executable, "-c", _KILLED, tmp_path / "setting", tmp_path / "journal"]
    first = subprocess.run(command, check=False, capture_output=True, text=True)
    assert first.returncode == -signal.SIGKILL
    assert (tmp_path / "setting").read_text() == "2"
    second = subprocess.run(command, capture_output=True, text=True, check=True)
    assert second.stdout == "rolled back the process ended while it was tried 1\n"
    assert (tmp_path / "setting").read_text() == "1"


def test_a_fork_leaves_the_trial_to_its_parent(attach, service, tmp_path):
    """The child has the usual setting and hears of nothing; the parent goes on."""
    guard = attach(journal=tmp_path / "journal")
    child = os.fork()
    if child == 0:
        is_right = guard.trial.state == "stopped" and service.delay == 0.0 and not recording()
        os._exit(0 if is_right else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert guard.trial.state == "trying"
    assert ask_until_settled(guard, service.ask).state == "rolled back"


def test_changes_that_make_no_sense_are_refused(service, tmp_path):
    """Nothing was turned, and nothing is listened to."""
    twice = [(service.knob, 0.01)] * 2
    unwritable = Knob("delay", [0.0, object()], lambda: service.delay, service.set)
    with pytest.raises(ConfigurationError, match="changes"):
        Guard.attach(service, [])
    with pytest.raises(ConfigurationError, match="once"):
        Guard.attach(service, twice)
    with pytest.raises(ConfigurationError, match="already"):
        Guard.attach(service, [(service.knob, 0.0)])
    with pytest.raises(ConfigurationError, match="timeout"):
        Guard.attach(service, [(service.knob, 0.01)], timeout=0)
    with pytest.raises(ConfigurationError, match="JSON"):
        Guard.attach(service, [(unwritable, unwritable.values[1])], journal=tmp_path / "journal")
    assert service.turned == []
    assert not recording()
