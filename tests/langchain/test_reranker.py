"""An accelerated reranker of LangChain does to its caller's documents what the plain one does.

The matrix: every sort of compressor x miss and hit x what came out, what became of the documents
that went in, and which of them are the same objects.
"""

from __future__ import annotations

import asyncio
import copy
import pickle
import time
from operator import itemgetter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_classic.retrievers.document_compressors import (
    CrossEncoderReranker,
    DocumentCompressorPipeline,
    LLMChainExtractor,
)
from langchain_core.cross_encoders import BaseCrossEncoder
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.language_models import FakeListLLM
from langchain_core.retrievers import BaseRetriever
from pydantic import BaseModel, PrivateAttr

from ragaccel import MultiLevelCache, accelerate, unwrap
from ragaccel.cache import MemoryLevel
from ragaccel.errors import ConfigurationError

QUERY = "red tree"
TEXTS = ("a blue sky", "the red tree", "a red plum", "the dark wood")


class Log:
    """What somebody was asked."""

    def __init__(self):
        self.asked = []


class Words(BaseCrossEncoder):
    """Scores a text by the words it shares with the query."""

    def __init__(self):
        self.log = Log()

    def score(self, text_pairs):
        self.log.asked += text_pairs
        return [float(len(set(one.split()) & set(two.split()))) for one, two in text_pairs]


class Compressor(BaseDocumentCompressor):
    """Ranks by the words that are shared with the query, and tells what it was asked."""

    top_n: int = 3
    _asked: list[str] = PrivateAttr(default_factory=list)

    def ranked(self, documents, query):
        self._asked.append(query)
        scores = Words().score([(query, one.page_content) for one in documents])
        best = sorted(zip(documents, scores, strict=True), key=itemgetter(1), reverse=True)
        return best[: self.top_n]

    def compress_documents(self, documents, query, callbacks=None):
        return [one for one, _ in self.ranked(documents, query)]


class Copying(Compressor):
    """Gives copies with a score, as the rerankers of providers do."""

    def compress_documents(self, documents, query, callbacks=None):
        found = []
        for one, score in self.ranked(documents, query):
            made = Document(one.page_content, metadata=copy.deepcopy(one.metadata))
            made.metadata["relevance_score"] = score
            found.append(made)
        return found


class Marking(Compressor):
    """Writes its score into the documents that it was given, with a number of numpy's."""

    def compress_documents(self, documents, query, callbacks=None):
        for one, score in self.ranked(documents, query):
            one.metadata["score"] = np.float32(score)
            one.metadata.pop("number", None)
            one.metadata["tags"].append("seen")
        return super().compress_documents(documents, query)


class Rewriting(Compressor):
    """Changes the texts, the ids and the metadata of what it was given."""

    def compress_documents(self, documents, query, callbacks=None):
        for one, score in self.ranked(documents, query):
            one.page_content = one.page_content.upper()
            one.id = f"{one.id}-{score}"
            one.metadata = {"score": score, **one.metadata}
        return [documents[0]]


class Shallow(Compressor):
    """Gives copies that share their metadata with what they are copies of."""

    def compress_documents(self, documents, query, callbacks=None):
        found = [one.model_copy() for one, _ in self.ranked(documents, query)]
        found[0].metadata["best"] = True
        found[0].page_content = "the best"
        return found


class Sorting(Compressor):
    """Sorts the list that it was given, and gives it back."""

    def compress_documents(self, documents, query, callbacks=None):
        best = super().compress_documents(documents, query)
        if isinstance(documents, list):
            documents[:] = best
        return documents


class Inventing(Compressor):
    """Adds a document of its own."""

    def compress_documents(self, documents, query, callbacks=None):
        best = super().compress_documents(documents, query)
        return [Document("made up", metadata={"by": ["me"]}, id="new"), *best, best[0]]


class Nothing(Compressor):
    """Finds that no document is worth keeping."""

    def compress_documents(self, documents, query, callbacks=None):
        self._asked.append(query)
        return []


