"""An accelerated LlamaIndex embedding model is the plain one, plus the cache.

The matrix: every sort of model x every public call x plain, miss and hit x everything that a user
or the framework does with a model.
"""

from __future__ import annotations

import asyncio
import copy
import os
import pickle
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_index.core import MockEmbedding, Settings, VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload
from llama_index.core.embeddings import MockMultiModalEmbedding
from llama_index.core.embeddings.multi_modal_base import MultiModalEmbedding
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.ingestion.pipeline import get_transformation_hash
from llama_index.core.rate_limiter import BaseRateLimiter
from llama_index.core.schema import Document, TextNode
from llama_index.core.storage.kvstore import SimpleKVStore
from llama_index.embeddings.openai import OpenAIEmbedding
from pydantic import PrivateAttr

from ragaccel import MultiLevelCache, accelerate, unwrap
from ragaccel.errors import ConfigurationError
from ragaccel.wrapping.fingerprint import fingerprint
from tests.llamaindex.embeddings import TEXTS, HashEmbedding
from tests.llamaindex.recorders import CallbackRecorder, recording

QUERY = TEXTS[5]
HASH = HashEmbedding()


class Native(HashEmbedding):
    """Has every method of its own, embeds a query otherwise than a text, and keeps what it got.

    `sent` lists what it was sent, call by call; clones share the list.
    """

    instruction: str = "find"
    _sent: list = PrivateAttr(default_factory=list)

    @property
    def sent(self) -> list:
        return self._sent

    def _get_query_embedding(self, query):
        self._sent.append(query)
        return super()._get_text_embedding(f"{self.instruction} {query}")

    async def _aget_query_embedding(self, query):
        await asyncio.sleep(0)
        return self._get_query_embedding(query)

    def _get_text_embedding(self, text):
        self._sent.append(text)
        return super()._get_text_embedding(text)

    async def _aget_text_embedding(self, text):
        await asyncio.sleep(0)
        return self._get_text_embedding(text)

    def _get_text_embeddings(self, texts):
        self._sent.append(tuple(texts))
        return [HashEmbedding._get_text_embedding(self, text) for text in texts]

    async def _aget_text_embeddings(self, texts):
        await asyncio.sleep(0)
        return self._get_text_embeddings(texts)


class Pictures(MultiModalEmbedding):
    """Embeds images by their bytes, from where it finds them."""

    _sent: list = PrivateAttr(default_factory=list)

    def _get_query_embedding(self, query):
        return HASH._get_text_embedding(f"query {query}")

    async def _aget_query_embedding(self, query):
        return self._get_query_embedding(query)

    def _get_text_embedding(self, text):
        return HASH._get_text_embedding(text)

    def _get_image_embedding(self, img_file_path):
        self._sent.append(img_file_path)
        if isinstance(img_file_path, BytesIO):
            data = img_file_path.read()
        else:
            data = Path(img_file_path).read_bytes()
        return HASH._get_text_embedding(f"image {data!r}")

    async def _aget_image_embedding(self, img_file_path):
        await asyncio.sleep(0)
        return self._get_image_embedding(img_file_path)


MODELS = {
    "defaults": HashEmbedding,
    "native": Native,
    "mock": lambda: MockEmbedding(embed_dim=3),
    "mock for images": lambda: MockMultiModalEmbedding(embed_dim=3),
    "images": Pictures,
}


@pytest.fixture(params=MODELS)
def plain(request):
    """A model of each sort."""
    return MODELS[request.param]()


