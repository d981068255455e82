"""Chains and retrievers around others: what they hold is wrapped, and they do what they did."""

from __future__ import annotations

import copy
import pickle

import pytest
from langchain_classic.retrievers import ContextualCompressionRetriever, EnsembleRetriever
from langchain_core.documents import BaseDocumentCompressor
from langchain_core.language_models import BaseChatModel
from langchain_core.load import dumpd
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.rate_limiters import BaseRateLimiter
from langchain_core.runnables import (
    ConfigurableField,
    RunnableBranch,
    RunnableLambda,
    RunnableParallel,
    RunnablePassthrough,
    RunnableSequence,
)
from pydantic import PrivateAttr

from ragaccel import MultiLevelCache, accelerate, unwrap
from ragaccel.errors import UnsupportedComponentError
from tests.langchain.retrievers import WordRetriever
from tests.langchain.stores import opened

QUESTION = "red tree"


class Model(BaseChatModel):
    """Answers with what it was asked, and counts."""

    model_name: str = "words"
    fails: bool = False
    _calls: list = PrivateAttr(default_factory=list)

    @property
    def _llm_type(self):
        return "words"

    def answer(self, messages):
        self._calls.append(messages)
        if self.fails:
            raise ConnectionError("away")
        return f"{self.model_name}: {messages[-1].content}"

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        message = AIMessage(self.answer(messages))
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _stream(self, messages, stop=None, run_manager=None, **kwargs):
        for word in self.answer(messages).split(" "):
            yield ChatGenerationChunk(message=AIMessageChunk(content=f"{word} "))


class Shortest(BaseDocumentCompressor):
    """Keeps the shortest text, and counts."""

    _calls: list = PrivateAttr(default_factory=list)

    def compress_documents(self, documents, query, callbacks=None):
        self._calls.append(query)
        return sorted(documents, key=lambda one: len(one.page_content))[:1]


@pytest.fixture
def cache():
    with MultiLevelCache.open() as made:
        yield made


@pytest.fixture
def store(tmp_path):
    made = opened(tmp_path / "corpus")
    yield made
    made.close()


@pytest.fixture
def model():
    return Model()


PROMPT = ChatPromptTemplate.from_template("{context} {question}")


def rag(retriever, model):
    """Return the chain of every tutorial."""
    return (
        {
            "context": retriever | (lambda found: found[0].page_content),
            "question": RunnablePassthrough(),
        }
        | PROMPT
        | model
        | StrOutputParser()
    )


def test_a_chain_asks_its_parts_once(store, model, cache):
    """Retriever and model serve the second question, whole or streamed, and it is a chain still."""
    plain = rag(store.as_retriever(), model)
    expected = plain.invoke(QUESTION)
    fast = accelerate(plain, cache=cache)
    assert isinstance(fast, RunnableSequence)
    for _ in range(2):
        assert fast.invoke(QUESTION) == expected
    assert "".join(fast.stream(QUESTION)).strip() == expected
    assert fast.batch([QUESTION, QUESTION]) == [expected, expected]
    assert len(model._calls) == 2
    assert cache.stats().misses == 2


async def test_asynchronous_questions_share_the_entries(store, model, cache):
    """What was asked with `invoke` is served to `ainvoke` and `astream`."""
    fast = accelerate(rag(store.as_retriever(), model), cache=cache)
    expected = fast.invoke(QUESTION)
    assert await fast.ainvoke(QUESTION) == expected
    assert "".join([one async for one in fast.astream(QUESTION)]).strip() == expected
    assert len(model._calls) == 1


def test_the_chain_that_was_given_is_not_changed(store, model, cache):
    """It still asks for itself, and can be had back."""
    plain = rag(store.as_retriever(), model)
    before = dumpd(plain)
    fast = accelerate(plain, cache=cache)
    fast.invoke(QUESTION)
    assert unwrap(fast) is plain
    assert unwrap(accelerate(fast, cache=cache)) is plain
    assert dumpd(plain) == before == dumpd(fast)
    assert repr(type(fast)) == repr(type(plain))
    plain.invoke(QUESTION)
    assert len(model._calls) == 2


