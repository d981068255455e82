"""An accelerated embedding model of LangChain is the plain one, plus the cache."""

from __future__ import annotations

import asyncio
import copy
import pickle
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_classic.embeddings import CacheBackedEmbeddings
from langchain_core.embeddings import DeterministicFakeEmbedding, Embeddings
from langchain_openai import OpenAIEmbeddings
from langchain_tests.integration_tests import EmbeddingsIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests
from pydantic import BaseModel, ConfigDict, PrivateAttr

from ragaccel import MultiLevelCache, accelerate, unwrap
from ragaccel.errors import ConfigurationError
from ragaccel.langchain import ByteStore, CompressedVectorStore
from tests.langchain.embeddings import HashEmbeddings

TEXTS = ["red apple", "green pear", "blue sky"]
HASH = HashEmbeddings(dim=8)


class Model(BaseModel, Embeddings):
    """Embeds a query otherwise than a text, and tells what it was sent."""

    model_config = ConfigDict(protected_namespaces=())

    model_name: str = "tiny"
    _sent: list[str] = PrivateAttr(default_factory=list)

    def embed_documents(self, texts, **how):
        self._sent += texts
        task = how.get("task_type", "")
        return [HASH.embed_query(f"{self.model_name} {task} {text}") for text in texts]

    def embed_query(self, text, **how):
        return self.embed_documents([f"query {text}"], **how)[0]


class Native(Model):
    """Has asynchronous methods of its own."""

    async def aembed_documents(self, texts, **how):
        await asyncio.sleep(0)
        return self.embed_documents(texts, **how)

    async def aembed_query(self, text, **how):
        return (await self.aembed_documents([f"query {text}"], **how))[0]


class Given(Embeddings):
    """Gives what it was told to, whatever it is asked."""

    def __init__(self, answer):
        self.answer = answer

    def embed_documents(self, texts):
        return [self.embed_query(text) for text in texts]

    def embed_query(self, text):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class Local(OpenAIEmbeddings):
    """Has every field that OpenAI's has, and calls nobody."""

    def embed_documents(self, texts, chunk_size=None, **kwargs):
        return HASH.embed_documents(texts)

    async def aembed_documents(self, texts, chunk_size=None, **kwargs):
        return HASH.embed_documents(texts)


def float32(vectors):
    """Return vectors as a cache of that precision gives them."""
    return np.asarray(vectors, dtype=np.float32).tolist()


CALLS = {
    "embed_query": lambda model: model.embed_query(TEXTS[0]),
    "embed_documents": lambda model: model.embed_documents(TEXTS),
    "aembed_query": lambda model: asyncio.run(model.aembed_query(TEXTS[0])),
    "aembed_documents": lambda model: asyncio.run(model.aembed_documents(TEXTS)),
}
MODELS = {
    "theirs": lambda: DeterministicFakeEmbedding(size=8),
    "plain object": lambda: HashEmbeddings(dim=8),
    "own": Model,
    "own async": Native,
    "openai": lambda: Local(api_key="sk-none"),
}


@pytest.fixture(params=MODELS)
def plain(request):
    """A model of a sort."""
    return MODELS[request.param]()


@pytest.fixture(params=CALLS)
def call(request):
    """One of the four methods."""
    return CALLS[request.param]


@pytest.fixture(params=["miss", "hit"])
def fast(request, plain, call, cache):
    """The model accelerated; the cache does not, or does, know what will be asked."""
    model = accelerate(plain, cache=cache)
    if request.param == "hit":
        call(model)
    return model


# -- what comes back -------------------------------------------------------------------------------


def test_a_vector_is_equal(plain, fast, call):
    """A miss and a hit give the plain model's vectors in the precision of the cache, as floats."""
    expected = float32(call(plain))
    found = call(fast)
    assert found == expected
    first = found if type(found[0]) is float else found[0]
    assert type(found) is list
    assert type(first) is list
    assert {type(number) for number in first} == {float}