CALLS = {
    "query": lambda model: model.get_query_embedding(QUERY),
    "async query": lambda model: asyncio.run(model.aget_query_embedding(QUERY)),
    "queries": lambda model: model.get_agg_embedding_from_queries([QUERY, TEXTS[0]]),
    "text": lambda model: model.get_text_embedding(QUERY),
    "async text": lambda model: asyncio.run(model.aget_text_embedding(QUERY)),
    "texts": lambda model: model.get_text_embedding_batch([*TEXTS, QUERY]),
    "async texts": lambda model: asyncio.run(model.aget_text_embedding_batch([*TEXTS, QUERY])),
    "nodes": lambda model: [one.embedding for one in model([TextNode(text=one) for one in TEXTS])],
    "async nodes": lambda model: [
        one.embedding for one in asyncio.run(model.acall([TextNode(text=one) for one in TEXTS]))
    ],
}


@pytest.fixture(params=CALLS)
def call(request):
    """Each public call."""
    return CALLS[request.param]


def rounded(answer, precision=np.float32):
    """A vector, or vectors, as the cache keeps them."""
    return np.asarray(answer).astype(precision).tolist()


def bits(answer):
    """Vectors as they are, to the last bit."""
    return np.asarray(answer, dtype=np.float64).tobytes()


# -- plain, miss, hit ------------------------------------------------------------------------------


def test_a_vector_is_equal(plain, call, cache):
    """A miss gives what a hit gives, to the last bit: the model's own vector in the precision."""
    fast = accelerate(plain, cache=cache)
    if call is CALLS["queries"]:
        right = np.mean(rounded([plain.get_query_embedding(one) for one in (QUERY, TEXTS[0])]), 0)
    else:
        right = rounded(call(plain))
    assert bits(call(fast)) == bits(right)
    missed = cache.stats().misses
    assert 1 <= missed <= len(TEXTS)
    for _ in range(2):
        assert bits(call(fast)) == bits(right)
    stats = cache.stats()
    assert (stats.misses, stats.bypasses) == (missed, {})
    assert stats.hits["memory"] >= 2 * missed


def test_vectors_are_the_callers_own(plain, cache):
    """They are lists of Python's floats, and changing one changes nothing for the next caller."""
    fast = accelerate(plain, cache=cache)
    right = rounded(plain.get_text_embedding_batch([QUERY, *TEXTS]))
    for _ in range(3):
        found = fast.get_text_embedding_batch([QUERY, *TEXTS])
        assert found == right
        assert {type(vector) for vector in found} == {list}
        assert {type(number) for vector in found for number in vector} == {float}
        for vector in found:
            vector[0] = 7.0
            vector.pop()


def test_faces_share_their_entries(cache):
    """Single texts, batches, and their async twins find what any of them has kept."""
    plain = Native()
    fast = accelerate(plain, cache=cache)
    faces = [
        lambda: [fast.get_text_embedding(text) for text in TEXTS],
        lambda: fast.get_text_embedding_batch(list(TEXTS)),
        lambda: [asyncio.run(fast.aget_text_embedding(text)) for text in TEXTS],
        lambda: asyncio.run(fast.aget_text_embedding_batch(list(TEXTS))),
    ]
    for first in faces:
        cache.invalidate(everything=True)
        plain.sent.clear()
        right = first()
        sent = len(plain.sent)
        for face in faces:
            assert bits(face()) == bits(right)
        assert len(plain.sent) == sent
    plain.sent.clear()
    assert asyncio.run(fast.aget_query_embedding(QUERY)) == fast.get_query_embedding(QUERY)
    assert plain.sent == [QUERY]


def test_queries_and_texts_do_not_meet(cache):
    """A model that embeds them differently gives each its own vector."""
    plain = Native()
    fast = accelerate(plain, cache=cache)
    for _ in range(2):
        assert fast.get_query_embedding(QUERY) == rounded(plain.get_query_embedding(QUERY))
        assert fast.get_text_embedding(QUERY) == rounded(plain.get_text_embedding(QUERY))
    assert cache.stats().misses == 2