class Native(Copying):
    """Has an asynchronous method of its own."""

    async def acompress_documents(self, documents, query, callbacks=None):
        await asyncio.sleep(0)
        return self.compress_documents(documents, query, callbacks)


class OldStyle(Compressor):
    """Takes no callbacks."""

    def compress_documents(self, documents, query):
        return [one for one, _ in self.ranked(documents, query)]

    async def acompress_documents(self, documents, query):
        return self.compress_documents(documents, query)


def extractor():
    """LangChain's own compressor that lets a model shorten each text."""
    return LLMChainExtractor.from_llm(FakeListLLM(responses=["shortened"]))


def pipeline():
    """LangChain's own compressor of several."""
    return DocumentCompressorPipeline(transformers=[Marking(), OldStyle(), Copying(top_n=2)])


COMPRESSORS = {
    "ranking": Compressor,
    "copying": Copying,
    "marking": Marking,
    "rewriting": Rewriting,
    "shallow": Shallow,
    "sorting": Sorting,
    "inventing": Inventing,
    "nothing": Nothing,
    "native": Native,
    "old": OldStyle,
    "cross-encoder": lambda: CrossEncoderReranker(model=Words(), top_n=2),
    "extractor": extractor,
    "pipeline": pipeline,
}
UNSEEN = ("cross-encoder", "extractor", "pipeline")  # what decides them is partly out of sight


def documents():
    """Four documents that nobody has changed yet."""
    return [
        Document(text, id=f"text-{at}", metadata={"number": at, "tags": text.split()})
        for at, text in enumerate(TEXTS)
    ]


def compress(compressor, docs, query=QUERY):
    return compressor.compress_documents(docs, query)


def acompress(compressor, docs, query=QUERY):
    return asyncio.run(compressor.acompress_documents(docs, query))


def account(call, compressor, docs=None):
    """Call a compressor, and tell all that became of the documents and what came out."""
    docs = documents() if docs is None else docs
    went_in = list(docs)
    dicts = [one.metadata for one in went_in]
    found = call(compressor, docs)
    return {
        "type": type(found),
        "is the list given": found is docs,
        "the list now": places(docs, went_in),
        "came out": [whole(one) for one in found],
        "which are": places(found, went_in),
        "whose metadata is": places([one.metadata for one in found], dicts),
        "went in": [whole(one) for one in went_in],
        "still with their metadata": places([one.metadata for one in went_in], dicts),
    }


def whole(document):
    metadata = [(key, type(value), value) for key, value in document.metadata.items()]
    return document.page_content, document.id, copy.deepcopy(metadata)


def places(things, among):
    """Return the place of each thing among others, by identity."""
    return [next((at for at, other in enumerate(among) if one is other), None) for one in things]


@pytest.fixture(params=COMPRESSORS)
def name(request):
    """A sort of compressor."""
    return request.param


@pytest.fixture
def plain(name):
    return COMPRESSORS[name]()


@pytest.fixture(params=["miss", "hit"])
def state(request):
    """Whether the cache knows the question."""
    return request.param


@pytest.fixture(params=[compress, acompress])
def call(request):
    """One of the two methods."""
    return request.param


@pytest.fixture
def fast(name, plain, state, call, cache):
    """The compressor accelerated, whose cache does not, or does, know the question."""
    made = accelerate(plain, cache=cache, identity=name if name in UNSEEN else None)
    if state == "hit":
        call(made, documents())
    return made


# -- what is done with the documents ---------------------------------------------------------------


def test_the_same_is_done(name, fast, state, call, cache):
    """What comes out, what becomes of what went in, and which objects they are."""
    assert account(call, fast) == account(call, COMPRESSORS[name]())
    stats = cache.stats()
    assert stats.misses == 1
    assert sum(stats.hits.values()) == (1 if state == "hit" else 0)
    assert stats.bypasses == {}


SHARING = {"copying": False, "shallow": True, "extractor": True}


