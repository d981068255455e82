"""Rules, when they fire and clear, and where alerts go."""

from __future__ import annotations

import http.server
import json
import logging
import os
import socket
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragaccel.errors import ConfigurationError
from ragaccel.observe import Alert, Change, Threshold, Webhook, log_alerts
from ragaccel.observe.alerts import METRICS, Alarm

SLOW = Threshold("latency_p95", above=0.8, stage="query")
FIRING = Alert(SLOW, "firing", 0.91, 0.8, 60.0, 60.0)
levels = st.floats(0, 1e6)


def states(rule, values):
    """Return what an alarm tells of each window: f for firing, r for resolved, . for nothing."""
    alarm = Alarm(rule)
    told = [alarm.hear(value, float(at)) for at, value in enumerate(values)]
    return "".join("." if one is None else one.state[0] for one in told)


def test_a_threshold_fires_and_clears_after_windows_in_a_row():
    """One spike, or one good window, changes nothing."""
    assert states(SLOW, [0.1, 0.9, 0.1, 0.9, 0.9, 0.9, 0.1, 0.9, 0.1, 0.1]) == "....f....r"
    assert states(Threshold("cpu", above=0.8, for_=1, clear_after=3), [0.9, 0, 0, 0]) == "f..r"


def test_it_clears_below_the_level_at_which_it_fires():
    """A value between both neither fires nor clears."""
    assert states(SLOW, [0.79, 0.79, 0.9, 0.9, 0.79, 0.79, 0.73, 0.71, 0.71]) == "...f....r"
    lower = Threshold("latency_p95", above=0.8, clear_at=0.2)
    assert states(lower, [0.9, 0.9, 0.5, 0.5, 0.2, 0.2]) == ".f...r"


def test_a_lower_bound_is_the_same_upside_down():
    """It fires under the level, and clears 10% over it; a share half-way to one at the latest."""
    slow = Threshold("throughput", below=10)
    assert states(slow, [9, 9, 10.5, 10.5, 11.1, 11.1]) == ".f...r"
    assert states(Threshold("hit_rate", below=0.96), [0.9, 0.9, 0.97, 0.97, 0.98, 0.98]) == ".f...r"


def test_an_alert_tells_since_when():
    """What has cleared tells when it fired, and what it was compared with."""
    alarm = Alarm(SLOW)
    told = [
        alarm.hear(value, at) for at, value in ((0.0, 1.0), (60.0, 0.91), (120, 0.1), (180, 0.1))
    ]
    firing, resolved = told[1], told[3]
    assert firing == FIRING
    assert (resolved.since, resolved.at, resolved.value) == (60.0, 180, 0.1)
    assert firing.text == "latency_p95 of query is 0.91 s, above 0.8 s"
    assert resolved.text == "latency_p95 of query is 0.1 s, below 0.72 s"
    assert firing.to_dict()["rule"]["metric"] == "latency_p95"
    json.dumps(firing.to_dict())


@pytest.mark.parametrize(
    ("rule", "value", "text"),
    [
        (Threshold("hit_rate", below=0.5), 0.25, "hit_rate is 25.0%, below 50.0%"),
        (Threshold("rss_bytes", above=1e9), 2e9, "rss_bytes is 2,000.0 MB, above 1,000.0 MB"),
        (Threshold("throughput", below=3), 2, "throughput of query is 2/s, below 3/s"),
    ],
)
def test_an_alert_is_told_in_the_units_of_its_metric(rule, value, text):
    """Shares in percent, sizes in megabytes."""
    alarm = Alarm(rule)
    assert [alarm.hear(value, 0.0), alarm.hear(value, 1.0)][1].text == text


@given(st.lists(levels, max_size=60), levels, st.integers(1, 4), st.integers(1, 4))
def test_alerts_take_turns(values, level, for_, clear_after):
    """Whatever happens, an alarm fires first, and between two alerts there are enough windows."""
    told = states(Threshold("throughput", above=level, for_=for_, clear_after=clear_after), values)
    changes = [(at, state) for at, state in enumerate(told) if state != "."]
    last = -1
    for number, (at, state) in enumerate(changes):
        assert state == "fr"[number % 2]
        assert at - last >= (clear_after if number % 2 else for_)
        last = at