def test_each_text_is_looked_up_once(plain, fast, call, cache):
    """Methods that call each other within the model, or from LangChain's defaults, ask once."""
    known = cache.stats().misses
    asked = 3 if call in (CALLS["embed_documents"], CALLS["aembed_documents"]) else 1
    call(fast)
    stats = cache.stats()
    assert stats.misses == asked
    assert sum(stats.hits.values()) == (asked if known else 0)
    assert stats.bypasses == {}


def test_twins_share_one_entry(cache):
    """What the sync method was asked the async one knows, and the other way round."""
    for first, second in (
        ("embed_query", "aembed_query"), ("aembed_query", "embed_query"),
        ("embed_documents", "aembed_documents"), ("aembed_documents", "embed_documents"),
    ):  # fmt: skip
        model = accelerate(Native(model_name=first), cache=cache)
        assert CALLS[first](model) == CALLS[second](model)
        assert len(model._sent) == (1 if first.endswith("query") else 3)


def test_without_a_cache_it_is_the_models_own_answer():
    """Nothing is rounded or copied, whatever the model gives."""
    for answer in ([0.1, 0.2], np.array([0.1, 0.2]), (1, 2), None):
        model = accelerate(Given(answer))
        assert model.embed_query("a") is answer
        assert model.embed_documents(["a", "a"])[1] is answer
    whole = accelerate(Model())
    assert whole.embed_documents(TEXTS) == Model().embed_documents(TEXTS)


def test_vectors_are_the_callers_own(call, cache):
    """Changing what came back changes nothing for the next caller."""
    model = accelerate(Model(), cache=cache)
    expected = copy.deepcopy(call(model))
    for _ in range(3):
        found = call(model)
        assert found == expected
        (found if type(found[0]) is float else found[0]).reverse()
    twice = model.embed_documents(["a", "b", "a"])
    assert twice[0] == twice[2]
    assert twice[0] is not twice[2]


@pytest.mark.parametrize("precision", ["float32", "float16"])
@settings(deadline=None)
@given(st.lists(st.floats(allow_nan=False, width=64), max_size=8))
def test_a_miss_gives_what_a_hit_gives(precision, vector):
    """Bit by bit; a vector that the precision cannot hold is the model's own, and is not kept."""
    with np.errstate(over="ignore"):
        rounded = np.asarray(vector, dtype=np.float64).astype(precision)
    holds = bool(np.isfinite(rounded).all())
    with MultiLevelCache.open() as cache:
        model = accelerate(Given(vector), cache=cache, precision=precision)
        expected = rounded.tolist() if holds else vector
        found = [model.embed_query("a"), model.embed_query("a"), *model.embed_documents(["b", "c"])]
        for one in found:
            assert np.array(one).tobytes() == np.array(expected).tobytes()
        hits = sum(cache.stats().hits.values())
        assert hits == (1 if holds else 0)
        assert cache.stats().bypasses == ({} if holds else {"value": 4})


def test_the_precisions_are_told_apart(cache):
    """A vector that was kept in half precision is not given out as one of single precision."""
    exact = float32(Model().embed_query("a"))
    half = accelerate(Model(), cache=cache, precision="float16").embed_query("a")
    assert half == np.asarray(exact, dtype=np.float16).tolist() != exact
    assert accelerate(Model(), cache=cache).embed_query("a") == exact


@pytest.mark.parametrize("answer", [None, [[0.5]], ["0.5"], {"a": 1}, [[1.0], 2.0], [float("nan")]])
def test_what_is_no_vector_is_given_as_it_is(cache, answer):
    """A model's odd answer is its user's to deal with; it is not kept."""
    model = accelerate(Given(answer), cache=cache, identity="odd")
    for _ in range(2):
        assert model.embed_query("a") is answer
        assert model.embed_documents(["a"])[0] is answer
    assert cache.stats().hits == {}
    assert cache.stats().bypasses == {"value": 4}


# -- what is sent ----------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.lists(st.sampled_from("abcdefg"), max_size=6), max_size=6))
def test_a_text_is_sent_once(batches):
    """Whatever is asked together, each text gets its vector, and nothing is sent again."""
    with MultiLevelCache.open() as cache:
        model = accelerate(Model(), cache=cache)
        for texts in batches:
            assert model.embed_documents(texts) == float32(Model().embed_documents(texts))
        distinct = {text for texts in batches for text in texts}
        assert sorted(model._sent) == sorted(distinct)


