"""An accelerated LlamaIndex language model is the plain one, plus the cache.

The matrix: each of the eight methods x miss and hit x everything that a listener, the framework or
a user can tell.
"""

from __future__ import annotations

import asyncio
import copy
import gc
import pickle
import threading
from collections.abc import AsyncGenerator, Generator
from concurrent.futures import ThreadPoolExecutor

import pytest
from llama_index.core import PromptTemplate
from llama_index.core.callbacks import CallbackManager
from llama_index.core.llms import ChatMessage, MockLLM
from llama_index.core.llms.custom import CustomLLM
from llama_index.core.rate_limiter import BaseRateLimiter

from ragaccel import MultiLevelCache, accelerate, unwrap
from ragaccel.errors import ConfigurationError, RagaccelWarning
from tests.llamaindex.models import Provider, Quiet
from tests.llamaindex.recorders import CallbackRecorder, recording

METHODS = (
    "chat", "complete", "stream_chat", "stream_complete",
    "achat", "acomplete", "astream_chat", "astream_complete",
)  # fmt: skip
QUESTION = "red tree"


def in_capitals(messages):
    """Write a prompt, as users do."""
    return str(messages).upper()


def asked_of(method, question=QUESTION):
    """Return the argument of a method that asks a question."""
    return [ChatMessage(question)] if method.endswith("chat") else question


def ask(llm, method, question=QUESTION, **kwargs):
    """Call a method and return its responses, whatever it is."""
    call, asked = getattr(llm, method), asked_of(method, question)
    if not method.startswith("a"):
        found = call(asked, **kwargs)
        if method.startswith("stream"):
            assert isinstance(found, Generator)
            return list(found)
        return [found]

    async def later():
        found = await call(asked, **kwargs)
        if "stream" not in method:
            return [found]
        assert isinstance(found, AsyncGenerator)
        return [one async for one in found]

    return asyncio.run(later())


def shown(responses, *, marks=False):
    """Return responses as dicts, without the mark of a hit."""
    dumps = [one.model_dump() for one in responses]
    place = dumps[-1]["additional_kwargs" if "message" in dumps[-1] else "raw"]
    assert marks == ("ragaccel_cached" in place)
    place.pop("ragaccel_cached", None)
    return dumps


@pytest.fixture(params=METHODS)
def method(request):
    return request.param


@pytest.fixture(params=["miss", "hit"])
def fast(request, method, cache):
    """An accelerated model that does not, or does, know the question; and which it is."""
    model = accelerate(Provider(), cache=cache)
    if request.param == "hit":
        ask(model, method)
        model._calls.clear()
    return model


def is_hit(fast):
    return sum(fast.__dict__["ragaccel_state_"].options.cache.stats().hits.values()) > 0


# -- what comes back -------------------------------------------------------------------------------


def test_the_answer_is_equal(method, fast):
    """The same responses, in the same number, of the same kind; a hit is marked."""
    known = fast.__dict__["ragaccel_state_"].options.cache.stats().misses > 0
    expected = shown(ask(Provider(), method))
    found = ask(fast, method)
    assert shown(found, marks=known) == expected
    assert [repr(one.delta) for one in found] == [repr(one["delta"]) for one in expected]
    assert len(fast._calls) == (0 if known else 1)


def test_twins_share_one_entry(cache):
    """A question is sent once, whether by call or stream, sync or async."""
    for first in METHODS:
        model = accelerate(Provider(model_name=first), cache=cache)
        twins = [name for name in METHODS if name.endswith("chat") == first.endswith("chat")]
        texts = {str(ask(model, name)[-1]) for name in (first, *twins)}
        assert len(texts) == 1
        assert len(model._calls) == 1


def test_a_stream_is_replayed_as_it_came(cache):
    """Delta by delta, and as one delta where the answer was given whole."""
    model = accelerate(Provider(), cache=cache)
    streamed = [one.delta for one in ask(model, "stream_chat")]
    assert [one.delta for one in ask(model, "stream_chat")] == streamed
    assert len(streamed) == 4
    whole = str(ask(model, "chat", "blue")[0].message.content)
    assert [one.delta for one in ask(model, "stream_chat", "blue")] == [whole]
    assert ask(model, "chat")[0].delta is None


def test_answers_are_the_callers_own(method, cache):
    """Changing what came back changes nothing for the next caller."""
    model = accelerate(Provider(), cache=cache)
    ask(model, method)
    expected = shown(ask(model, method), marks=True)
    for _ in range(2):
        found = ask(model, method)
        assert shown(found, marks=True) == expected
        found[-1].additional_kwargs["changed"] = True
        found[-1].raw["changed"] = True
        if method.endswith("chat"):
            found[-1].message.blocks.clear()
            found[-1].message.additional_kwargs["changed"] = True


# -- what listeners hear ---------------------------------------------------------------------------