@given(
    st.lists(st.lists(st.sampled_from([*TEXTS, "", " "]), max_size=9), max_size=4),
    st.integers(1, 4),
)
def test_a_text_is_sent_once(batches, size):
    """Whatever was asked before, only new texts are sent, each once, and the order is kept."""
    plain = Native(embed_batch_size=size)
    with MultiLevelCache.open() as cache:
        fast = accelerate(plain, cache=cache)
        for texts in batches:
            assert fast.get_text_embedding_batch(texts) == [
                rounded(HASH.get_text_embedding(text)) for text in texts
            ]
        sent = [text for batch in plain.sent for text in batch]
        assert sorted(sent) == sorted({text for texts in batches for text in texts})


def test_without_a_cache_it_is_the_models_own_answer(plain, call):
    """It only traces: nothing is rounded."""
    assert bits(call(accelerate(plain))) == bits(call(plain))


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_the_precision_is_the_users(precision, cache):
    """A coarser one is another entry, and what a miss gives is what a hit gives."""
    plain = HashEmbedding()
    accelerate(plain, cache=cache).get_query_embedding(QUERY)
    fast = accelerate(plain, cache=cache, precision=precision)
    right = rounded(plain.get_query_embedding(QUERY), precision)
    assert fast.get_query_embedding(QUERY) == fast.get_query_embedding(QUERY) == right
    assert cache.stats().misses == (1 if precision == "float32" else 2)


# -- what LlamaIndex tells -------------------------------------------------------------------------


def told(model, call):
    """Everything that a call tells listeners: events with their vectors, callbacks and spans."""
    recorder = PayloadRecorder()
    model.callback_manager = CallbackManager([recorder])
    with recording() as made:
        call(model)
    assert not made.open + made.dropped
    events = [
        (type(one).__name__, getattr(one, "model_dict", None), getattr(one, "chunks", None))
        for one in made.events
    ]
    vectors = [rounded(one.embeddings) for one in made.events if hasattr(one, "embeddings")]
    return (events, vectors, recorder.told), made.tree


def above(tree):
    """The spans of public methods."""
    return tuple(
        (name, above(below)) for name, below in tree if "._get" not in name and "._aget" not in name
    )


class PayloadRecorder(CallbackRecorder):
    """Keeps what legacy callbacks tell of an embedding."""

    def on_event_start(self, event_type, payload=None, event_id="", parent_id="", **_):
        assert event_type == CBEventType.EMBEDDING
        self.told.append(("start", payload))
        return event_id

    def on_event_end(self, event_type, payload=None, event_id="", **_):
        vectors = rounded(payload[EventPayload.EMBEDDINGS])
        self.told.append(("end", payload[EventPayload.CHUNKS], vectors))


def test_events_callbacks_and_spans(plain, call, cache):
    """A miss tells all that the plain model tells; a hit all but the spans below the call."""
    fast = accelerate(plain, cache=cache)
    its, miss, hit = told(plain, call), told(fast, call), told(fast, call)
    assert its[0][0]
    assert its[0][2]
    assert miss[0] == hit[0] == its[0]
    assert hit[1] == above(its[1])
    if call not in (CALLS["texts"], CALLS["async texts"]):  # one is asked twice, and sent once
        assert miss[1] == its[1]


@pytest.mark.parametrize("is_batch", [False, True])
def test_our_stage_tells_of_hits(is_batch, cache, span_exporter):
    """Our own span says whether anything was sent."""
    fast = accelerate(HashEmbedding(), cache=cache)
    for is_hit in (False, True):
        span_exporter.clear()
        if is_batch:
            fast.get_text_embedding_batch([*TEXTS, QUERY])
        else:
            fast.get_text_embedding(QUERY)
        (span,) = [one for one in span_exporter.get_finished_spans() if one.name == "embed"]
        assert span.attributes["ragaccel.component"] == "HashEmbedding"
        if is_batch:
            assert span.attributes["ragaccel.items.count"] == 7
            assert span.attributes["ragaccel.items.sent"] == (0 if is_hit else 6)
        else:
            assert span.attributes["ragaccel.cache.hit"] == is_hit


# -- what it is ------------------------------------------------------------------------------------