def test_no_texts_are_the_models_affair(cache):
    """The model says what comes of an empty list."""

    class Strict(Model):
        def embed_documents(self, texts):
            if not texts:
                raise ValueError("nothing to embed")
            return super().embed_documents(texts)

    assert accelerate(Model(), cache=cache).embed_documents([]) == []
    with pytest.raises(ValueError, match="nothing to embed"):
        accelerate(Strict(), cache=cache).embed_documents([])


def test_queries_and_texts_do_not_meet(cache):
    """The same words are another vector as a query than as a text."""
    model = accelerate(Model(), cache=cache)
    text = model.embed_documents(["a"])[0]
    assert model.embed_query("a") == float32(Model().embed_query("a")) != text
    assert model.embed_documents(["a"]) == [text]


def test_texts_that_no_key_can_be_made_of(cache):
    """The call goes on without the cache, and is counted once."""
    model = accelerate(Model(), cache=cache)
    odd = ["a", "\ud800"]
    assert model.embed_documents(odd) == Model().embed_documents(odd)
    assert model.embed_query(odd[1]) == Model().embed_query(odd[1])
    assert cache.stats().bypasses == {"key": 2}
    assert cache.stats().lookups == 0


def test_texts_that_are_no_list_reach_the_model(cache):
    """A generator is the model's to read."""
    model = accelerate(HashEmbeddings(dim=8), cache=cache)
    assert model.embed_documents(text for text in TEXTS) == HASH.embed_documents(TEXTS)
    assert model.embed_documents(tuple(TEXTS)) == HASH.embed_documents(TEXTS)


class Forgetful(Model):
    """Gives fewer vectors than it was asked for."""

    def embed_documents(self, texts):
        return super().embed_documents(texts)[1:]


def test_a_wrong_number_of_vectors_is_not_kept(cache):
    """What cannot be told to which text it belongs comes back as from the plain model."""
    model = accelerate(Forgetful(), cache=cache)
    for _ in range(2):
        assert model.embed_documents(TEXTS) == Forgetful().embed_documents(TEXTS)
    assert cache.stats().hits == {}


def test_arguments_beside_the_texts(cache):
    """Those that decide the vectors are told apart, those that decide the batches are not."""
    model = accelerate(Model(), cache=cache)
    for how in ({}, {"chunk_size": 7}, {"batch_size": 7}):
        assert model.embed_documents(["a"], **how) == float32(Model().embed_documents(["a"]))
    assert len(model._sent) == 1
    for _ in range(2):
        for task in ("find", "cluster"):
            found = model.embed_documents(["a"], task_type=task)
            assert found == float32(Model().embed_documents(["a"], task_type=task))
            found = model.embed_query("a", task_type=task)
            assert found == float32(Model().embed_query("a", task_type=task))
    assert len(model._sent) == 5


class Placed(Model):
    """Takes its arguments by place, too."""

    def embed_documents(self, texts, task_type="", chunk_size=None):
        return super().embed_documents(texts, task_type=task_type)


def test_arguments_by_place(cache):
    """An argument is the same however it is given."""
    model = accelerate(Placed(), cache=cache)
    for task in ("find", "cluster"):
        expected = float32(Placed().embed_documents(["a"], task))
        assert model.embed_documents(["a"], task, 7) == expected
        assert model.embed_documents(["a"], task, chunk_size=8) == expected
        assert model.embed_documents(["a"], task_type=task) == expected
    assert len(model._sent) == 2


def test_arguments_about_each_text_go_past_the_cache(cache):
    """A list of titles belongs to the texts as they were given together."""
    model = accelerate(Model(), cache=cache)
    for _ in range(2):
        found = model.embed_documents(TEXTS, titles=["a", "b", "c"])
        assert found == Model().embed_documents(TEXTS)
    assert model._sent == TEXTS * 2
    assert cache.stats().bypasses == {"key": 2}


