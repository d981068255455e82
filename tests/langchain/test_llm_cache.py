"""`LLMCache`: LangChain's suites, its real models, and what must not go wrong."""

from __future__ import annotations

import asyncio
import copy
import math
import pickle
import re
import uuid

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.globals import get_llm_cache, set_llm_cache
from langchain_core.language_models import FakeListLLM
from langchain_core.language_models.fake_chat_models import (
    FakeListChatModel,
    GenericFakeChatModel,
)
from langchain_core.load import dumps
from langchain_core.messages import AIMessage, AIMessageChunk, ChatMessage
from langchain_core.outputs import (
    ChatGeneration,
    ChatGenerationChunk,
    Generation,
    GenerationChunk,
)
from langchain_tests.integration_tests.cache import AsyncCacheTestSuite, SyncCacheTestSuite
from pydantic import BaseModel

from ragaccel import DiskLevel, MemoryLevel, MultiLevelCache
from ragaccel.cache import Kind, Prices, adaptive_ttl
from ragaccel.errors import ConfigurationError
from ragaccel.langchain import LLMCache
from ragaccel.langchain import llm_cache as module

USAGE = {"input_tokens": 30, "output_tokens": 12, "total_tokens": 42}
FRESH_ID = re.compile(r"lc_run--([0-9a-f-]{36})-(\d+)")


# ---- the suites ----------------------------------------------------------------------------------


class TestSyncInMemory(SyncCacheTestSuite):
    @pytest.fixture
    def cache(self):
        with MultiLevelCache.open() as cache:
            yield LLMCache(cache)


class TestAsyncInMemory(AsyncCacheTestSuite):
    @pytest.fixture
    async def cache(self):
        async with MultiLevelCache.open() as cache:
            yield LLMCache(cache)


class TestSyncOnDisk(SyncCacheTestSuite):
    @pytest.fixture
    def cache(self, tmp_path):
        with MultiLevelCache.open(tmp_path) as cache:
            yield LLMCache(cache)


class TestAsyncOnDisk(AsyncCacheTestSuite):
    @pytest.fixture
    async def cache(self, tmp_path):
        async with MultiLevelCache.open(tmp_path) as cache:
            yield LLMCache(cache)


# ---- what the tests use --------------------------------------------------------------------------


@pytest.fixture(params=["memory", "disk", "disk only"])
def cache(request, tmp_path):
    """A cache of each make."""
    if request.param == "disk only":
        made = MultiLevelCache([DiskLevel(tmp_path / "cache.sqlite")])
    else:
        made = MultiLevelCache.open(None if request.param == "memory" else tmp_path)
    with made:
        yield made


@pytest.fixture
def global_cache(cache):
    """LangChain's global cache is ours."""
    before = get_llm_cache()
    set_llm_cache(LLMCache(cache))
    yield cache
    set_llm_cache(before)


def chat(content="answer", info=None, **fields):
    return ChatGeneration(message=AIMessage(content=content, **fields), generation_info=info)


def kept(cache, generations):
    """What comes back of generations, or None."""
    ours = LLMCache(cache)
    ours.update("prompt", "llm", generations)
    return ours.lookup("prompt", "llm")


def without_id(generation):
    made = copy.deepcopy(generation)
    made.message.id = None
    return made


class Broken(MemoryLevel):
    """A level that fails at everything."""

    name = "broken"

    def get_many(self, keys):
        raise OSError("the machine is on fire")

    put_many = delete_many = get_many

    async def aget_many(self, keys):
        raise OSError("the machine is on fire")

    aput_many = adelete_many = aget_many


# ---- what comes back -----------------------------------------------------------------------------


CALL = {"name": "search", "args": {"query": "red", "k": 3, "deep": [{"x": None}]}, "id": "call-1"}
BAD_CALL = {"name": "search", "args": "{", "id": "call-2", "error": "no JSON"}