def openai(**changes):
    return OpenAIEmbedding(
        **{"api_key": "sk-very-secret", "api_base": "http://none.invalid"} | changes
    )


@pytest.mark.parametrize("made", [*MODELS.values(), openai], ids=[*MODELS, "openai"])
def test_it_is_of_the_same_class_and_dumps_the_same(made, cache):
    """Nothing that is written or printed shows that it was wrapped."""
    plain = made()
    fast = accelerate(plain, cache=cache)
    assert isinstance(fast, type(plain))
    for name in ("__name__", "__qualname__", "__module__", "__doc__"):
        assert getattr(type(fast), name) == getattr(type(plain), name)
    assert fast.class_name() == plain.class_name()
    assert repr(fast) == repr(plain)
    assert fast.to_dict() == plain.to_dict()
    assert fast.to_json() == plain.to_json()
    assert fast.to_payload() == plain.to_payload()
    assert fast.model_dump() == plain.model_dump()
    assert fast.model_fields_set == plain.model_fields_set
    assert unwrap(fast) is plain
    assert "ragaccel_state_" not in vars(plain)
    again = type(plain).from_dict(fast.to_dict())
    assert again.to_dict() == plain.to_dict()


COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "model_copy": lambda one: one.model_copy(),
    "deep model_copy": lambda one: one.model_copy(deep=True),
    "pickle": lambda one: pickle.loads(pickle.dumps(one)),
}


@pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)
def test_copies_share_the_entries(plain, duplicate, tmp_path):
    """However it is copied, it has the class, the cache and the entries of the first."""
    with MultiLevelCache.open(tmp_path) as cache:
        fast = accelerate(plain, cache=cache)
        right = fast.get_query_embedding(QUERY)
        twin = duplicate(fast)
        assert type(twin) is type(fast)
        assert type(unwrap(twin)) is type(plain)
        with recording() as made:
            assert twin.get_query_embedding(QUERY) == right
        ((_, below),) = made.tree
        assert below == ()
        assert twin.to_dict() == plain.to_dict()


@pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)
def test_copies_of_openais_model(duplicate, tmp_path):
    """A provider's model keeps its key and its settings, and shows neither in the cache."""
    with MultiLevelCache.open(tmp_path) as cache:
        twin = duplicate(accelerate(openai(), cache=cache))
        assert twin.to_dict() == openai().to_dict()
        assert twin._query_engine == openai()._query_engine
        assert type(unwrap(twin)) is OpenAIEmbedding
        assert fingerprint(twin) == fingerprint(openai())


# -- what decides the vector is in the key ---------------------------------------------------------


def test_settings_are_told_apart(cache):
    """Two models never share a vector, nor does one whose settings change."""
    models = [
        HashEmbedding(),
        HashEmbedding(seed=1),
        HashEmbedding(dim=32),
        HashEmbedding(model_name="another", seed=1),
        Native(),
        Native(instruction="look for"),
    ]
    for _ in range(2):
        for plain in models:
            fast = accelerate(plain, cache=cache)
            assert fast.get_query_embedding(QUERY) == rounded(plain.get_query_embedding(QUERY))
    assert cache.stats().misses == len(models)
    fast = accelerate(models[0], cache=cache)
    for seed in (1, 0):
        fast.seed = seed
        right = rounded(HashEmbedding(seed=seed).get_query_embedding(QUERY))
        assert fast.get_query_embedding(QUERY) == right
    assert cache.stats().misses == len(models)


HOW = {
    "embed_batch_size": 3,
    "num_workers": 4,
    "callback_manager": CallbackManager([CallbackRecorder()]),
    "embeddings_cache": SimpleKVStore(),
}


@pytest.mark.parametrize("name", HOW)
def test_how_texts_are_sent_does_not_matter(name, cache):
    """Settings that change no vector are not in the key."""
    accelerate(HashEmbedding(), cache=cache).get_query_embedding(QUERY)
    accelerate(HashEmbedding(**{name: HOW[name]}), cache=cache).get_query_embedding(QUERY)
    assert (cache.stats().misses, cache.stats().hits) == (1, {"memory": 1})