# -- whose vectors they are ------------------------------------------------------------------------


def test_settings_are_told_apart(cache):
    """Another model, or the same one with a setting changed, has vectors of its own."""
    model = accelerate(Model(), cache=cache)
    first = model.embed_query("a")
    other = accelerate(Model(model_name="other"), cache=cache)
    changed = model.model_copy(update={"model_name": "changed"})
    vectors = [first, other.embed_query("a"), changed.embed_query("a")]
    model.model_name = "other"
    assert model.embed_query("a") == vectors[1]
    assert vectors[0] != vectors[1] != vectors[2]
    assert cache.stats().misses == 3


def test_plain_objects_are_told_apart_by_their_attributes(cache):
    """Another seed is another model, though it is of the same class."""
    one, two = (accelerate(HashEmbeddings(dim=8, seed=seed), cache=cache) for seed in (0, 1))
    assert one.embed_query("a") != two.embed_query("a")
    assert accelerate(HashEmbeddings(dim=8), cache=cache).embed_query("a") == one.embed_query("a")
    assert cache.stats().misses == 2


def test_a_model_that_cannot_be_told_apart_needs_an_identity(cache):
    """Two whose settings are hidden could share vectors, so the user has to name them."""
    hidden = Given([0.5])
    hidden.client = object()
    with pytest.raises(ConfigurationError, match="identity"):
        accelerate(hidden, cache=cache)
    named = accelerate(hidden, cache=cache, identity="v1")
    assert named.embed_query("a") == named.embed_query("a") == [0.5]
    hidden.answer = [0.25]
    assert accelerate(hidden, cache=cache, identity="v2").embed_query("a") == [0.25]
    assert accelerate(hidden).embed_query("a") is hidden.answer


def test_secrets_are_in_no_key_and_tenants_are_told_apart(tmp_path):
    """The key of an account decides nothing about a vector; a namespace parts its users."""
    with MultiLevelCache.open(tmp_path) as cache:
        for secret in ("sk-first-secret", "sk-second-secret"):
            accelerate(Local(api_key=secret), cache=cache).embed_query("a")
        assert cache.stats().misses == 1
        accelerate(Local(api_key="sk-none"), cache=cache, namespace="other").embed_query("a")
        assert cache.stats().misses == 2
        accelerate(Local(api_key="sk-none", dimensions=8), cache=cache).embed_query("a")
        accelerate(Local(api_key="sk-none", model="other"), cache=cache).embed_query("a")
        assert cache.stats().misses == 4
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert len(kept) > 0
    assert b"secret" not in kept


# -- faults and company ----------------------------------------------------------------------------


def test_errors_are_the_models_own(call, cache):
    """They reach the caller as they are, and are not kept."""
    error = ConnectionError("the provider is down")
    model = accelerate(Given(error), cache=cache, identity="down")
    for _ in range(2):
        with pytest.raises(ConnectionError) as caught:
            call(model)
        assert caught.value is error
    model.answer = [0.5]
    assert call(model) in ([0.5], [[0.5]] * 3)


async def test_the_same_query_at_the_same_time_is_sent_once(cache):
    """Ten callers wait for one vector."""
    model = accelerate(Native(), cache=cache)
    vectors = await asyncio.gather(*(model.aembed_query("a") for _ in range(10)))
    assert len(model._sent) == 1
    assert vectors == [float32(Model().embed_query("a"))] * 10
    assert len({id(vector) for vector in vectors}) == 10