@pytest.mark.parametrize(
    "generation",
    [
        chat(usage_metadata=USAGE),
        chat("", tool_calls=[CALL], invalid_tool_calls=[BAD_CALL], usage_metadata=USAGE),
        chat(
            [{"type": "text", "text": "one"}, "two", {"type": "image", "base64": "AAAA"}],
            usage_metadata={**USAGE, "input_token_details": {"cache_read": 7}},
        ),
        chat([{"text": "legacy"}, {"text": "block"}], usage_metadata=USAGE),
        chat([], usage_metadata=USAGE),
        chat(
            info={"finish_reason": "stop", "logprobs": None},
            name="bob",
            additional_kwargs={"refusal": None, "n": 1.5},
            response_metadata={"model_name": "gpt-x", "token_usage": {"total": 42}},
            usage_metadata=USAGE,
        ),
        chat(usage_metadata=USAGE, example=True),
    ],
)
def test_chat_answers_come_back_whole(cache, generation):
    """Content, tool calls, usage, metadata, text and types come back equal, the id does not."""
    (back,) = kept(cache, [generation])
    assert type(back) is ChatGeneration
    assert type(back.message) is AIMessage
    assert without_id(back) == without_id(generation)
    assert isinstance(back.text, type(generation.text))
    assert back.message.content_blocks == generation.message.content_blocks
    assert dumps(without_id(back)) == dumps(without_id(generation))
    assert AIMessage(**back.message.model_dump()) == back.message
    assert copy.deepcopy(back) == pickle.loads(pickle.dumps(back)) == back


@pytest.mark.parametrize("cls", [Generation, GenerationChunk])
def test_texts_come_back_whole(cache, cls):
    """Answers of models that are no chat models keep their class and their information."""
    given = [cls(text="one", generation_info={"reason": "stop"}), cls(text="")]
    back = kept(cache, given)
    assert back == given
    assert [type(one) for one in back] == [cls, cls]


def test_a_changed_text_comes_back(cache):
    """A chat generation whose text somebody changed keeps that text."""
    given = chat(usage_metadata=USAGE)
    given.text = "another"
    assert kept(cache, [given])[0].text == "another"


def test_a_hit_is_built_as_validation_builds(cache):
    """Made without validation, the objects still behave as validated ones do."""
    (back,) = kept(cache, [chat(usage_metadata=USAGE)])
    twin = ChatGeneration(message=AIMessage.model_validate(back.message.model_dump()))
    assert twin.message.__dict__ == back.message.__dict__
    assert twin.__dict__ == back.__dict__
    back.message.anything = 1
    assert back.message.model_extra == {"anything": 1}
    assert back.model_copy(update={"text": "x"}).text == "x"
    with pytest.raises(AttributeError):
        _ = back.message.nothing


class Parsed(BaseModel):
    answer: int


class OwnMessage(AIMessage):
    pass


class OwnGeneration(ChatGeneration):
    pass


@pytest.mark.parametrize(
    "generation",
    [
        chat(additional_kwargs={"other": Parsed(answer=42)}),
        chat(response_metadata={"at": (1, 2)}),
        chat(response_metadata={1: "integer key"}),
        chat(info={"huge": 2**70}),
        chat("lone \ud800 surrogate"),
        ChatGeneration(message=OwnMessage(content="x")),
        ChatGeneration(message=ChatMessage(content="x", role="assistant")),
        ChatGeneration(message=AIMessageChunk(content="x")),
        OwnGeneration(message=AIMessage(content="x")),
    ],
)
def test_what_would_not_come_back_equal_is_passed_by(cache, generation):
    """It is counted and not stored, and the caller hears nothing of it."""
    assert kept(cache, [chat(), generation]) is None
    assert cache.stats().bypasses == {"value": 1}


def test_a_parsed_answer_comes_back_as_a_dict(cache):
    """LangChain's parsers of structured output take one as well."""
    (back,) = kept(cache, [chat(additional_kwargs={"parsed": Parsed(answer=42)})])
    assert back.message.additional_kwargs == {"parsed": {"answer": 42}}


def test_chunks_come_back_equal(cache):
    """Of a model whose answers are chunks."""
    (back,) = kept(cache, [ChatGenerationChunk(message=AIMessageChunk(content="x"))])
    assert type(back) is ChatGenerationChunk
    assert type(back.message) is AIMessageChunk
    assert back.message.content == "x"