@pytest.mark.parametrize("name", SHARING)
def test_what_copies_share_they_share_again(name, state, call, cache):
    """A list within the metadata of a copy is its caller's own where the compressor left it so."""
    for fast in (COMPRESSORS[name](), accelerate(COMPRESSORS[name](), cache=cache, identity=name)):
        if state == "hit":
            call(fast, documents())
        docs = documents()
        found = [one.metadata["tags"] for one in call(fast, docs)]
        shared = places(found, [one.metadata["tags"] for one in docs])
        assert [at is not None for at in shared] == [SHARING[name]] * len(found)


def test_a_copy_is_of_the_document_whose_metadata_it_shares(cache):
    """Of two that say the same."""
    script = [(1, "copy", True), (1, "mark", False)]
    for compressor in (Scripted(script=script), accelerate(Scripted(script=script), cache=cache)):
        for _ in range(2):
            told = account(compress, compressor, [Document("a"), Document("a")])
            assert told["whose metadata is"] == [1]
    assert cache.stats().hits == {"memory": 1}


def test_texts_are_not_kept_again(cache):
    """Of a copy is kept which document it is of."""
    fast = accelerate(Copying(), cache=cache)
    for _ in range(2):
        compress(fast, [Document("".join(map(str, range(at, at + 9999)))) for at in range(4)])
    assert cache.stats().hits == {"memory": 1}
    assert 0 < cache.stats().levels["memory"].bytes < 9999


OPERATIONS = {
    "copy": lambda one: one.model_copy(),
    "deep copy": lambda one: one.model_copy(deep=True),
    "anew": lambda one: Document(one.page_content, metadata=one.metadata, id=one.id),
    "shorter": lambda one: Document(one.page_content[:3], metadata=one.metadata),
    "foreign": lambda one: Document(f"new {one.page_content}", metadata={"new": [1, None]}),
    "mark": lambda one: one.metadata.update(mark=0.5),
    "mark first": lambda one: setattr(one, "metadata", {"first": True, **one.metadata}),
    "replace": lambda one: one.metadata.update(tags=["replaced"]),
    "own": lambda one: setattr(one, "metadata", dict(one.metadata)),
    "forget": lambda one: one.metadata.clear(),
    "rename": lambda one: setattr(one, "id", "renamed"),
    "unname": lambda one: setattr(one, "id", None),
    "rewrite": lambda one: setattr(one, "page_content", f"{one.page_content}!"),
}
STEPS = st.tuples(st.integers(0, 9), st.sampled_from(sorted(OPERATIONS)), st.booleans())
PILES = st.lists(
    st.tuples(
        st.sampled_from(["", "a", "b", "abc"]),
        st.sampled_from([None, "1", "2"]),
        st.dictionaries(
            st.sampled_from(["tags", "n", "x"]),
            st.one_of(
                st.none(), st.booleans(), st.integers(-2, 2), st.floats(allow_nan=False),
                st.text(max_size=2), st.lists(st.integers(0, 3), max_size=2),
            ),
            max_size=3,
        ),
    ),
    min_size=1,
    max_size=4,
)  # fmt: skip


class Scripted(BaseDocumentCompressor):
    """Does with documents what its script says."""

    script: list[tuple[int, str, bool]]
    gives_back: bool = False

    def compress_documents(self, documents, query, callbacks=None):
        at_hand, found = list(documents), []
        for at, operation, comes_out in self.script:
            one = at_hand[at % len(at_hand)]
            made = OPERATIONS[operation](one)
            if made is not None:
                at_hand.append(made)
            if comes_out and (made is not None or all(one is not other for other in found)):
                found.append(one if made is None else made)
        if self.gives_back:
            documents[:] = found
            return documents
        return found


@settings(deadline=None)
@given(PILES, st.lists(STEPS, max_size=8), st.booleans(), st.booleans())
def test_whatever_is_done_is_done_again(pile, script, gives_back, is_twice):
    """A compressor of any script does the same to other documents like those."""

    def docs():
        made = [Document(text, id=id_, metadata=copy.deepcopy(about)) for text, id_, about in pile]
        return [*made, made[0]] if is_twice else made

    plain = Scripted(script=script, gives_back=gives_back)
    expected = account(compress, plain, docs())
    with MultiLevelCache.open() as cache:
        fast = accelerate(Scripted(script=script, gives_back=gives_back), cache=cache)
        for _ in range(2):
            assert account(compress, fast, docs()) == expected
        assert sum(cache.stats().hits.values()) + cache.stats().bypasses.get("value", 0) >= 1