@given(st.sampled_from(sorted(METRICS)), st.floats(0.01, 1), st.data())
def test_what_is_usual_is_no_change(metric, by, data):
    """Values that stay near what they were never fire, however steady they were before."""
    usual = data.draw(st.floats(0, 1) if METRICS[metric].unit == "share" else st.floats(1e-6, 1e9))
    room = by if METRICS[metric].unit == "share" else by * usual
    values = data.draw(st.lists(st.floats(usual - 0.3 * room, usual + 0.3 * room), max_size=60))
    assert "f" not in states(Change(metric, by=by, for_=1), values)


def test_a_change_is_against_the_median_of_what_was():
    """Past spikes do not hide the next one, and a metric that gets better is no alarm."""
    noisy = [1.0, 1.1, 0.9, 1.05, 50.0, 0.95] * 4
    rule = Change("latency_p95", by=0.5, for_=2)
    assert states(rule, [*noisy, 2.0, 2.0, 1.0, 1.0]) == "." * 24 + ".f.r"
    assert states(rule, [*noisy, 0.01, 0.01, 0.01]) == "." * 27
    assert states(rule, [*noisy, 1.4, 1.4, 1.4]) == "." * 27


def test_a_change_clears_when_half_of_it_is_gone():
    """So that what stays near the level does not flap."""
    rule = Change("latency_p95", by=0.5)
    assert states(rule, [1.0] * 12 + [2.0, 2.0, 1.4, 1.4, 1.2, 1.2]) == "." * 13 + "f...r"


def test_a_change_of_what_varies_anyway_must_be_unusual():
    """More than the smallest change that matters, but no more than usual, is none."""
    varying = [1.0, 2.0, 3.0, 2.0, 1.0, 3.0] * 3
    rule = Change("latency_p95", by=0.1, for_=1)
    assert "f" not in states(rule, [*varying, 4.0])
    assert "f" in states(rule, [*varying, 9.0])


def test_a_hit_rate_gets_worse_when_it_falls():
    """By points: from 80% to 60% is a change of 0.2."""
    rule = Change("hit_rate", by=0.15)
    assert states(rule, [0.8] * 12 + [0.6, 0.6]) == "." * 13 + "f"
    assert states(rule, [0.8] * 12 + [0.7, 0.7]) == "." * 14
    assert states(rule, [0.6] * 12 + [0.9, 0.9]) == "." * 14


def test_too_little_history_says_nothing():
    """The first windows may be anything."""
    rule = Change("latency_p95", by=0.5, least=5, for_=1)
    assert states(rule, [1, 1, 1, 1, 900]) == "....."
    assert states(rule, [1, 1, 1, 1, 1, 900]) == ".....f"


def test_a_level_that_stays_becomes_usual():
    """The alarm ends by itself when what it looks back at is as it is now."""
    rule = Change("rss_bytes", by=0.5, least=5, past=10)
    told = states(rule, [100.0] * 50 + [200.0] * 20)
    assert told[51] == "f"
    assert told.count("r") == 1


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: Threshold("latency", above=1), "latency_p95"),
        (lambda: Threshold("cpu"), "above= or below="),
        (lambda: Threshold("cpu", above=1, below=0), "above= or below="),
        (lambda: Threshold("cpu", above=float("nan")), "above"),
        (lambda: Threshold("cpu", above=-1), "above"),
        (lambda: Threshold("cpu", above=0.5, clear_at=0.6), "clear_at"),
        (lambda: Threshold("hit_rate", below=0.5, clear_at=0.4), "clear_at"),
        (lambda: Threshold("cpu", above=0.5, stage="query"), "stage"),
        (lambda: Threshold("cpu", above=0.5, for_=0), "for_"),
        (lambda: Change("cpu", by=0), "by"),
        (lambda: Change("cpu", by=0.1, deviations=-1), "deviations"),
        (lambda: Change("cpu", by=0.1, least=9, past=8), "least"),
        (lambda: Change("cpu", by=0.1, clear_after=0), "clear_after"),
        (lambda: Webhook("file:///etc/passwd"), "http"),
        (lambda: Webhook("http://"), "http"),
        (lambda: Webhook("http://[half"), "http"),
        (lambda: Webhook("http://localhost:1", timeout=0), "timeout"),
    ],
)
def test_what_makes_no_sense_is_refused(make, names):
    """The message names what was wrong."""
    with pytest.raises(ConfigurationError, match=names):
        make()


