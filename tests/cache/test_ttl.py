"""TTL policies: what they return, for whatever they are given."""

from __future__ import annotations

import copy
import math
import pickle
from dataclasses import FrozenInstanceError
from datetime import datetime, timedelta
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.documents import Document
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

from ragaccel.cache import ttl as ttl_module
from ragaccel.cache.ttl import TIME_SENSITIVE, adaptive_ttl, jittered, seconds
from ragaccel.errors import ConfigurationError

BASE, CONFIDENT, WEAK, SENSITIVE, EMPTY = 3600.0, 14400.0, 900.0, 60.0, 30.0
POSITIVE = st.floats(min_value=1e-3, max_value=1e9)
SPREADS = st.floats(min_value=0, max_value=0.99)
THINGS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.integers(), inner)
    ),
    max_leaves=8,
)


def nodes(*scores):
    return [NodeWithScore(node=TextNode(text="text"), score=score) for score in scores]


@given(POSITIVE, SPREADS)
def test_jitter_stays_within_its_spread(ttl, spread):
    """Every lifetime lies within the spread around the mean."""
    policy = jittered(ttl, spread)
    for _ in range(5):
        drawn = policy("query", ["result"])
        assert ttl * (1 - spread) * (1 - 1e-9) <= drawn <= ttl * (1 + spread) * (1 + 1e-9)


def test_jitter_spreads_evenly():
    """Entries made together end all over the range, with the ttl as their mean."""
    policy = jittered(timedelta(seconds=100), spread=0.5)
    drawn = [policy("query", "result") for _ in range(2000)]
    counts, _ = np.histogram(drawn, bins=10, range=(50, 150))
    assert counts.sum() == 2000
    assert counts.min() > 100  # 200 expected, with a standard deviation of 13


def test_jitter_leaves_the_applications_random_numbers_alone():
    """A program that seeds `random` gets the same numbers with the policy and without."""
    import random

    state = random.getstate()
    jittered(10)("query", "result")
    assert random.getstate() == state


@pytest.mark.parametrize(
    ("result", "lifetime"),
    [
        (nodes(0.95), CONFIDENT),
        (nodes(0.95, 0.94), CONFIDENT),
        (nodes(0.75, 0.7), CONFIDENT),
        (nodes(0.6, 0.45, 0.4), CONFIDENT),
        (nodes(0.6, 0.58, 0.2), BASE),
        (nodes(0.6), BASE),
        (nodes(0.4), BASE),
        (nodes(0.39, 0.1), WEAK),
        (nodes(-0.2, -0.3), WEAK),
        (nodes(None, 0.9, None), CONFIDENT),
        (nodes(None, None), BASE),
        (nodes(0.2, 0.9, 0.5), CONFIDENT),
        ([("item", 0.9), ("item", 0.1)], CONFIDENT),
        ([["item", np.float32(0.2)]], WEAK),
        ([("item", 0.1), ("item", 0.9)], BASE),
        ([("item", 12.5), ("item", 8.0)], BASE),
        ([("item", math.nan)], BASE),
        ([("item", math.inf)], BASE),
        ([Document("text", metadata={"relevance_score": 0.9, "score": 0.1})], CONFIDENT),
        ([Document("text", metadata={"score": 0.1})], WEAK),
        ([Document("text", metadata={"score": "high"}), Document("text")], BASE),
        ([{"text": "text", "score": 0.9}], CONFIDENT),
        ([SimpleNamespace(score=True)], BASE),
        ("an answer", BASE),
        (0, BASE),
        (False, BASE),
        (np.array([0.1, 0.9]), BASE),
        (None, EMPTY),
        ([], EMPTY),
        ("", EMPTY),
        ({}, EMPTY),
        ((), EMPTY),
    ],
)
def test_lifetime_by_result(result, lifetime):
    """Confident results live longer, weak ones shorter, empty ones shortest, others the base."""
    assert adaptive_ttl()("What is a tree?", result) == lifetime