def test_results_are_the_callers_own(fast, call):
    """Changing what came out or went in changes nothing for the next caller."""
    expected = [whole(one) for one in call(fast, documents())]
    for _ in range(3):
        docs = documents()
        found = call(fast, docs)
        assert [whole(one) for one in found] == expected
        for one in (*found, *docs):
            one.page_content = "changed"
            one.metadata.clear()
        found.clear()


def test_without_a_cache_it_does_what_it_does(plain, name, call):
    """Only traced, a compressor is the plain one."""
    assert account(call, accelerate(plain)) == account(call, COMPRESSORS[name]())


@pytest.mark.parametrize("made", [Copying, Sorting])
def test_a_tuple_of_documents(made, cache, state):
    """It comes back itself where the compressor gives it back, and is no list elsewhere."""
    fast = accelerate(made(), cache=cache)
    if state == "hit":
        compress(fast, tuple(documents()))
    assert account(compress, fast, tuple(documents())) == account(
        compress, made(), tuple(documents())
    )
    assert sum(cache.stats().hits.values()) == (1 if state == "hit" else 0)


# -- what decides what is done ---------------------------------------------------------------------


def test_questions_and_documents_are_told_apart(cache):
    """Another query, order, text, id or metadata is another question."""
    fast = accelerate(Copying(), cache=cache)
    variants = [documents() for _ in range(6)]
    variants[1].reverse()
    variants[2][0].page_content = "the red tree and sky"
    variants[3][0].id = "another"
    variants[4][0].metadata["number"] = True
    variants[5][0].metadata = dict(reversed(variants[5][0].metadata.items()))
    for _ in range(2):
        for docs in variants:
            given = copy.deepcopy(docs)
            expected = [whole(one) for one in compress(Copying(), copy.deepcopy(docs))]
            assert [whole(one) for one in compress(fast, given)] == expected
        assert compress(fast, documents(), "dark")[0].page_content == "the dark wood"
    assert len(fast._asked) == 7


@pytest.mark.parametrize("operation", ["rename", "mark"])
def test_documents_that_are_one_are_told_apart_from_equal_ones(operation, cache):
    """What is done to one is done to the other where they are, or share, the same."""

    def docs(shared):
        one, two = Document("a", metadata={"n": 1}), Document("a", metadata={"n": 1})
        if shared == (operation == "mark"):
            two.metadata = one.metadata
        return [one, one if shared and operation == "rename" else two]

    fast = accelerate(Scripted(script=[(0, operation, True)]), cache=cache)
    for _ in range(2):
        for shared in (True, False):
            plain = Scripted(script=[(0, operation, True)])
            expected = account(compress, plain, docs(shared))
            assert account(compress, fast, docs(shared)) == expected
    assert cache.stats().misses == 2


def test_settings_are_told_apart(cache):
    """Another number of results, set from the start, in a copy or live."""
    fast = accelerate(Compressor(), cache=cache)
    assert len(compress(fast, documents())) == 3
    assert len(compress(fast.model_copy(update={"top_n": 2}), documents())) == 2
    fast.top_n = 1
    assert len(compress(fast, documents())) == 1
    assert len(compress(accelerate(Compressor(top_n=1), cache=cache), documents())) == 1
    assert cache.stats().misses == 3


def test_tenants_are_told_apart(cache):
    """A namespace has entries of its own."""
    for namespace in ("one", "two", "one"):
        compress(accelerate(Compressor(), cache=cache, namespace=namespace), documents())
    assert cache.stats().misses == 2