@pytest.mark.parametrize("prompt", ["lone \ud800 surrogate", "\udfff" * 20_000])
async def test_prompts_that_cannot_be_encoded_are_passed_by(cache, prompt):
    """They have no key."""
    ours = LLMCache(cache)
    ours.update(prompt, "llm", [chat()])
    await ours.aupdate(prompt, "llm", [chat()])
    assert ours.lookup(prompt, "llm") is None
    assert await ours.alookup(prompt, "llm") is None
    assert cache.stats().bypasses == {"key": 4}


async def test_long_prompts_are_kept_too(cache):
    """The key of a prompt of any length is the same on both faces."""
    ours = LLMCache(cache)
    ours.update("long " * 10_000, "llm", [Generation(text="x")])
    assert ours.lookup("long " * 10_000, "llm") == [Generation(text="x")]
    assert await ours.alookup("long " * 10_000, "llm") == [Generation(text="x")]


def test_prompt_and_settings_do_not_run_together(cache):
    """Where the one ends and the other begins is part of the key."""
    ours = LLMCache(cache)
    ours.update("ab", "c", [Generation(text="x")])
    assert ours.lookup("a", "bc") is None
    assert ours.lookup("c", "ab") is None


def test_entries_of_other_fields_are_misses(cache, monkeypatch):
    """What another langchain-core wrote is not served; it is replaced by the next answer."""
    ours = LLMCache(cache)
    with monkeypatch.context() as other:
        other.setattr(module, "SCHEMA", b"else")
        ours.update("prompt", "llm", [chat()])
        assert ours.lookup("prompt", "llm")
    assert ours.lookup("prompt", "llm") is None
    assert cache.stats().stale >= 1
    ours.update("prompt", "llm", [chat()])
    assert ours.lookup("prompt", "llm")


def test_no_answer_at_all_is_kept(cache):
    """An empty list is a value."""
    assert kept(cache, []) == []


# ---- every hit is one's own ----------------------------------------------------------------------


def test_a_hit_cannot_be_poisoned(cache):
    """Whatever a caller does to a hit, or to what was stored, the next one does not see it."""
    given = chat("", tool_calls=[CALL], additional_kwargs={"a": [1]}, usage_metadata=USAGE)
    (first,) = kept(cache, [given])
    clean = without_id(first)
    for mutable in (given, first):
        mutable.message.content = "HACKED"
        mutable.message.tool_calls[0]["args"]["deep"].append("HACKED")
        mutable.message.additional_kwargs["a"].append("HACKED")
        mutable.message.usage_metadata["input_tokens"] = -1
        mutable.message.model_fields_set.add("HACKED")
    (second,) = LLMCache(cache).lookup("prompt", "llm")
    assert without_id(second) == clean
    assert "HACKED" not in second.message.model_fields_set


def test_ids_are_fresh_and_look_like_langchains(cache):
    """Every message of every hit has an id of its own; LangGraph replaces messages of one id."""
    ours = LLMCache(cache)
    ours.update("prompt", "llm", [chat("one", id="run-1"), chat("two", id="run-1")])
    ids = [one.message.id for _ in range(50) for one in ours.lookup("prompt", "llm")]
    assert len(set(ids)) == 100
    found = [FRESH_ID.fullmatch(id_) for id_ in ids]
    assert {uuid.UUID(one[1]).version for one in found} == {4}
    assert [one[2] for one in found[:4]] == ["0", "1", "0", "1"]


def test_a_fork_draws_other_ids():
    """Parent and child go on from different places."""
    ids = module._Ids()
    before = ids.draw()
    ids.after_fork_in_child()
    assert ids.draw()[:20] != before[:20]


# ---- usage ---------------------------------------------------------------------------------------


def test_usage_of_a_hit_is_valid(cache):
    """LangChain adds `total_cost` to it; without usage only zeros keep the message valid."""
    model = FakeListChatModel(responses=["answer"], cache=LLMCache(cache))
    model.invoke("question")
    hit = model.invoke("question")
    zeros = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
    assert hit.usage_metadata == {**zeros, "total_cost": 0}
    assert AIMessage(**hit.model_dump()) == hit