def test_threads_share_one_model(cache):
    """Many threads at once get the right vectors."""
    model, wrong = accelerate(Model(), cache=cache), []

    def ask(at):
        texts = [TEXTS[at % 3], f"text {at % 5}", TEXTS[at % 2]]
        if model.embed_documents(texts) != float32(Model().embed_documents(texts)):
            wrong.append(at)

    threads = [threading.Thread(target=ask, args=(at,)) for at in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert cache.stats().lookups >= 48


def test_a_ttl_policy_sees_text_and_vector(cache):
    """It is shown what was asked and the vector that came."""
    seen = []

    def policy(text, vector):
        seen.append((text, vector))
        return 60

    model = accelerate(Model(), cache=cache, ttl=policy)
    query = model.embed_query("a")
    assert seen == [("a", query)]
    documents = model.embed_documents(["b", "c"])
    assert seen[1:] == [("b", documents[0]), ("c", documents[1])]


def test_spans_tell_how_many_texts_were_sent(cache, spans):
    """One span of the stage per call, and none of the texts in it."""
    model = accelerate(Model(), cache=cache)
    model.embed_query("a secret")
    model.embed_documents(["a secret", "b", "b"])
    model.embed_documents(["a secret", "c"])
    told = [one for one in spans.get_finished_spans() if one.name == "embed"]
    counts = [
        (one.attributes.get("ragaccel.items.count"), one.attributes.get("ragaccel.items.sent"))
        for one in told
    ]
    assert counts == [(None, None), (3, 2), (2, 1)]
    assert told[0].attributes["ragaccel.cache.hit"] is False
    assert "secret" not in "".join(str(one.to_json()) for one in spans.get_finished_spans())


def test_it_works_below_langchains_own_parts(cache):
    """`CacheBackedEmbeddings` and a vector store give what they give over the plain model."""
    fast = accelerate(HashEmbeddings(dim=8), cache=cache)
    backed = CacheBackedEmbeddings.from_bytes_store(
        fast, ByteStore(cache), namespace="tests", key_encoder="sha256"
    )
    assert backed.embed_documents(TEXTS) == backed.embed_documents(TEXTS)
    assert backed.embed_documents(TEXTS) == float32(HASH.embed_documents(TEXTS))
    store = CompressedVectorStore.from_texts(TEXTS, fast)
    assert [one.page_content for one in store.similarity_search("pear", 1)] == ["green pear"]
    store.close()


# -- what it is ------------------------------------------------------------------------------------


def test_it_is_of_the_same_class(plain, fast):
    """Its class, names and printed form are the plain model's, and `unwrap` gives that back."""
    assert isinstance(fast, type(plain))
    for name in ("__name__", "__qualname__", "__module__", "__doc__"):
        assert getattr(type(fast), name) == getattr(type(plain), name)
    assert unwrap(fast) is plain
    if isinstance(plain, BaseModel):
        assert repr(fast) == repr(plain)
        assert fast.model_dump() == plain.model_dump()
        assert fast.model_fields_set == plain.model_fields_set


def test_langchains_defaults_stay_langchains():
    """A model without async methods of its own is asked through LangChain's."""
    for made, base in ((Model, Embeddings), (Native, Native)):
        fast = type(accelerate(made()))
        assert (fast.aembed_query is base.aembed_query) == (base is Embeddings)


@pytest.mark.parametrize("name", ["theirs", "plain object", "own", "own async"])
def test_copies_stay_accelerated(name, call, cache):
    """Copies and pickles keep class, options and, where they share the cache, the entries."""
    plain = MODELS[name]()
    model = accelerate(plain, cache=cache)
    expected = call(model)
    copies = [copy.copy(model), copy.deepcopy(model)]
    if isinstance(model, BaseModel):
        copies += [model.model_copy(), model.model_copy(deep=True)]
    misses = cache.stats().misses
    for twin in copies:
        assert type(twin) is type(model)
        assert call(twin) == expected
    assert cache.stats().misses == misses
    back = pickle.loads(pickle.dumps(model))
    assert type(back) is type(model)
    assert call(back) == expected == float32(call(plain))


class _Accelerated:
    """What the conformance suites are given: a class whose objects are wrapped."""

    @pytest.fixture(autouse=True)
    def _cached(self):
        with MultiLevelCache.open() as self.cache:
            yield

    @property
    def embeddings_class(self):
        return lambda **fields: accelerate(DeterministicFakeEmbedding(**fields), cache=self.cache)

    @property
    def embedding_model_params(self):
        return {"size": 6}


class TestUnits(_Accelerated, EmbeddingsUnitTests):
    """LangChain's unit suite."""


class TestIntegration(_Accelerated, EmbeddingsIntegrationTests):
    """LangChain's integration suite."""