def test_a_document_that_was_struck_is_ranked_anew(cache):
    """What was made of a document goes when that is invalidated, by id or by source."""
    fast = accelerate(Compressor(), cache=cache)
    docs = documents()
    docs[0].metadata["source"] = "a.txt"
    for struck in ("text-3", "a.txt", "another"):
        compress(fast, copy.deepcopy(docs))
        cache.invalidate(documents=[struck])
    compress(fast, copy.deepcopy(docs))
    assert cache.stats().misses == 3


def test_a_compressor_that_cannot_be_told_apart_needs_an_identity(cache):
    """The encoder within it is out of sight."""
    with pytest.raises(ConfigurationError, match="identity"):
        accelerate(CrossEncoderReranker(model=Words()), cache=cache)


def test_arguments_reach_the_compressor(cache):
    """Those beside documents and query are handed on, and are told apart; callbacks are not."""

    class Choosing(Compressor):
        _heard: list = PrivateAttr(default_factory=list)

        def compress_documents(self, documents, query, callbacks=None, *, last=False):
            self._heard.append(callbacks)
            best = super().compress_documents(documents, query)
            return best[::-1] if last else best

    fast = accelerate(Choosing(), cache=cache)
    for last in (False, True, False, True):
        found = fast.compress_documents(documents(), QUERY, ["a handler"], last=last)
        assert (found[0].page_content == "the red tree") == (not last)
    fast.compress_documents(documents(), QUERY, callbacks=["another"], last=True)
    assert fast._heard == [["a handler"]] * 2


# -- what is not kept ------------------------------------------------------------------------------


class Mine(Document):
    """A document class of a user."""


class Turning(Compressor):
    """Gives what its user chooses."""

    gives: str

    def compress_documents(self, documents, query, callbacks=None):
        best = super().compress_documents(documents, query)
        made = Document("made")
        return {
            "a class of its own": lambda: [Mine("made"), *best],
            "a value that no cache takes": lambda: [Document("a", metadata={"odd": object()})],
            "a tuple": lambda: tuple(best),
            "one document twice": lambda: [made, made],
            "a shorter list than was given": lambda: [best[0]] if documents.pop() else [],
        }[self.gives]()


@pytest.mark.parametrize(
    "gives",
    [
        "a class of its own",
        "a value that no cache takes",
        "a tuple",
        "one document twice",
        "a shorter list than was given",
    ],
)
def test_what_could_not_be_done_again_is_not_kept(gives, call, cache):
    """It comes out as from the plain compressor, and is counted."""
    fast = accelerate(Turning(gives=gives), cache=cache)
    for _ in range(2):
        found = call(fast, documents())
        assert type(found) is (tuple if gives == "a tuple" else list)
        assert len(found) == len(call(Turning(gives=gives), documents()))
    assert len(fast._asked) == 2
    assert cache.stats().bypasses == {"value": 2}


def bare(text):
    """A document that has lost its metadata."""
    made = Document(text)
    made.metadata = None
    return made


@pytest.mark.parametrize(
    "odd",
    [
        bare("without metadata"),
        Mine("of a class of its own"),
        Document("with an object", metadata={"odd": object()}),
        Document("with an array", metadata={"odd": np.zeros(2)}),
        Document("with a number for a key", metadata={1: "odd"}),
    ],
    ids=lambda one: one.page_content,
)
def test_documents_that_no_key_can_be_made_of(odd, call, cache):
    """The call goes on without the cache, and is counted."""
    fast = accelerate(Compressor(top_n=9), cache=cache)
    for _ in range(2):
        found = call(fast, [*documents(), odd])
        assert found[-1] is odd
        assert len(found) == 5
    assert cache.stats().lookups == 0
    assert sum(cache.stats().bypasses.values()) == 2


def test_numbers_of_numpy_in_metadata_are_kept(cache):
    """Scores that an earlier stage left are part of the question, and come back with their type."""
    fast = accelerate(Copying(), cache=cache)
    for score in (np.float32(0.5), np.float64(0.5), 0.5, np.int64(2)):
        for _ in range(2):
            docs = documents()
            docs[1].metadata["score"] = score
            found = compress(fast, docs)[0].metadata["score"]
            assert found == score
            assert type(found) is type(score)
    assert cache.stats().misses == 4
    assert cache.stats().bypasses == {}