def test_openais_settings():
    """Model, mode, size, place and headers are told apart; keys and time-outs are not."""
    plain = fingerprint(openai())
    others = [
        openai(model="text-embedding-3-small"),
        openai(model="text-embedding-3-small", dimensions=64),
        openai(model="davinci"),
        openai(model="davinci", mode="similarity"),
        openai(model_name="another"),
        openai(api_base="http://other.invalid"),
        openai(additional_kwargs={"user": "one"}),
        openai(default_headers={"X-Model-Version": "2"}),
        openai(default_headers={"X-Model-Version": "3"}),
    ]
    assert len({plain, *map(fingerprint, others)}) == len(others) + 1
    for changes in (
        {"api_key": "sk-another"},
        {"default_headers": {"Authorization": "secret", "X-Api-Key": "sk", "Cookie": "me"}},
        {"timeout": 1.0, "max_retries": 0, "reuse_client": False},
    ):
        assert fingerprint(openai(**changes)) == plain


def test_a_client_that_was_made_changes_nothing():
    """Providers make their clients at the first call."""
    plain = openai()
    before = fingerprint(plain)
    with plain._get_client():
        assert fingerprint(plain) == before


class Opaque(HashEmbedding):
    """Holds something that nobody can see into."""

    weights: object = None


def test_what_cannot_be_seen_needs_an_identity(cache):
    """The user names it, and what can be seen still counts."""
    with pytest.raises(ConfigurationError, match="identity="):
        accelerate(Opaque(weights=object()), cache=cache)
    for seed in (0, 1, 0, 1):
        plain = Opaque(weights=object(), seed=seed)
        fast = accelerate(plain, cache=cache, identity="mine")
        assert fast.get_query_embedding(QUERY) == rounded(plain.get_query_embedding(QUERY))
    assert (cache.stats().misses, cache.stats().hits) == (2, {"memory": 2})


def test_tenants_do_not_meet(cache):
    """Two namespaces share nothing."""
    for tenant in ("a", "b"):
        accelerate(HashEmbedding(), cache=cache, namespace=tenant).get_text_embedding(QUERY)
    assert cache.stats().misses == 2


def test_no_secret_and_no_text_is_in_the_cache(tmp_path):
    """Neither the model's key nor what is embedded can be read off the disk."""

    class Secret(HashEmbedding):
        api_key: str = "sk-very-secret"

    with MultiLevelCache.open(tmp_path) as cache:
        accelerate(Secret(), cache=cache).get_text_embedding("my diagnosis")
    written = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert b"sk-very-secret" not in written
    assert b"my diagnosis" not in written
    assert written


# -- answers that are none -------------------------------------------------------------------------


class Given(BaseEmbedding):
    """Gives what it was told to."""

    _answer: object = PrivateAttr(default=None)

    def giving(self, answer):
        self._answer = answer
        return self

    def _get_text_embedding(self, text):
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer

    def _get_query_embedding(self, query):
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query):
        return self._get_text_embedding(query)


@pytest.mark.parametrize(
    "answer", [[float("nan"), 1.0], [1e300], [[1.0], [2.0]], ["one"], None, [1.0, None]], ids=repr
)
def test_what_is_no_vector_is_given_as_it_is(answer, cache):
    """It is the model's affair, each time, and is not kept."""
    fast = accelerate(Given().giving(answer), cache=cache)
    for _ in range(2):
        assert fast._get_query_embedding(QUERY) is answer
        assert fast._get_text_embeddings([QUERY])[0] is answer
    assert cache.stats().hits == {}


