"""Goals files: what they may say, and how figures are held against them."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from ragaccel.errors import ConfigurationError
from ragaccel.observe.targets import Target, Verdict, check, read_targets, table

WHOLE = """
[query]
p50 = 0.05
p95 = "250ms"
throughput = 20
error_rate = 0.01

[stages.embed]
p99 = "1.5s"

[cache]
hit_rate = 0.4

[process]
memory = "2GiB"
"""


def written(tmp_path, text):
    path = tmp_path / "goals.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_every_sort_of_goal_is_read(tmp_path):
    """Times are seconds, sizes bytes; a rate of hits or requests is a lower bound."""
    assert read_targets(written(tmp_path, WHOLE)) == [
        Target("query.p50", 0.05),
        Target("query.p95", 0.25),
        Target("query.throughput", 20, at_least=True),
        Target("query.error_rate", 0.01),
        Target("stages.embed.p99", 1.5),
        Target("cache.hit_rate", 0.4, at_least=True),
        Target("process.memory", 2**31),
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[query]\np97 = 1", "p97"),
        ("[query]\np95 = '20 parsecs'", "query.p95"),
        ("[query]\np95 = '2GiB'", "query.p95"),
        ("[process]\nmemory = '2s'", "process.memory"),
        ("[query]\np95 = -1", "query.p95"),
        ("[speed]\np95 = 1", "speed"),
        ("[query", "cannot be read"),
        ("", "no goals"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused(tmp_path, text, said):
    """The message names what is wrong."""
    with pytest.raises(ConfigurationError, match=said):
        read_targets(written(tmp_path, text))


def test_a_file_that_is_not_there_is_refused(tmp_path):
    """As an error that can be caught."""
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_targets(tmp_path / "none.toml")


@given(bound=st.floats(0, 1e9), measured=st.floats(0, 1e9), at_least=st.booleans())
def test_a_bound_may_be_reached(bound, measured, at_least):
    """At most and at least both include the bound."""
    (verdict,) = check([Target("one", bound, at_least)], {"one": measured})
    assert verdict.is_met is (measured >= bound if at_least else measured <= bound)
    assert Verdict(verdict.target, bound).is_met


def test_what_was_not_measured_is_missed(tmp_path):
    """A goal nobody looked at is no goal kept; the table says why."""
    verdicts = check(read_targets(written(tmp_path, WHOLE)), {"query.p50": 0.01})
    assert [one.is_met for one in verdicts] == [True, *[False] * 6]
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(table(verdicts))
    assert "not measured" in console.export_text()