def test_errors_are_the_compressors_own(call, cache):
    """They reach the caller as they are, and are not kept."""
    error = ConnectionError("the provider is down")

    class Failing(Compressor):
        def compress_documents(self, documents, query, callbacks=None):
            raise error

    fast = accelerate(Failing(), cache=cache)
    for _ in range(2):
        with pytest.raises(ConnectionError) as caught:
            call(fast, documents())
        assert caught.value is error
    assert cache.stats().misses == 2


def test_no_documents_are_the_compressors_affair(call, cache):
    """Nothing is looked up for an empty list, or for what is no list."""
    fast = accelerate(Compressor(), cache=cache)
    assert call(fast, []) == []
    assert cache.stats().lookups == 0


def test_an_answer_is_not_made_anew_behind_the_callers_back():
    """A stale one is served, and the documents of its caller are left alone afterwards."""
    with MultiLevelCache([MemoryLevel()], ttl=0.05, stale_while_revalidate=600) as cache:
        fast = accelerate(Marking(), cache=cache)
        compress(fast, documents())
        time.sleep(0.1)
        docs = documents()
        compress(fast, docs)
        after = [whole(one) for one in docs]
        time.sleep(0.1)
        assert [whole(one) for one in docs] == after
        assert fast._asked == [QUERY, QUERY]
        assert cache.stats().hits == {"memory": 1}


# -- company ---------------------------------------------------------------------------------------


async def test_the_same_question_at_the_same_time_is_asked_once(cache):
    """Ten callers wait, and each has its own documents changed."""
    fast = accelerate(Native(), cache=cache)
    piles = [documents() for _ in range(10)]
    found = await asyncio.gather(*(fast.acompress_documents(pile, QUERY) for pile in piles))
    assert len(fast._asked) == 1
    assert len({id(one) for some in found for one in some}) == 30
    assert all([whole(one) for one in some] == [whole(one) for one in found[0]] for some in found)


class Fixed(BaseRetriever):
    """Finds the four documents."""

    def _get_relevant_documents(self, query, *, run_manager):
        return documents()


def test_a_retriever_that_compresses(cache):
    """LangChain's own retriever around it gives what it gives over the plain compressor."""
    plain = ContextualCompressionRetriever(base_compressor=Copying(), base_retriever=Fixed())
    fast = ContextualCompressionRetriever(
        base_compressor=accelerate(Copying(), cache=cache), base_retriever=Fixed()
    )
    for _ in range(2):
        assert fast.invoke(QUERY) == plain.invoke(QUERY)
    assert cache.stats().hits == {"memory": 1}


def test_one_wrapped_within_another(cache):
    """A pipeline of wrapped compressors looks up each of them, and does the same."""
    fast = DocumentCompressorPipeline(
        transformers=[
            accelerate(one, cache=cache) for one in (Marking(), OldStyle(), Copying(top_n=2))
        ]
    )
    expected = [whole(one) for one in compress(pipeline(), documents())]
    for call in (compress, acompress, compress):
        assert [whole(one) for one in call(fast, documents())] == expected
    assert cache.stats().misses == 3
    assert cache.stats().hits == {"memory": 6}


def test_a_ttl_policy_sees_query_and_result(cache):
    """It is shown the query and the documents that came out."""
    seen = []

    def policy(query, found):
        seen.append((query, [one.page_content for one in found]))
        return 60

    compress(accelerate(Compressor(top_n=1), cache=cache, ttl=policy), documents())
    assert seen == [(QUERY, ["the red tree"])]


def test_spans_tell_whether_it_was_a_hit(cache, spans):
    """One span of the stage for each call, and none of what was ranked in it."""
    fast = accelerate(Compressor(), cache=cache)
    for _ in range(2):
        compress(fast, documents())
    told = [one for one in spans.get_finished_spans() if one.name == "rerank"]
    assert [one.attributes["ragaccel.cache.hit"] for one in told] == [False, True]
    assert told[0].attributes["ragaccel.component"] == "Compressor"
    assert "red tree" not in "".join(one.to_json() for one in spans.get_finished_spans())