def test_tokens_that_were_saved_are_counted(cache):
    """A call's usage, which providers repeat in each of its messages, counts once."""
    ours = LLMCache(cache)
    ours.update("prompt", "llm", [chat(usage_metadata=USAGE), chat(usage_metadata=USAGE)])
    ours.lookup("prompt", "llm")
    ours.lookup("prompt", "llm")
    stats = cache.stats()
    assert (stats.saved_tokens_read, stats.saved_tokens_written) == (60, 24)
    assert stats.saved_money(Prices(read=1e6, written=1e6)) == 84


# ---- namespaces, clear, lifetimes ----------------------------------------------------------------


def test_namespaces_share_nothing(cache):
    """Tenants, which LangChain's key does not tell apart, do not see each other's answers."""
    ours = {name: LLMCache(cache, namespace=name) for name in ("acme", "bolt", None)}
    for name, one in ours.items():
        assert one.lookup("prompt", "llm") is None
        one.update("prompt", "llm", [Generation(text=str(name))])
    for name, one in ours.items():
        assert one.lookup("prompt", "llm") == [Generation(text=str(name))]
    assert set(cache.stats().namespaces) == {"acme", "bolt", "default"}


@pytest.mark.parametrize("face", ["sync", "async"])
async def test_clear_touches_only_its_own(cache, face):
    """Answers of other namespaces and other entries of the same one are still served."""
    mine, other = LLMCache(cache), LLMCache(cache, namespace="other")
    for one in (mine, other):
        one.update("prompt", "llm", [Generation(text="x")])
    cache.set("key", "value")
    if face == "sync":
        mine.clear(anything=1)
    else:
        await mine.aclear(anything=1)
    assert mine.lookup("prompt", "llm") is None
    assert other.lookup("prompt", "llm")
    assert cache.get("key") == "value"
    mine.update("prompt", "llm", [Generation(text="new")])
    assert mine.lookup("prompt", "llm") == [Generation(text="new")]


def test_forgetting_a_tenant_forgets_its_answers(cache):
    """The cache's own invalidation of a namespace holds for the answers in it."""
    ours = LLMCache(cache, namespace="acme")
    ours.update("prompt", "llm", [Generation(text="x")])
    cache.invalidate(namespace="acme")
    assert ours.lookup("prompt", "llm") is None


def test_other_kinds_do_not_meet(cache):
    """A plain value under the same parts is another entry."""
    ours = LLMCache(cache)
    ours.update("prompt", "llm", [Generation(text="x")])
    assert not cache.get(("prompt", "llm"))
    cache.set(("prompt", "llm"), "plain")
    assert ours.lookup("prompt", "llm") == [Generation(text="x")]


def test_a_policy_sees_prompt_and_answer(cache):
    """A ttl function is shown the prompt with the settings, and the generations."""
    seen = []

    def policy(query, result):
        seen.append((query, result))
        return 0

    given = chat(usage_metadata=USAGE)
    ours = LLMCache(cache, ttl=policy)
    ours.update("prompt", "llm", [given])
    assert seen == [(("prompt", "llm"), [given])]
    assert ours.lookup("prompt", "llm") is None


def test_empty_answers_are_empty_results(cache):
    """What says nothing and calls nothing is what `negative_ttl` and policies hold for empty."""
    seen = []
    ours = LLMCache(cache, ttl=lambda _, result: seen.append(result) or 1)
    ours.update("silent", "llm", [chat("")])
    ours.update("calling", "llm", [chat("", tool_calls=[CALL])])
    ours.update("text", "llm", [Generation(text="")])
    assert [len(result) for result in seen] == [0, 1, 0]


def test_the_adaptive_policy_reads_the_prompt(cache):
    """Questions about the present day are kept for less long, or not at all."""
    ours = LLMCache(cache, ttl=adaptive_ttl(time_sensitive=0))
    ours.update("what is the latest news today", "llm", [chat()])
    ours.update("what is a tree", "llm", [chat()])
    assert ours.lookup("what is the latest news today", "llm") is None
    assert ours.lookup("what is a tree", "llm")


def test_a_lifetime_that_is_none_is_refused_at_once(cache):
    """Not only when the first answer is to be stored."""
    with pytest.raises(ConfigurationError):
        LLMCache(cache, ttl=-1)


# ---- restarts, processes, faults -----------------------------------------------------------------