@pytest.mark.parametrize("error", [ValueError("no"), TimeoutError(), StopIteration()], ids=repr)
def test_errors_are_the_models_own(error, cache):
    """The very exception is raised, and the next call asks again."""
    fast = accelerate(Given().giving(error), cache=cache)
    for call in (
        lambda: fast.get_query_embedding(QUERY),
        lambda: fast.get_text_embedding_batch([QUERY, *TEXTS]),
        lambda: fast.get_text_embedding(QUERY),
    ):
        with pytest.raises(type(error)) as raised:
            call()
        assert raised.value is error
    fast.giving([0.5])
    assert fast.get_query_embedding(QUERY) == fast.get_text_embedding(QUERY) == [0.5]


class Short(HashEmbedding):
    """Gives one vector too few."""

    def _get_text_embeddings(self, texts):
        return super()._get_text_embeddings(texts)[1:]


def test_a_wrong_number_of_vectors_is_not_kept(cache):
    """It is given as the model gives it."""
    plain = Short()
    fast = accelerate(plain, cache=cache)
    for _ in range(2):
        assert fast.get_text_embedding_batch(list(TEXTS)) == plain.get_text_embedding_batch(
            list(TEXTS)
        )
    assert cache.stats().hits == {}


def test_texts_that_no_key_can_be_made_of(cache):
    """They go past the cache, with those beside them."""
    plain = Given().giving([0.5])
    fast = accelerate(plain, cache=cache)
    odd = object()
    assert fast._get_text_embedding(odd) == [0.5]
    assert fast._get_text_embeddings([odd, QUERY]) == [[0.5], [0.5]]
    assert fast._get_text_embeddings([]) == []
    assert (cache.stats().lookups, cache.stats().bypasses) == (0, {"key": 2})


# -- images ----------------------------------------------------------------------------------------


@pytest.fixture
def picture(tmp_path):
    """An image file."""
    path = tmp_path / "cat.png"
    path.write_bytes(b"a cat")
    return path


IMAGE_CALLS = {
    "image": lambda model, image: model.get_image_embedding(image),
    "async image": lambda model, image: asyncio.run(model.aget_image_embedding(image)),
    "images": lambda model, image: model.get_image_embedding_batch([image])[0],
    "async images": lambda model, image: asyncio.run(model.aget_image_embedding_batch([image]))[0],
}


@pytest.fixture(params=IMAGE_CALLS)
def look(request):
    """Each public call with an image."""
    return IMAGE_CALLS[request.param]


def test_an_image_is_its_bytes(picture, look, cache):
    """A path, another path and the bytes themselves share an entry; other bytes do not."""
    plain = Pictures()
    fast = accelerate(plain, cache=cache)
    same = picture.with_name("copy.jpg")
    same.write_bytes(b"a cat")
    right = rounded(look(plain, str(picture)))
    plain._sent.clear()
    for image in (str(picture), picture, str(same), BytesIO(b"a cat")):
        assert look(fast, image) == right
    assert len(plain._sent) == 1
    picture.write_bytes(b"a dog")
    assert look(fast, str(picture)) == rounded(look(plain, str(picture)))
    assert look(fast, BytesIO(b"a dog")) == rounded(look(plain, BytesIO(b"a dog")))
    assert cache.stats().misses == 2
    assert cache.stats().bypasses == {}


def test_a_stream_is_read_without_being_moved(look, cache):
    """A model that is asked finds it as it was, and where it begins to read is in the key."""
    plain = Pictures()
    fast = accelerate(plain, cache=cache)
    for start in (0, 2, 0, 2):
        mine, theirs = BytesIO(b"a cat"), BytesIO(b"a cat")
        mine.seek(start)
        theirs.seek(start)
        assert look(fast, mine) == rounded(look(plain, theirs))
    assert (cache.stats().misses, cache.stats().hits) == (2, {"memory": 2})
    assert mine.tell() == 2