async def test_methods_that_call_each_other_are_one_stage(cache, spans):
    """The compressor's own calls are part of the one that is served."""
    fast = accelerate(Native(), cache=cache)
    for _ in range(2):
        await fast.acompress_documents(documents(), QUERY)
    assert [one.name for one in spans.get_finished_spans()].count("rerank") == 2


# -- what it is ------------------------------------------------------------------------------------


def test_it_is_of_the_same_class(plain, name, cache):
    """Its class, names, dumps and printed form are the plain compressor's."""
    fast = accelerate(plain, cache=cache, identity=name)
    assert isinstance(fast, type(plain))
    for one in ("__name__", "__qualname__", "__module__", "__doc__"):
        assert getattr(type(fast), one) == getattr(type(plain), one)
    assert fast.model_dump() == plain.model_dump()
    assert repr(fast) == repr(plain)
    assert fast.model_fields_set == plain.model_fields_set
    assert unwrap(fast) is plain
    is_default = type(plain).acompress_documents is BaseDocumentCompressor.acompress_documents
    default = BaseDocumentCompressor.acompress_documents
    assert (type(fast).acompress_documents is default) == is_default


@pytest.mark.parametrize("made", [Copying, Native])
def test_copies_stay_accelerated(made, call, cache):
    """Copies and pickles keep class and options and, where they share the cache, the entries."""
    fast = accelerate(made(), cache=cache)
    expected = [whole(one) for one in call(fast, documents())]
    for twin in (
        copy.copy(fast), copy.deepcopy(fast), fast.model_copy(), fast.model_copy(deep=True)
    ):  # fmt: skip
        assert type(twin) is type(fast)
        assert [whole(one) for one in call(twin, documents())] == expected
    assert cache.stats().misses == 1
    back = pickle.loads(pickle.dumps(fast))
    assert type(back) is type(fast)
    for _ in range(2):
        assert [whole(one) for one in call(back, documents())] == expected


# -- cross-encoders --------------------------------------------------------------------------------

PAIRS = [(QUERY, text) for text in TEXTS]


class Encoder(BaseModel, BaseCrossEncoder):
    """Gives its scores in the form that its user chooses."""

    form: str = "floats"
    _asked: list = PrivateAttr(default_factory=list)

    def score(self, text_pairs):
        text_pairs = list(text_pairs)
        self._asked += text_pairs
        scores = np.array(Words().score(text_pairs), dtype=np.float32)
        return {
            "floats": scores.tolist,
            "numpy's floats": lambda: list(scores),
            "an array": lambda: scores,
            "an array of labels": lambda: np.stack([scores, -scores], axis=1),
            "rows": lambda: list(np.stack([scores, -scores], axis=1)),
        }[self.form]()


FORMS = ("floats", "numpy's floats", "an array", "an array of labels", "rows")


@pytest.mark.parametrize("form", FORMS)
def test_scores_are_equal(form, state, cache):
    """The same numbers, of the same types, in the same container."""
    fast = accelerate(Encoder(form=form), cache=cache)
    if state == "hit":
        fast.score(PAIRS[:2])
        fast.score(PAIRS[2:])
    for options in ({}, {"encoder": fast}):
        expected = Encoder(form=form).score(PAIRS)
        found = options.get("encoder", accelerate(Encoder(form=form))).score(PAIRS)
        assert type(found) is type(expected)
        assert np.array_equal(found, expected)
        assert [type(one) for one in found] == [type(one) for one in expected]
        assert np.asarray(found).dtype == np.asarray(expected).dtype
    assert len(fast._asked) == 4
    assert cache.stats().bypasses == {}