def test_events_and_spans_are_equal(method, fast):
    """On a miss they are the provider's own, on a hit they are as if they were."""
    with recording() as plain:
        ask(Provider(), method)
    with recording() as told:
        ask(fast, method)
    assert told.event_names == plain.event_names
    assert len(plain.event_names) >= 2
    assert told.tree == plain.tree
    assert told.open == plain.open
    for mine, its in zip(told.events, plain.events, strict=True):
        one, other = mine.model_dump(), its.model_dump()
        for volatile in ("id_", "timestamp", "span_id"):
            one.pop(volatile), other.pop(volatile)
        if isinstance(one.get("response"), dict):
            one["response"]["additional_kwargs"].pop("ragaccel_cached", None)
            one["response"]["raw"].pop("ragaccel_cached", None)
        assert one == other


def test_legacy_callbacks_are_equal(method, cache):
    """Whoever listens by a callback manager hears the same."""
    heard = []
    for model in (Provider(), accelerate(Provider(), cache=cache)):
        for _ in range(2):
            recorder = CallbackRecorder()
            model.callback_manager = CallbackManager([recorder])
            ask(model, method)
            heard.append(recorder.told)
    assert heard[0]
    assert heard == [heard[0]] * 4


def test_a_model_that_tells_nothing_stays_quiet(cache):
    """A provider without LlamaIndex's decorators has no events on a hit either."""
    model = accelerate(Quiet(), cache=cache)
    for _ in range(2):
        with recording() as told:
            ask(model, "chat")
        assert told.event_names == []
        assert told.tree == (("Quiet.chat", ()),)
    assert len(model._calls) == 1


def test_the_rate_limiter_waits_for_calls_only(method, cache):
    """What the cache serves does not use up the provider's limit."""

    class Counting(BaseRateLimiter):
        count = 0

        def acquire(self, num_tokens=0):
            Counting.count += 1

        async def async_acquire(self, num_tokens=0):
            Counting.count += 1

    Counting.count = 0
    model = accelerate(Provider(rate_limiter=Counting()), cache=cache)
    for _ in range(3):
        ask(model, method)
    assert Counting.count == 1
    assert isinstance(unwrap(model).rate_limiter, Counting)


# -- what is kept ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "other",
    [
        {"question": "another"},
        {"kwargs": {"stop": ["x"]}},
        {"model": {"model_name": "other"}},
        {"options": {"namespace": "other"}},
        {"attribute": ("system_prompt", "be brief")},
        {"attribute": ("messages_to_prompt", in_capitals)},
    ],
    ids=lambda one: str(one).split(" at 0x")[0],
)
def test_questions_that_differ_never_share(method, cache, other):
    """In what is asked, how, of whom, and for whom."""
    ask(accelerate(Provider(), cache=cache), method)
    model = accelerate(Provider(**other.get("model", {})), cache=cache, **other.get("options", {}))
    if "attribute" in other:
        setattr(model, *other["attribute"])
    ask(model, method, other.get("question", QUESTION), **other.get("kwargs", {}))
    assert len(model._calls) == 1


def test_a_history_by_another_speaker_is_another(cache):
    """Roles and additional arguments of messages count."""
    model = accelerate(Provider(), cache=cache)
    for message in (
        ChatMessage("hi"),
        ChatMessage("hi", role="system"),
        ChatMessage("hi", additional_kwargs={"name": "x"}),
        ChatMessage(
            blocks=[{"block_type": "text", "text": "h"}, {"block_type": "text", "text": "i"}]
        ),
    ):
        model.chat([message])
    assert len(model._calls) == 4


def test_secrets_decide_nothing_and_are_kept_nowhere(tmp_path):
    """Two keys of one tenant share; the key is in no file."""
    with MultiLevelCache.open(tmp_path) as cache:
        for key in ("sk-one-secret", "sk-two-secret"):
            model = accelerate(Provider(api_key=key), cache=cache)
            ask(model, "chat")
        assert not model._calls
    assert not any(b"secret" in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())


def test_samples_are_kept_on_request_only(cache):
    """A temperature above 0 asks for another answer each time."""
    with pytest.warns(RagaccelWarning, match="cache_sampled=True"):
        model = accelerate(Provider(temperature=0.7), cache=cache)
    for _ in range(2):
        ask(model, "chat")
        ask(model, "stream_chat")
    assert len(model._calls) == 4
    assert cache.stats().bypasses == {"sampled": 4}
    asked = accelerate(Provider(temperature=0.7), cache=cache, cache_sampled=True)
    ask(asked, "chat"), ask(asked, "achat")
    assert len(asked._calls) == 1
    exact = accelerate(Provider(), cache=cache)
    ask(exact, "chat", temperature=1.0), ask(exact, "chat", temperature=1.0)
    assert len(exact._calls) == 2


def test_failures_pass_through_and_are_not_kept(method, cache):
    """The error is the provider's, and the next call is made."""
    model = accelerate(Provider(), cache=cache)
    for _ in range(2):
        with pytest.raises(ConnectionError, match="away"):
            ask(model, method, "fail")
    assert len(model._calls) == 2