def test_a_wrapped_chain_goes_on_in_others(model, cache):
    """It is piped, bound and mapped as before."""
    fast = accelerate(PROMPT | model, cache=cache)
    longer = fast | StrOutputParser() | RunnableLambda(str.upper)
    asked = {"context": "c", "question": "q"}
    assert longer.invoke(asked) == longer.with_config(tags=["x"]).invoke(asked) == "WORDS: C Q"
    assert len(model._calls) == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda model: model.bind(stop=["x"]),
        lambda model: model.with_retry(),
        lambda model: model.with_config(tags=["x"]),
        lambda model: model.with_fallbacks([Model(model_name="other")]),
        lambda model: RunnableParallel(one=model, two=RunnablePassthrough()),
        lambda model: RunnablePassthrough.assign(said=(lambda given: given["asked"]) | model),
        lambda model: RunnableBranch((lambda asked: not asked, RunnablePassthrough()), model),
        lambda model: model.configurable_fields(model_name=ConfigurableField(id="model")),
        lambda model: model.map(),
    ],
    ids=["bind", "retry", "config", "fallbacks", "parallel", "assign", "branch", "fields", "map"],
)
def test_models_within_runnables_are_wrapped(model, cache, make):
    """Wherever LangChain keeps one."""
    plain = make(model)
    asked = {"asked": QUESTION} if "Assign" in type(plain).__name__ else QUESTION
    asked = [QUESTION] if "Each" in type(plain).__name__ else asked
    fast = accelerate(plain, cache=cache)
    assert isinstance(fast, type(plain))
    for _ in range(2):
        fast.invoke(asked)
    assert cache.stats().misses == 1
    assert sum(cache.stats().hits.values()) == 1


def test_fallbacks_are_taken_as_before(cache):
    """An error of the first model is not kept, the answer of the second is."""
    first, second = Model(fails=True), Model(model_name="second")
    fast = accelerate(first.with_fallbacks([second]), cache=cache)
    for _ in range(2):
        assert fast.invoke(QUESTION).content == f"second: {QUESTION}"
    assert len(first._calls) == 2
    assert len(second._calls) == 1


def test_configured_models_are_told_apart(model, cache):
    """A field that is set for a call decides the answer."""
    fast = accelerate(
        model.configurable_fields(model_name=ConfigurableField(id="model")), cache=cache
    )
    for name in ("one", "two", "one"):
        answer = fast.with_config(configurable={"model": name}).invoke(QUESTION)
        assert answer.content.startswith(name)
    assert cache.stats().misses == 2


def test_a_compression_retriever(store, cache):
    """Its retriever and its compressor are wrapped."""
    shortest = Shortest()
    plain = ContextualCompressionRetriever(
        base_compressor=shortest, base_retriever=store.as_retriever()
    )
    fast = accelerate(plain, cache=cache)
    assert isinstance(fast, ContextualCompressionRetriever)
    expected = plain.invoke(QUESTION)
    for _ in range(3):
        assert fast.invoke(QUESTION) == expected
    assert len(shortest._calls) == 2
    assert cache.stats().misses == 2


def test_an_ensemble_keeps_its_parts_apart(cache):
    """Two retrievers of a class that ragaccel does not know, under one identity."""
    parts = [WordRetriever(tags=["a"]), WordRetriever(tags=["b"], metadata={"x": 1})]
    plain = EnsembleRetriever(retrievers=parts, weights=[0.5, 0.5])
    fast = accelerate(plain, cache=cache, identity="both")
    for _ in range(2):
        assert fast.invoke(QUESTION) == plain.invoke(QUESTION)
    assert cache.stats().misses == 2


def test_pickling_keeps_the_parts_wrapped(tmp_path, model):
    """In another process the same cache serves."""
    with MultiLevelCache.open(tmp_path) as cache:
        fast = accelerate(PROMPT | model, cache=cache)
        asked = {"context": "c", "question": "q"}
        expected = fast.invoke(asked).content
        other = pickle.loads(pickle.dumps(fast))
        answer = other.invoke(asked)
        assert answer.content == expected
        assert answer.response_metadata["ragaccel_cached"] is True


@pytest.mark.parametrize(
    "hidden",
    [PROMPT | StrOutputParser(), RunnableLambda(lambda asked: Model().invoke(asked)), PROMPT],
    ids=["no model", "function", "prompt"],
)
def test_what_holds_nothing_is_refused_with_advice(hidden):
    """The message says what to wrap instead."""
    with pytest.raises(UnsupportedComponentError, match="wrap the model, retriever"):
        accelerate(hidden)


class Limiter(BaseRateLimiter):
    """Lets everybody pass."""

    def acquire(self, *, blocking=True):
        return True

    async def aacquire(self, *, blocking=True):
        return True


def test_a_pickled_models_original_has_its_own_limiter():
    """Unwrapped in another process, it waits as it did."""
    fast = accelerate(Model(rate_limiter=Limiter()))
    other = pickle.loads(pickle.dumps(fast))
    assert type(unwrap(other).rate_limiter) is Limiter
    assert type(other.rate_limiter) is type(fast.rate_limiter) is not Limiter
    assert type(copy.deepcopy(fast).rate_limiter) is type(fast.rate_limiter)