@pytest.mark.parametrize("form", FORMS)
@settings(deadline=None)
@given(pairs=st.lists(st.lists(st.sampled_from(PAIRS), max_size=6), max_size=4))
def test_a_pair_is_sent_once(form, pairs):
    """Whatever is scored together, each pair gets its score, and nothing is sent again."""
    with MultiLevelCache.open() as cache:
        fast = accelerate(Encoder(form=form), cache=cache)
        for some in pairs:
            if some or form == "floats":
                assert np.array_equal(fast.score(some), Encoder(form=form).score(some))
        assert sorted(fast._asked) == sorted({one for some in pairs for one in some})


def test_scores_are_the_callers_own(cache):
    """Changing them changes nothing for the next caller."""
    fast = accelerate(Encoder(form="an array"), cache=cache)
    for _ in range(3):
        found = fast.score([*PAIRS, PAIRS[0]])
        assert found.tolist() == [0, 2, 1, 0, 0]
        found[:] = 9


def test_an_encoder_within_a_reranker(cache):
    """LangChain's own reranker over it ranks as over the plain encoder, and sends less."""
    fast = accelerate(Words(), cache=cache, identity="words")
    reranker = CrossEncoderReranker(model=fast, top_n=2)
    plain = CrossEncoderReranker(model=Words(), top_n=2)
    assert compress(reranker, documents()) == compress(plain, documents())
    assert compress(reranker, documents()[:3]) == compress(plain, documents()[:3])
    assert acompress(reranker, documents()) == compress(plain, documents())
    assert fast.log.asked == PAIRS


def test_encoders_are_told_apart(cache):
    """Another model has scores of its own; one out of sight needs an identity."""
    with pytest.raises(ConfigurationError, match="identity"):
        accelerate(Words(), cache=cache)
    for form in ("floats", "an array", "floats"):
        accelerate(Encoder(form=form), cache=cache).score(PAIRS[:1])
    assert cache.stats().misses == 2


def test_arguments_of_an_encoder_are_told_apart(cache):
    """They reach it, too."""

    class Scaling(Encoder):
        def score(self, text_pairs, *, scale=1.0):
            return [scale * one for one in super().score(text_pairs)]

    fast = accelerate(Scaling(), cache=cache)
    for scale in (1.0, 0.5, 1.0, 0.5):
        assert fast.score(PAIRS, scale=scale) == Scaling().score(PAIRS, scale=scale)
    assert len(fast._asked) == 8


def test_odd_pairs_and_scores_go_past_the_cache(cache):
    """The encoder is asked as ever, and it is counted."""

    class Odd(Encoder):
        def score(self, text_pairs):
            if self.form == "odd":
                return [object() for _ in text_pairs]
            return super().score(text_pairs)

    fast = accelerate(Odd(), cache=cache)
    for _ in range(2):
        assert fast.score([(QUERY, "\ud800")]) == [0.0]
        assert fast.score(pair for pair in PAIRS) == [0.0, 2.0, 1.0, 0.0]
    assert cache.stats().bypasses == {"key": 2}
    fast.form = "odd"
    for _ in range(2):
        assert [type(one) for one in fast.score(PAIRS)] == [object] * 4
    assert cache.stats().hits == {}
    assert cache.stats().bypasses["value"] == 8


def test_an_encoder_stays_what_it_is(cache):
    """Class, printed form, copies and pickles."""
    plain = Encoder()
    fast = accelerate(plain, cache=cache)
    assert isinstance(fast, Encoder)
    assert repr(fast) == repr(plain)
    assert fast.model_dump() == plain.model_dump()
    assert unwrap(fast) is plain
    expected = fast.score(PAIRS)
    for twin in (copy.copy(fast), copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert type(twin) is type(fast)
        assert twin.score(PAIRS) == expected


def test_spans_of_an_encoder(cache, spans):
    """One span of the stage, with the number of pairs that were sent."""
    fast = accelerate(Encoder(), cache=cache)
    fast.score(PAIRS[:3])
    fast.score(PAIRS)
    told = [one.attributes for one in spans.get_finished_spans() if one.name == "rerank"]
    counts = [(one["ragaccel.items.count"], one["ragaccel.items.sent"]) for one in told]
    assert counts == [(3, 3), (4, 1)]