TELLING = (
    """
What is on the menu today?|What's open now?|NOW|the latest iPhone|current president of France
Who is the current CEO?|stock price of Apple|weather in Paris|Weather London tomorrow|this week
what's the score of the Lakers game|who was elected yesterday|real-time traffic|2 hours ago
今天天气|现在几点|最新消息|目前情况如何|当前版本|实时数据|苹果股价|北京天气|今天stock price怎么样
现在now吗|當前價格|本周安排|明天开会吗|上周新闻|他说明天来|美元汇率|最近发生了什么
""".strip()
    .replace("\n", "|")
    .split("|")
)

SILENT = (
    """
alternating current|direct current motors|the current in a wire|electric current density
snow in the Alps|known knowns|what is now Turkey|now known as Istanbul|scoreboard of 1990
the score in the scoreboard of 1990|credit score|priceless|weathering|price of bread in 1920
weather of 1816|under the weather|presently|at the latest|the 1990 census|line 20261|todays2
变量出现在哪里|项目前景如何|学生应当前往哪里|谁发明天文望远镜|日本周边国家|最近邻搜索|诚实时代|现金价值
什么是机器学习|光明日报的历史||7
""".strip()
    .replace("\n", "|")
    .split("|")
)


@pytest.mark.parametrize("query", TELLING)
def test_time_sensitive(query):
    """A query about the present is kept for a minute, however good its result."""
    assert adaptive_ttl()(query, nodes(0.9, 0.2)) == SENSITIVE


@pytest.mark.parametrize("query", SILENT)
def test_not_time_sensitive(query):
    """Words that only look like the present do not shorten anything."""
    assert adaptive_ttl()(query, nodes(0.9, 0.2)) == CONFIDENT


def test_only_the_present_year_is_time_sensitive():
    """The present year is still being written; no other is."""
    year = datetime.now().astimezone().year
    policy = adaptive_ttl()
    assert policy(f"tax rates {year}", "r") == policy(f"{year}年的税率", "r") == SENSITIVE
    assert policy(f"{year}-01-31", "r") == SENSITIVE
    assert policy(f"tax rates {year - 2}", "r") == policy(f"in 1{year}", "r") == BASE


@pytest.mark.parametrize(
    ("query", "lifetime"),
    [
        (QueryBundle("news of today"), SENSITIVE),
        (("retrieve", "today"), BASE),
        ((3, ["today", "x"]), SENSITIVE),
        ({"k": 3, "input": {"question": "weather today"}}, SENSITIVE),
        ([QueryBundle("today")], SENSITIVE),
        ([], BASE),
        (None, BASE),
        (b"today", BASE),
        (object(), BASE),
    ],
)
def test_queries_of_every_kind(query, lifetime):
    """The first string that is found in a query is the one that counts."""
    assert adaptive_ttl()(query, "result") == lifetime


def test_the_shortest_rule_wins():
    """A weak, empty or short-lived result is not kept longer because the query is of today."""
    assert adaptive_ttl(40)("today", "result") == 40
    assert adaptive_ttl(20)("query", []) == 20
    assert adaptive_ttl()("today", []) == EMPTY
    assert adaptive_ttl(100)("today", nodes(0.1)) == 25
    assert adaptive_ttl(time_sensitive=5)("today", []) == 5


def test_zero_keeps_nothing():
    """Weak, empty and time-sensitive results can be left out of the cache."""
    policy = adaptive_ttl(weak=0, empty=0, time_sensitive=timedelta(0), spread=0.5)
    assert policy("q", nodes(0.1)) == policy("q", []) == policy("today", "result") == 0


def test_own_patterns():
    """Patterns are regular expressions, searched without regard to case; none is possible."""
    own = adaptive_ttl(patterns=[*TIME_SENSITIVE, "bitcoin|погода"])
    assert own("Bitcoin", "r") == own("ПОГОДА", "r") == own("today", "r") == SENSITIVE
    assert adaptive_ttl(patterns=())(f"today {datetime.now().astimezone().year}", "r") == BASE


class _Broken:
    """Raises whatever is asked of it."""

    def __getattribute__(self, name):
        if name in ("__class__", "__dict__"):
            return object.__getattribute__(self, name)
        raise RuntimeError(name)

    def __len__(self):
        raise RuntimeError("no length")