def test_images_and_texts_do_not_meet(picture, cache):
    """Not even where a text is an image's path."""
    plain = Pictures()
    fast = accelerate(plain, cache=cache)
    for _ in range(2):
        assert fast.get_image_embedding(str(picture)) == rounded(
            plain.get_image_embedding(str(picture))
        )
        for name in ("get_text_embedding", "get_query_embedding"):
            right = rounded(getattr(plain, name)(str(picture)))
            assert getattr(fast, name)(str(picture)) == right
    assert cache.stats().misses == 3


def test_images_in_a_batch(picture, cache):
    """Each is sent once, and their order is kept."""
    plain = Pictures(embed_batch_size=10)
    fast = accelerate(plain, cache=cache)
    images = [str(picture), BytesIO(b"a dog"), picture, BytesIO(b"a dog"), BytesIO(b"a bird")]
    found = fast.get_image_embedding_batch(images)
    assert found == [
        rounded(HASH.get_text_embedding(f"image {data!r}"))
        for data in (b"a cat", b"a dog", b"a cat", b"a dog", b"a bird")
    ]
    assert len(plain._sent) == 3


def test_what_cannot_be_read_is_the_models_affair(tmp_path, look, cache):
    """It says what is wrong, as without a cache."""
    os.mkfifo(tmp_path / "pipe")
    closed = BytesIO()
    closed.close()
    for image in (str(tmp_path / "none.png"), str(tmp_path), "a\0b", closed, None, object()):
        raised = []
        for model in (Pictures(), accelerate(Pictures(), cache=cache)):
            with pytest.raises(Exception) as caught:
                look(model, image)
            raised.append((type(caught.value), str(caught.value)))
        assert raised[0] == raised[1]
    mock = accelerate(MockMultiModalEmbedding(embed_dim=3), cache=cache)
    assert look(mock, str(tmp_path / "pipe")) == [0.5, 0.5, 0.5]
    assert look(mock, "http://none.invalid/cat.png") == [0.5, 0.5, 0.5]
    assert cache.stats().lookups == 0
    assert cache.stats().bypasses == {"key": 8}


# -- LlamaIndex's own parts ------------------------------------------------------------------------


class Limiter(BaseRateLimiter):
    """Counts who waits."""

    def __init__(self):
        self.waited = []

    def acquire(self, num_tokens=0):
        self.waited.append("sync")

    async def async_acquire(self, num_tokens=0):
        self.waited.append("async")


@pytest.mark.parametrize("made", [HashEmbedding, Native])
@pytest.mark.parametrize("name", [name for name in CALLS if name != "queries"])
def test_the_rate_limiter_waits_for_misses_only(made, name, cache):
    """A call that is sent waits as it does without a cache; what is served does not."""
    plain = made(rate_limiter=Limiter())
    CALLS[name](plain)
    (expected,) = plain.rate_limiter.waited
    plain.rate_limiter.waited.clear()
    fast = accelerate(accelerate(plain, cache=cache), cache=cache)
    for _ in range(3):
        CALLS[name](fast)
    assert plain.rate_limiter.waited == [expected]
    CALLS[name](accelerate(plain))
    assert plain.rate_limiter.waited == [expected] * 2
    CALLS[name](plain)
    assert plain.rate_limiter.waited == [expected] * 3


@pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)
def test_copies_wait_for_misses_only(duplicate, tmp_path):
    """However a model is copied, its limiter waits once for what is sent, and for no hit."""
    with MultiLevelCache.open(tmp_path) as cache:
        twin = duplicate(accelerate(HashEmbedding(rate_limiter=Limiter()), cache=cache))
        for _ in range(2):
            twin.get_query_embedding(QUERY)
        assert twin.rate_limiter.inner.waited == ["sync"]