@pytest.mark.parametrize("method", ["stream_chat", "astream_chat"])
def test_a_broken_stream_is_not_kept(method, cache):
    """What came until then was the caller's; the next call is made."""
    model = accelerate(Provider(), cache=cache)
    for _ in range(2):
        with pytest.raises(ConnectionError, match="broke"):
            ask(model, method, "break")
    assert len(model._calls) == 2


def test_an_abandoned_stream_is_not_kept(cache):
    """A stream that nobody reads to its end says nothing of the rest."""
    model = accelerate(Provider(), cache=cache)
    stream = model.stream_chat([ChatMessage(QUESTION)])
    next(stream)
    stream.close()

    async def leave():
        stream = await model.astream_chat([ChatMessage(QUESTION)])
        async for _ in stream:
            break
        await stream.aclose()

    asyncio.run(leave())
    gc.collect()
    assert len(ask(model, "chat")) == 1
    assert len(model._calls) == 3


def test_an_answer_that_was_invalidated_while_it_streamed_is_not_kept(cache):
    """It was made before."""
    model = accelerate(Provider(), cache=cache)
    stream = model.stream_chat([ChatMessage(QUESTION)])
    next(stream)
    cache.invalidate(namespace=cache.namespace)
    list(stream)
    ask(model, "chat")
    assert len(model._calls) == 2


def test_equal_questions_at_once_are_one_call(cache):
    """Whoever asks meanwhile waits for the first, and hears events of his own."""
    gate = threading.Event()

    class Slow(Provider):
        def words(self, asked):
            gate.wait(10)
            return super().words(asked)

    model = accelerate(Slow(), cache=cache)
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(ask, model, "chat") for _ in range(8)]
        while cache.stats().misses == 0:
            pass
        gate.set()
        texts = {str(one.result()[0]) for one in futures}
    assert len(texts) == 1
    assert len(model._calls) == 1


def test_prompts_written_by_a_lambda_need_a_name(cache):
    """Nobody can tell two lambdas apart."""
    plain = Provider(messages_to_prompt=lambda messages: f"{messages}!")
    with pytest.raises(ConfigurationError, match="identity"):
        accelerate(plain, cache=cache)
    model = accelerate(plain, cache=cache, identity="mine")
    ask(model, "chat"), ask(model, "chat")
    assert len(model._calls) == 1


# -- what the model still is -----------------------------------------------------------------------


def test_it_is_its_own_class_still(fast):
    """For `isinstance`, for dumps, and by its name."""
    plain = Provider()
    assert isinstance(fast, Provider)
    assert type(fast).__name__ == "Provider"
    assert fast.class_name() == plain.class_name()
    assert fast.to_dict() == plain.to_dict()
    assert fast.model_dump() == plain.model_dump()
    assert fast.metadata == plain.metadata
    for one in (fast, plain):
        one.callback_manager = None
    assert repr(fast) == repr(plain)


@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, lambda one: one.model_copy(), lambda one: one.model_copy(deep=True)],
    ids=["copy", "deepcopy", "model_copy", "deep model_copy"],
)
def test_copies_are_wrapped_as_well(copied, cache):
    """They share the cache, and go their own way when they are changed."""
    model = accelerate(Provider(), cache=cache)
    ask(model, "chat")
    other = copied(model)
    other._calls.clear()
    ask(other, "chat")
    assert not other._calls
    other.model_name = "other"
    ask(other, "chat")
    assert len(other._calls) == 1


def test_pickling_keeps_the_options(tmp_path):
    """In another process the same cache serves."""
    with MultiLevelCache.open(tmp_path) as cache:
        model = accelerate(Provider(), cache=cache)
        ask(model, "chat")
        other = pickle.loads(pickle.dumps(model))
        assert isinstance(other, Provider)
        other._calls.clear()
        ask(other, "chat")
        assert not other._calls


def test_calls_that_end_in_the_eight(cache):
    """`predict` and its twins are served, too."""
    model = accelerate(Provider(), cache=cache)
    prompt = PromptTemplate("about {topic}")
    first = model.predict(prompt, topic="trees")
    assert model.predict(prompt, topic="trees") == first
    assert "".join(model.stream(prompt, topic="trees")) == first
    assert asyncio.run(model.apredict(prompt, topic="trees")) == first
    assert len(model._calls) == 1


def test_a_custom_model_is_wrapped_at_its_completions(cache):
    """What LlamaIndex makes of them tells what it tells, hit or miss."""
    plain = MockLLM(max_tokens=4)
    model = accelerate(plain, cache=cache)
    assert isinstance(model, CustomLLM)
    told = []
    for one in (plain, model, model):
        with recording() as heard:
            answers = [ask(one, name, "one two three") for name in METHODS]
        told.append((heard.event_names, heard.tree, [str(one[-1]) for one in answers]))
    assert told[0][1] == told[1][1] == told[2][1]
    assert told[1][0] == told[2][0]
    assert set(told[0][0]) == set(told[1][0])
    assert cache.stats().misses == 2


def test_without_a_cache_it_only_traces(method):
    """Every call is made, and its own objects come back."""
    model = accelerate(Provider())
    for _ in range(2):
        shown(ask(model, method))
    assert len(model._calls) == 2
