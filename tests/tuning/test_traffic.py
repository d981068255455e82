"""Traffic as it is written down and read again."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragaccel.cache.warming import warm
from ragaccel.errors import ConfigurationError
from ragaccel.tuning.traffic import Asked, Traffic, query_key

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
REQUESTS = st.lists(
    st.builds(
        Asked,
        at=st.floats(0, 1e6),
        query=st.none() | TEXTS,
        key=st.binary(min_size=16, max_size=16),
        arguments=st.dictionaries(TEXTS, st.integers(-9, 9) | st.booleans() | TEXTS, max_size=3),
        ids=st.lists(TEXTS, max_size=4).map(tuple),
        seconds=st.floats(0, 100),
        error=st.none() | st.just("TimeoutError"),
    ),
    max_size=8,
)


@given(REQUESTS)
def test_what_is_written_is_read(tmp_path_factory, requests):
    """Whatever is asked and found."""
    path = tmp_path_factory.mktemp("traffic") / "traffic.jsonl"
    traffic = Traffic(requests)
    traffic.write(path)
    assert Traffic.read(path) == traffic
    assert Traffic.read(path).left_out == 0


@given(REQUESTS, st.floats(0.01, 0.99))
def test_a_split_is_by_time(requests, share):
    """Nothing earlier is later than what is later; nothing is lost; both count from their first."""
    traffic = Traffic(requests)
    earlier, later = traffic.split(share)
    assert len(earlier) + len(later) == len(traffic)
    assert abs(len(earlier) - share * len(traffic)) <= 0.5
    assert [one.key for one in (*earlier, *later)] == [one.key for one in traffic]
    assert all(part[0].at == 0 for part in (traffic, earlier, later) if part)


def test_a_line_that_a_crash_has_cut_is_left_out_and_counted(tmp_path):
    """So is one that something else has written; the others are read."""
    path = tmp_path / "traffic.jsonl"
    Traffic.of(["first", "second", "third"]).write(path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b'{"at": "never"}\n\n' + lines[1] + lines[2][:-9])
    traffic = Traffic.read(path)
    assert [one.query for one in traffic] == ["first", "second"]
    assert traffic.left_out == 2


@pytest.mark.parametrize("content", [None, b"no JSON\n", b'{"query": "of a query log"}\n'])
def test_a_file_that_holds_no_traffic_is_refused(tmp_path, content):
    """It says which file, and what to give instead."""
    path = tmp_path / "other.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"other\.txt.*TrafficRecorder"):
        Traffic.read(path)


def test_a_file_that_holds_nothing_yet_is_no_error(tmp_path):
    """A recording may just have begun."""
    (tmp_path / "traffic.jsonl").touch()
    assert len(Traffic.read(tmp_path / "traffic.jsonl")) == 0


def test_queries_become_traffic():
    """Equal queries have equal keys, which a secret changes."""
    one, two, again = Traffic.of(["a", "b", "a"])
    assert one.key == again.key == query_key("a") != two.key
    assert query_key("a", b"secret") != one.key
    assert (one.query, one.at, one.ids) == ("a", 0.0, ())


def test_what_cannot_be_traffic_is_refused():
    """One string instead of several, another type, a share that is none."""
    with pytest.raises(ConfigurationError, match="several"):
        Traffic.of("a query")
    with pytest.raises(ConfigurationError, match="int"):
        Traffic.of(["a", 3])
    with pytest.raises(ConfigurationError, match="share"):
        Traffic.of(["a"]).split(1)


def test_a_cache_is_warmed_from_it(tmp_path):
    """Warming reads the file as it is."""
    Traffic.of(["a", "b", "a"]).write(tmp_path / "traffic.jsonl")
    asked = []
    report = warm(tmp_path / "traffic.jsonl", asked.append, progress=False)
    assert (sorted(asked), report.failed) == (["a", "b"], 0)


def test_others_can_read_it(tmp_path):
    """A line is a JSON object with the names of the attributes."""
    Traffic.of(["a"]).write(tmp_path / "traffic.jsonl")
    line = json.loads((tmp_path / "traffic.jsonl").read_text())
    assert line["query"] == "a"
    assert list(line) == ["at", "query", "key", "arguments", "ids", "seconds", "error"]