def test_rules_are_values():
    """Equal ones are equal, and they print as the call that makes them."""
    assert Threshold("latency_p95", above=0.8, stage="query") == SLOW
    assert eval(repr(SLOW)) == SLOW
    with pytest.raises(AttributeError):
        SLOW.above = 1


def test_alerts_are_logged(caplog):
    """What fires as a warning, what has cleared as information."""
    with caplog.at_level(logging.INFO, "ragaccel.observe"):
        log_alerts()(FIRING)
        log_alerts()(Alert(SLOW, "resolved", 0.1, 0.72, 60.0, 180.0))
    assert [(one.levelname, one.getMessage()) for one in caplog.records] == [
        ("WARNING", "firing: latency_p95 of query is 0.91 s, above 0.8 s"),
        ("INFO", "resolved: latency_p95 of query is 0.1 s, below 0.72 s"),
    ]


class Endpoint(http.server.ThreadingHTTPServer):
    """Keeps what is posted; answers with a status when it may."""

    def __init__(self, status=200):
        super().__init__(("127.0.0.1", 0), Handler)
        self.status, self.posted, self.may_answer = status, [], threading.Event()
        self.may_answer.set()
        self.url = f"http://127.0.0.1:{self.server_port}/hooks/secret-token"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.posted.append((self.path, self.headers["Content-Type"], json.loads(body)))
        self.server.may_answer.wait(10)
        self.send_response(self.server.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def endpoint():
    server = Endpoint()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.may_answer.set()
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_webhook_posts_each_alert(endpoint):
    """As JSON, in order, and its thread ends when none waits."""
    post = Webhook(endpoint.url)
    for value in (1.0, 2.0):
        post(Alert(SLOW, "firing", value, 0.8, 60.0, 60.0))
    assert post.wait(10)
    assert [one[:2] for one in endpoint.posted] == [("/hooks/secret-token", "application/json")] * 2
    assert [one[2]["value"] for one in endpoint.posted] == [1.0, 2.0]
    assert endpoint.posted[0][2]["state"] == "firing"
    assert endpoint.posted[0][2]["text"] == "latency_p95 of query is 1 s, above 0.8 s"
    assert "ragaccel-webhook" not in [one.name for one in threading.enumerate()]
    post(FIRING)
    assert post.wait(10)
    assert len(endpoint.posted) == 3


def test_an_endpoint_that_hangs_keeps_nobody_waiting(endpoint, caplog):
    """Alerts wait their turn, and beyond a number they are dropped."""
    endpoint.may_answer.clear()
    post = Webhook(endpoint.url, timeout=20)
    for _ in range(150):
        post(FIRING)
    assert not post.wait(0.01)
    assert 48 <= caplog.text.count("was dropped") <= 50
    endpoint.may_answer.set()
    assert post.wait(30)
    assert len(endpoint.posted) == 150 - caplog.text.count("was dropped")


def test_a_dead_endpoint_is_logged_without_its_secret(endpoint, caplog):
    """A closed port, and one that takes nothing."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        dead = Webhook(f"http://127.0.0.1:{taken.getsockname()[1]}/hooks/secret-token", timeout=2)
        dead(FIRING)
        assert dead.wait(10)
    endpoint.status = 500
    post = Webhook(endpoint.url)
    post(FIRING)
    assert post.wait(10)
    assert "URLError" in caplog.text
    assert "status 500" in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_what_waits_at_a_fork_is_sent_once(endpoint):
    """By the parent; the child sends what it is told itself."""
    endpoint.may_answer.clear()
    post = Webhook(endpoint.url)
    for _ in range(3):
        post(FIRING)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            post(Alert(SLOW, "resolved", 0.1, 0.72, 60.0, 180.0))
            code = not post.wait(30)
        finally:
            os._exit(code)
    endpoint.may_answer.set()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert post.wait(10)
    assert sorted(one[2]["state"] for one in endpoint.posted) == ["firing"] * 3 + ["resolved"]