def test_broken_objects_get_the_base():
    """Objects that raise on every touch do not raise out of the policy."""
    loop = []
    loop.append(loop)
    for thing in (_Broken(), [_Broken()], loop, [(1, _Broken())]):
        assert adaptive_ttl()(thing, thing) == BASE
        assert adaptive_ttl()("today", thing) == SENSITIVE


@settings(max_examples=50)
@given(THINGS, THINGS, SPREADS)
def test_a_policy_is_total(query, result, spread):
    """Whatever comes, the lifetime is one of the four, give or take the spread."""
    lifetime = adaptive_ttl(spread=spread)(query, result)
    assert any(
        mean * (1 - spread) * 0.999 <= lifetime <= mean * (1 + spread) * 1.001
        for mean in (BASE, CONFIDENT, WEAK, SENSITIVE, EMPTY)
    )


@given(st.lists(st.floats(min_value=-1, max_value=1), min_size=1), st.randoms())
def test_better_scores_never_shorten_a_life(scores, random):
    """Raising the best score of a result makes it live as long or longer."""
    policy = adaptive_ttl()
    scores.sort(reverse=True)
    raised = [random.uniform(scores[0], 1), *scores[1:]]
    assert policy("q", nodes(*raised)) >= policy("q", nodes(*scores))


@given(
    st.builds(jittered, POSITIVE, SPREADS)
    | st.builds(
        adaptive_ttl,
        POSITIVE | st.timedeltas(min_value=timedelta(seconds=1)),
        confident=st.floats(min_value=1, max_value=100),
        weak=st.floats(min_value=0, max_value=1),
        empty=POSITIVE,
        patterns=st.just(TIME_SENSITIVE) | st.lists(st.sampled_from(["a", "今", "{year}"])),
        spread=SPREADS,
    )
)
def test_a_policy_prints_as_the_call_that_makes_it(policy):
    """The printed form, a copy and a pickle are equal to the policy and hash alike."""
    again = [
        eval(repr(policy), vars(ttl_module)),
        copy.deepcopy(policy),
        pickle.loads(pickle.dumps(policy)),
    ]
    assert all(one == policy and hash(one) == hash(policy) for one in again)


def test_a_policy_is_frozen():
    """A policy cannot be changed, and leaves out its defaults when it is printed."""
    with pytest.raises(FrozenInstanceError):
        adaptive_ttl().base = 1.0
    assert repr(adaptive_ttl(timedelta(hours=1))) == "adaptive_ttl()"
    assert repr(jittered(60)) == "jittered(ttl=60.0)"


@pytest.mark.parametrize(
    "make",
    [
        lambda: jittered(0),
        lambda: jittered(-1),
        lambda: jittered("60"),
        lambda: jittered(None),
        lambda: jittered(math.inf),
        lambda: jittered(math.nan),
        lambda: jittered(60, 1),
        lambda: jittered(60, -0.1),
        lambda: jittered(60, "much"),
        lambda: adaptive_ttl(0),
        lambda: adaptive_ttl(None),
        lambda: adaptive_ttl(confident=0.5),
        lambda: adaptive_ttl(weak=1.5),
        lambda: adaptive_ttl(weak=math.nan),
        lambda: adaptive_ttl(time_sensitive=-1),
        lambda: adaptive_ttl(empty="soon"),
        lambda: adaptive_ttl(low_score=0.8),
        lambda: adaptive_ttl(high_score=1.5),
        lambda: adaptive_ttl(margin=-1),
        lambda: adaptive_ttl(patterns="today"),
        lambda: adaptive_ttl(patterns=["("]),
        lambda: adaptive_ttl(patterns=[1]),
        lambda: adaptive_ttl(patterns=7),
        lambda: adaptive_ttl(spread=2),
    ],
)
def test_arguments_out_of_range(make):
    """An argument that cannot be meant is refused where the policy is made."""
    with pytest.raises(ConfigurationError):
        make()


@given(POSITIVE)
def test_seconds(ttl):
    """Seconds and timedeltas mean the same, and None lasts for ever."""
    assert seconds(ttl) == ttl
    assert seconds(timedelta(seconds=ttl)) == pytest.approx(ttl, abs=1e-6)
    assert seconds(None) == math.inf