def test_a_cache_of_llamaindex_keeps_working(call, cache):
    """What it finds never reaches ours, and what it keeps is what we gave."""
    store = SimpleKVStore()
    store.put("here", {"so": "that LlamaIndex does not take it for none"}, collection="other")
    plain = Native(embeddings_cache=store)
    fast = accelerate(plain, cache=cache)
    if call is CALLS["queries"]:
        right = np.mean(rounded([HASH_QUERIES(one) for one in (QUERY, TEXTS[0])]), 0).tolist()
    else:
        right = rounded(call(Native()))
    assert bits(call(fast)) == bits(right)
    asked, sent = cache.stats().lookups, len(plain.sent)
    kept = store.get_all(collection="embeddings")
    assert kept
    assert bits(call(fast)) == bits(right)
    assert (cache.stats().lookups, len(plain.sent)) == (asked, sent)
    plain.embeddings_cache = None
    for text, vectors in kept.items():
        assert rounded(list(vectors.values())) == list(vectors.values()), text


HASH_QUERIES = Native().get_query_embedding


def test_ingestion_hashes_are_equal(plain, cache):
    """LlamaIndex's ingestion cache takes the wrapped model for the plain one."""
    nodes = [TextNode(text=text) for text in TEXTS]
    fast = accelerate(plain, cache=cache)
    assert get_transformation_hash(nodes, fast) == get_transformation_hash(nodes, plain)


def test_an_ingestion_pipeline_in_two_processes(tmp_path):
    """What one process embeds is on the disk for the next one."""
    documents = [Document(text=text, id_=text) for text in TEXTS]
    plain = HashEmbedding()
    with MultiLevelCache.open(tmp_path) as cache:
        fast = accelerate(plain, cache=cache)
        pipeline = IngestionPipeline(transformations=[fast], disable_cache=True)
        nodes = pipeline.run(documents=documents, num_workers=2)
        assert [one.embedding for one in nodes] == rounded(
            plain.get_text_embedding_batch([one.get_content("embed") for one in nodes])
        )
        with recording() as made:
            pipeline.run(documents=documents)
        assert "HashEmbedding._get_text_embedding" not in str(made.tree)


def test_an_index_over_it(nodes, cache):
    """Building and asking an index gives what the plain model gives, and the second time hits."""
    fast = accelerate(HashEmbedding(), cache=cache)
    right = VectorStoreIndex(nodes, embed_model=HashEmbedding()).as_retriever().retrieve(QUERY)
    for _ in range(2):
        index = VectorStoreIndex(copy.deepcopy(nodes), embed_model=fast)
        found = index.as_retriever().retrieve(QUERY)
        assert [one.node_id for one in found] == [one.node_id for one in right]
        assert [one.score for one in found] == pytest.approx([one.score for one in right], abs=1e-6)
    assert cache.stats().misses == len(nodes) + 1


def test_as_the_default_model(nodes, cache, monkeypatch):
    """`Settings` takes it, and what takes its model from there uses it."""
    monkeypatch.setattr(Settings, "_embed_model", None)
    fast = accelerate(HashEmbedding(), cache=cache)
    Settings.embed_model = fast
    assert Settings.embed_model is fast
    VectorStoreIndex(nodes).as_retriever().retrieve(QUERY)
    assert cache.stats().misses == len(nodes) + 1


def test_a_wrapped_retriever_keeps_its_entries(store, nodes, embed_model, cache):
    """It finds the same answers whether its embedding model is wrapped or not."""
    store.add(embed_model(nodes))
    retrievers = [
        VectorStoreIndex.from_vector_store(store, embed_model=model).as_retriever()
        for model in (embed_model, accelerate(embed_model, cache=cache))
    ]
    plain, fast = (accelerate(one, cache=cache) for one in retrievers)
    right = plain.retrieve(QUERY)
    misses = cache.stats().misses
    assert fast.retrieve(QUERY) == right
    assert cache.stats().misses == misses


async def test_the_same_text_at_the_same_time_is_sent_once(cache):
    """Who comes meanwhile waits for it."""
    plain = Native()
    fast = accelerate(plain, cache=cache)
    vectors = await asyncio.gather(*(fast.aget_query_embedding(QUERY) for _ in range(9)))
    assert vectors == [vectors[0]] * 9
    assert plain.sent == [QUERY]