def test_a_restart_keeps_the_answers(tmp_path):
    """A new cache over the same folder hits."""
    with MultiLevelCache.open(tmp_path) as cache:
        LLMCache(cache, ttl=math.inf).update("prompt", "llm", [chat(usage_metadata=USAGE)])
    with MultiLevelCache.open(tmp_path) as cache:
        (back,) = LLMCache(cache).lookup("prompt", "llm")
        assert without_id(back) == chat(usage_metadata=USAGE)
        assert cache.stats().hits == {"disk": 1}


def test_two_processes_see_each_others_changes(tmp_path):
    """An overwrite or a clear by one is seen by the other, whose memory had the old answer."""
    with MultiLevelCache.open(tmp_path) as one, MultiLevelCache.open(tmp_path) as two:
        first, second = LLMCache(one), LLMCache(two)
        first.update("prompt", "llm", [Generation(text="old")])
        assert second.lookup("prompt", "llm") == [Generation(text="old")]
        first.update("prompt", "llm", [Generation(text="new")])
        assert second.lookup("prompt", "llm") == [Generation(text="new")]
        second.clear()
        assert first.lookup("prompt", "llm") is None


async def test_a_broken_level_breaks_nothing(caplog):
    """Look-ups miss, updates are passed over, and the model is asked."""
    cache = MultiLevelCache([Broken()])
    model = FakeListChatModel(responses=["one", "two", "three"], cache=LLMCache(cache))
    assert model.invoke("question").content == "one"
    assert (await model.ainvoke("question")).content == "two"
    assert cache.stats().errors["broken"] >= 4
    assert "are passed over" in caplog.text


def test_a_broken_level_behind_memory_breaks_nothing():
    """What memory holds is still served."""
    cache = MultiLevelCache([MemoryLevel(), Broken()])
    model = FakeListChatModel(responses=["one", "two"], cache=LLMCache(cache))
    assert [model.invoke("question").content for _ in range(2)] == ["one", "one"]


async def test_a_strike_that_fails_breaks_nothing(tmp_path, monkeypatch):
    """Where an older answer cannot be struck the new one is not stored, and the call goes on."""
    with MultiLevelCache.open(tmp_path) as cache:
        ours = LLMCache(cache)
        ours.update("prompt", "llm", [Generation(text="old")])

        def fail(marks):
            raise OSError("the disk is full")

        ledger = cache.levels[-1].ledger
        monkeypatch.setattr(ledger, "strike", fail)
        ours.update("prompt", "llm", [Generation(text="new")])
        await ours.aupdate("prompt", "llm", [Generation(text="new")])
        assert cache.stats().bypasses == {"invalidation": 2}


def test_damage_is_a_miss(tmp_path, monkeypatch):
    """A body that does not decode is not served."""
    with MultiLevelCache([DiskLevel(tmp_path / "cache.sqlite")]) as cache:
        ours = LLMCache(cache)
        junk = Kind("langchain.llm", lambda _: b"\x93junk", lambda body: (body, None))
        cache.set(("prompt", "llm"), "x", kind=junk)
        assert ours.lookup("prompt", "llm") is None
        assert cache.stats().damaged == 1


def test_it_can_be_pickled(tmp_path):
    """Models go to other processes with their cache."""
    with MultiLevelCache.open(tmp_path) as cache:
        ours = LLMCache(cache, namespace="acme", ttl=60)
        ours.update("prompt", "llm", [Generation(text="x")])
        copied = pickle.loads(pickle.dumps(ours))
        assert copied.lookup("prompt", "llm") == [Generation(text="x")]
        copied._cache.close()


# ---- real models ---------------------------------------------------------------------------------


def test_a_chat_model_hits_through_the_field(cache):
    """`invoke` asks the model once; the hit has an id of its own."""
    model = FakeListChatModel(responses=["one", "two"], cache=LLMCache(cache))
    first, second, third = (model.invoke("question") for _ in range(3))
    assert [first.content, second.content, third.content] == ["one"] * 3
    assert len({first.id, second.id, third.id}) == 3
    assert model.invoke("other").content == "two"
    assert cache.stats().misses == 2


async def test_a_chat_model_hits_through_the_global_cache(global_cache):
    """`invoke`, `ainvoke`, `generate` and `agenerate` share one entry."""
    model = FakeListChatModel(responses=["one", "two"])
    messages = [[("human", "question")]]
    assert model.invoke(messages[0]).content == "one"
    assert (await model.ainvoke(messages[0])).content == "one"
    prompt = [model._convert_input(messages[0]).to_messages()]
    assert model.generate(prompt).generations[0][0].text == "one"
    assert (await model.agenerate(prompt)).generations[0][0].text == "one"
    assert sum(global_cache.stats().hits.values()) == 3
    assert FakeListChatModel(responses=["own"], cache=False).invoke("question").content == "own"


async def test_a_text_model_hits(global_cache):
    """Models that are no chat models, single and in batches, sync and async."""
    model = FakeListLLM(responses=["one", "two", "three"])
    assert model.invoke("a") == "one"
    assert model.batch(["a", "b"]) == ["one", "two"]
    assert await model.abatch(["a", "b", "c"]) == ["one", "two", "three"]
    assert (await model.agenerate(["c"])).generations[0][0].text == "three"


def test_settings_are_told_apart(cache):
    """Another stop word or another model is another entry."""
    ours = LLMCache(cache)
    model = FakeListChatModel(responses=["one", "two"], cache=ours)
    assert model.invoke("question").content == "one"
    assert model.invoke("question", stop=["."]).content == "two"
    assert FakeListChatModel(responses=["else"], cache=ours).invoke("question").content == "else"


def test_tool_calls_of_a_model_hit(cache):
    """A real call through a model that answers with tool calls and usage."""
    answers = iter([AIMessage(content="", tool_calls=[CALL], usage_metadata=USAGE)])
    model = GenericFakeChatModel(messages=answers, cache=LLMCache(cache))
    first, second = model.invoke("question"), model.invoke("question")
    assert second.tool_calls == first.tool_calls == [{**CALL, "type": "tool_call"}]
    assert second.usage_metadata == {**USAGE, "total_cost": 0}


def test_answers_that_cannot_be_stored_reach_the_caller(cache):
    """The model is asked every time."""
    answers = (AIMessage(content=str(n), additional_kwargs={"p": Parsed(answer=n)}) for n in (1, 2))
    model = GenericFakeChatModel(messages=answers, cache=LLMCache(cache))
    assert [model.invoke("question").content for _ in range(2)] == ["1", "2"]
    assert cache.stats().bypasses == {"value": 2}


async def test_batches_hit(cache):
    """`batch` and `abatch`, whose calls run in threads and tasks at once."""
    model = FakeListChatModel(responses=[str(n) for n in range(20)], cache=LLMCache(cache))
    questions = [f"question {n}" for n in range(20)]
    first = [one.content for one in model.batch(questions)]
    assert [one.content for one in model.batch(questions)] == first
    assert [one.content for one in await model.abatch(questions)] == first
    assert cache.stats().misses == 20


class _Starts(BaseCallbackHandler):
    """Counts what a model tells of itself."""

    def __init__(self):
        self.ends = []

    def on_llm_end(self, response, **_):
        self.ends.append(response.generations[0][0].text)


def test_callbacks_hear_of_hits(cache):
    """LangChain calls them above the cache."""
    model = FakeListChatModel(responses=["one"], cache=LLMCache(cache))
    heard = _Starts()
    for _ in range(2):
        model.invoke("question", config={"callbacks": [heard]})
    assert heard.ends == ["one", "one"]


async def test_async_calls_do_not_leave_the_loop(monkeypatch):
    """Nothing of a look-up or an update in memory goes to another thread."""

    def never(*_, **__):
        raise AssertionError("a thread was asked for")

    monkeypatch.setattr(asyncio.get_running_loop(), "run_in_executor", never)
    ours = LLMCache(MultiLevelCache.open())
    await ours.aupdate("prompt", "llm", [Generation(text="x")])
    assert await ours.alookup("prompt", "llm") == [Generation(text="x")]
    await ours.aclear()
    assert await ours.alookup("prompt", "llm") is None


def test_hits_of_a_model_that_was_copied(cache):
    """`model_copy` shares the cache."""
    model = FakeListChatModel(responses=["one", "two"], cache=LLMCache(cache))
    assert model.invoke("question").content == model.model_copy().invoke("question").content
