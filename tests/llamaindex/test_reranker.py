"""An accelerated node post-processor is the plain one, plus the cache.

The matrix: every sort of post-processor x sync and async x plain, miss and hit x everything that it
does to the nodes it is given and tells listeners.
"""

from __future__ import annotations

import asyncio
import copy
import pickle
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.llms import CompletionResponse, CustomLLM, LLMMetadata, MockLLM
from llama_index.core.postprocessor import (
    LLMRerank,
    LongContextReorder,
    MetadataReplacementPostProcessor,
    PrevNextNodePostprocessor,
    SentenceEmbeddingOptimizer,
    SimilarityPostprocessor,
)
from llama_index.core.postprocessor.structured_llm_rerank import (
    DocumentRelevanceList,
    StructuredLLMRerank,
)
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.prompts import PromptTemplate
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import (
    ImageNode,
    IndexNode,
    MetadataMode,
    NodeRelationship,
    NodeWithScore,
    QueryBundle,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.storage.docstore import SimpleDocumentStore
from pydantic import PrivateAttr

from ragaccel import MultiLevelCache, accelerate, unwrap
from ragaccel.errors import ConfigurationError
from ragaccel.wrapping.fingerprint import fingerprint
from tests.llamaindex.embeddings import TEXTS, HashEmbedding
from tests.llamaindex.recorders import CallbackRecorder, recording

QUERY = "which animals hunt mice in the forest at night"
OTHER_QUERY = "do horses run across the plain"
dispatcher = get_dispatcher(__name__)


def words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


class WordReranker(BaseNodePostprocessor):
    """Does what `SentenceTransformerRerank` does, with words in common for a cross-encoder.

    `asked` lists the queries it was really asked; clones share the list.
    """

    top_n: int = 2
    model: str = "words"
    keep_retrieval_score: bool = False
    _asked: list[str] = PrivateAttr(default_factory=list)

    @classmethod
    def class_name(cls) -> str:
        return "WordReranker"

    @property
    def asked(self) -> list[str]:
        return self._asked

    def _postprocess_nodes(self, nodes, query_bundle=None):
        if query_bundle is None:
            raise ValueError("Missing query bundle in extra info.")
        return self._rerank(nodes, query_bundle)

    def _rerank(self, nodes, bundle):
        self._asked.append(bundle.query_str)
        payload = {
            EventPayload.NODES: nodes,
            EventPayload.MODEL_NAME: self.model,
            EventPayload.QUERY_STR: bundle.query_str,
            EventPayload.TOP_K: self.top_n,
        }
        with self.callback_manager.event(CBEventType.RERANKING, payload=payload) as event:
            asked = words(bundle.query_str)
            texts = [one.node.get_content(metadata_mode=MetadataMode.EMBED) for one in nodes]
            scores = np.array([len(asked & words(text)) for text in texts], np.float32) / 7
            for one, score in zip(nodes, scores, strict=True):
                if self.keep_retrieval_score:
                    one.node.metadata["retrieval_score"] = one.score
                one.score = score
            ranked = sorted(nodes, key=lambda one: -one.score if one.score else 0)[: self.top_n]
            event.on_end(payload={EventPayload.NODES: ranked})
        return ranked


class HostedReranker(WordReranker):
    """Does what rerankers of hosted models do: async, new scores beside the nodes, events."""

    def _postprocess_nodes(self, nodes, query_bundle=None):
        dispatcher.event(
            ReRankStartEvent(
                query=query_bundle, nodes=nodes, top_n=self.top_n, model_name=self.model
            )
        )
        copies = [NodeWithScore(node=one.node, score=one.score) for one in nodes]
        ranked = self._rerank(copies, query_bundle)
        dispatcher.event(ReRankEndEvent(nodes=ranked))
        return ranked

    @dispatcher.span
    async def _apostprocess_nodes(self, nodes, query_bundle=None):
        await asyncio.sleep(0)
        return self._postprocess_nodes(nodes, query_bundle)


class SortingReranker(WordReranker):
    """Sorts the very list it is given, and gives it back."""

    def _postprocess_nodes(self, nodes, query_bundle=None):
        ranked = super()._rerank(list(nodes), query_bundle)
        nodes[:] = ranked
        return nodes


class RankingLLM(CustomLLM):
    """Answers the prompts of both LLM rerankers: the later a document, the better."""

    best: int = 9
    _asked: list[str] = PrivateAttr(default_factory=list)

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name="ranking")

    def complete(self, prompt, formatted=False, **kwargs):
        self._asked.append(prompt)
        count = prompt.split("Let's try this now")[-1].count("Document ")
        ranks = [(at + 1, self.best - count + at) for at in range(1, count)]
        if "JSON" in prompt:
            told = [f'{{"document_number": {at}, "relevance": {score}}}' for at, score in ranks]
            return CompletionResponse(text=f'{{"documents": [{", ".join(told)}]}}')
        return CompletionResponse(
            text="\n".join(f"Doc: {at}, Relevance: {score}" for at, score in ranks)
        )

    def stream_complete(self, prompt, formatted=False, **kwargs):
        raise NotImplementedError


SORTS = {
    "similarity": lambda: SimilarityPostprocessor(similarity_cutoff=0.3),
    "reorder": LongContextReorder,
    "words": lambda: WordReranker(keep_retrieval_score=True),
    "hosted": HostedReranker,
    "sorting": SortingReranker,
    "llm": lambda: LLMRerank(llm=RankingLLM(), choice_batch_size=4, top_n=3),
    "structured llm": lambda: StructuredLLMRerank(llm=RankingLLM(), choice_batch_size=4, top_n=3),
}


@pytest.fixture(params=SORTS)
def plain(request):
    """A post-processor of each sort."""
    return SORTS[request.param]()


@pytest.fixture(params=["sync", "async"])
def rank(request):
    """`postprocess_nodes` or `apostprocess_nodes`, to be called the same way."""

    def call(reranker, nodes, query=QUERY):
        bundle = copy.deepcopy(query) if isinstance(query, QueryBundle) else QueryBundle(query)
        if request.param == "sync":
            return reranker.postprocess_nodes(nodes, bundle)
        return asyncio.run(reranker.apostprocess_nodes(nodes, bundle))

    return call


def found(**changes):
    """Six nodes as a retriever gives them, fresh for each caller."""
    return [
        NodeWithScore(
            node=TextNode(
                id_=f"node-{at}",
                text=text,
                metadata={"number": at, "words": text.split()},
                relationships={
                    NodeRelationship.SOURCE: RelatedNodeInfo(node_id=f"animals-{at // 2}")
                },
                **changes,
            ),
            score=[0.5, 0.1, None, 0.3, 0.4, 0.2][at],
        )
        for at, text in enumerate(TEXTS)
    ]


def outcome(given, before, result):
    """Everything that became of the nodes of a caller, who held `before` in a list `given`."""
    places = {id(one): at for at, one in enumerate(before)}
    nodes = {id(one.node): at for at, one in enumerate(before)}
    return {
        "out": [
            (places.get(id(one)), nodes[id(one.node)], type(one), repr(one.score)) for one in result
        ],
        "scores": [repr(one.score) for one in before],
        "nodes": [repr(one.node) for one in before],
        "metadata": [repr(one.node.metadata) for one in before],
        "list": [places[id(one)] for one in given],
        "is same list": result is given,
    }


def ranked(reranker, rank, query=QUERY, make=found):
    """Rank fresh nodes, and return everything that became of them."""
    given = make()
    before = list(given)
    return outcome(given, before, rank(reranker, given, query))


def is_hit(cache, reranker, rank, query=QUERY, make=found):
    """Rank fresh nodes, and tell whether the cache served it."""
    before = cache.stats()
    ranked(reranker, rank, query, make)
    after = cache.stats()
    assert after.bypasses == before.bypasses
    assert after.lookups == before.lookups + 1
    return after.misses == before.misses


# -- plain, miss, hit ------------------------------------------------------------------------------


def test_what_comes_out_is_equal(plain, cache, rank):
    """The same nodes come out, the caller's own, with the same scores, in the same order."""
    fast = accelerate(plain, cache=cache)
    right = ranked(plain, rank)
    assert right["out"]
    for _ in range(3):
        assert ranked(fast, rank) == right
    stats = cache.stats()
    assert (stats.misses, stats.hits, stats.bypasses) == (1, {"memory": 2}, {})


def test_sync_and_async_share_the_entry(plain, cache):
    """What one face has ranked the other serves."""
    fast = accelerate(plain, cache=cache)
    right = found()
    right = outcome(right, list(right), plain.postprocess_nodes(right, QueryBundle(QUERY)))
    for _ in range(2):
        given = found()
        before = list(given)
        out = asyncio.run(fast.apostprocess_nodes(given, QueryBundle(QUERY)))
        assert outcome(given, before, out) == right
        given = found()
        before = list(given)
        out = fast.postprocess_nodes(given, query_str=QUERY)
        assert outcome(given, before, out) == right
    assert cache.stats().misses == 1


def test_every_hit_is_fresh(plain, cache, rank):
    """Whoever changes what came out changes nothing for the next caller."""
    fast = accelerate(plain, cache=cache)
    right = ranked(plain, rank)
    for _ in range(3):
        given = found()
        before = list(given)
        out = rank(fast, given)
        assert outcome(given, before, out) == right
        for one in out:
            one.score = -1.0
            one.node.text = "changed"
            one.node.metadata.clear()
        out.clear()


def test_nodes_that_were_cut_off_change_as_well(cache, rank):
    """A reranker sets the score and the metadata of every node it was given."""
    fast = accelerate(WordReranker(keep_retrieval_score=True), cache=cache)
    for _ in range(2):
        given = found()
        out = rank(fast, given)
        assert [one.node_id for one in out] == ["node-5", "node-2"]
        assert all(type(one.score) is np.float32 for one in given)
        kept = [one.node.metadata["retrieval_score"] for one in given]
        assert kept == [0.5, 0.1, None, 0.3, 0.4, 0.2]


def test_dispatcher_events_and_spans(plain, cache, rank):
    """A hit opens the span of the reranking and tells its events, but none of a language model."""
    fast = accelerate(plain, cache=cache)

    def told(reranker):
        with recording() as made:
            ranked(reranker, rank)
        assert not made.open + made.dropped
        return made

    its, miss, hit = told(plain), told(fast), told(fast)
    assert (miss.tree, miss.event_names) == (its.tree, its.event_names)
    assert [name for name, _ in hit.tree] == [
        name
        for name, _ in its.tree
        if name != "run_jobs"  # of a language model's calls
    ]
    assert hit.event_names == [name for name in its.event_names if name.startswith("ReRank")]
    for one in (miss, hit):
        assert [reranking(event) for event in one.events] == [
            reranking(event) for event in its.events if reranking(event) or one is miss
        ]


def reranking(event):
    """What an event tells of a reranking, or nothing."""
    if isinstance(event, ReRankStartEvent):
        return "start", event.query.query_str, len(event.nodes), event.top_n, event.model_name
    if isinstance(event, ReRankEndEvent):
        return "end", [(one.node_id, repr(one.score)) for one in event.nodes]
    return None


class PayloadRecorder(CallbackRecorder):
    """Keeps what legacy callbacks tell of a reranking."""

    def on_event_start(self, event_type, payload=None, event_id="", parent_id="", **_):
        if event_type == CBEventType.RERANKING:
            scores = [repr(one.score) for one in payload[EventPayload.NODES]]
            rest = [value for key, value in payload.items() if key != EventPayload.NODES]
            self.told.append(("start", scores, rest))
        return event_id

    def on_event_end(self, event_type, payload=None, event_id="", **_):
        if event_type == CBEventType.RERANKING:
            out = [(one.node_id, repr(one.score)) for one in payload[EventPayload.NODES]]
            self.told.append(("end", out))


@pytest.mark.parametrize("sort", ["words", "hosted", "structured llm", "similarity"])
def test_legacy_callbacks_are_equal(sort, cache, rank):
    """The callback manager hears of a reranking on a hit as on a miss, from those that tell it."""
    plain, recorder = SORTS[sort](), PayloadRecorder()
    plain.callback_manager = CallbackManager([recorder])
    fast = accelerate(plain, cache=cache)
    told = []
    for reranker in (plain, fast, fast):
        ranked(reranker, rank)
        told.append([*recorder.told])
        recorder.told.clear()
    assert told[0] == told[1] == told[2]
    assert bool(told[0]) == (sort != "similarity")
    assert cache.stats().hits == {"memory": 1}


def test_without_a_cache_nothing_changes(plain, rank):
    """It only traces."""
    traced = accelerate(plain)
    for _ in range(2):
        assert ranked(traced, rank) == ranked(plain, rank)


@pytest.mark.parametrize("made", [WordReranker, HostedReranker])
def test_the_rerank_stage_tells_of_hits(made, cache, rank, span_exporter):
    """Our own span, one for a call, says whether anything was reranked."""
    fast = accelerate(made(), cache=cache)
    for is_served in (False, True):
        span_exporter.clear()
        ranked(fast, rank)
        (span,) = [one for one in span_exporter.get_finished_spans() if one.name == "rerank"]
        assert span.attributes["ragaccel.component"] == made.__name__
        assert span.attributes["ragaccel.cache.hit"] == is_served


# -- what it is ------------------------------------------------------------------------------------


def test_it_is_of_the_same_class_and_dumps_the_same(plain, cache, rank):
    """Nothing that is written or printed shows that it was wrapped."""
    fast = accelerate(plain, cache=cache)
    ranked(fast, rank)
    assert isinstance(fast, type(plain))
    for name in ("__name__", "__qualname__", "__module__", "__doc__"):
        assert getattr(type(fast), name) == getattr(type(plain), name)
    assert fast.class_name() == plain.class_name()
    assert repr(fast) == repr(plain)
    assert fast._get_prompts() == plain._get_prompts()
    if not isinstance(plain, (LLMRerank, StructuredLLMRerank)):
        assert fast.to_dict() == plain.to_dict()
    assert fast.model_fields_set == plain.model_fields_set
    assert unwrap(fast) is plain
    assert "ragaccel_state_" not in vars(plain)


@pytest.mark.parametrize(
    "duplicate",
    [
        copy.copy,
        copy.deepcopy,
        lambda one: one.model_copy(),
        lambda one: one.model_copy(deep=True),
        lambda one: pickle.loads(pickle.dumps(one)),
    ],
)
@pytest.mark.parametrize("sort", ["similarity", "reorder", "words", "hosted"])
def test_copies_share_the_entries(sort, duplicate, tmp_path, rank):
    """However it is copied, it has the class, the cache and the entries of the first."""
    plain = SORTS[sort]()
    with MultiLevelCache.open(tmp_path) as cache:
        fast = accelerate(plain, cache=cache)
        right = ranked(fast, rank)
        twin = duplicate(fast)
        assert type(twin) is type(fast)
        with recording() as told:
            assert ranked(twin, rank) == right
        assert [below for _, below in told.tree] == [()]
        assert type(unwrap(twin)) is type(plain)
        assert cache.stats().misses == 1


def test_settings_changed_on_the_wrapped_one_take_effect(cache, rank):
    """Each setting has entries of its own, and going back finds the old ones."""
    plain = WordReranker()
    fast = accelerate(plain, cache=cache)
    ranked(fast, rank)
    for name, value in {"top_n": 3, "model": "other", "keep_retrieval_score": True}.items():
        twin = fast.model_copy(update={name: value})
        assert not is_hit(cache, twin, rank), name
        assert ranked(twin, rank) == ranked(plain.model_copy(update={name: value}), rank)
    assert is_hit(cache, fast, rank)


# -- what decides the ranking is in the key --------------------------------------------------------


def changed(change):
    """Nodes of which one was changed."""

    def make():
        given = found()
        change(given)
        return given

    return make


class More(TextNode):
    """A node of the user's own, by the name of LlamaIndex's, that says more."""

    def get_content(self, metadata_mode=MetadataMode.NONE):
        text = super().get_content(metadata_mode)
        return text if metadata_mode == MetadataMode.NONE else f"{text} mice forest"


def swap(given):
    given[0], given[1] = given[1], given[0]


def reorder(given):
    metadata = given[1].node.metadata
    metadata["number"] = metadata.pop("number")


CHANGES = {
    "nothing": lambda given: given,
    "score": lambda given: setattr(given[1], "score", 0.15),
    "no score": lambda given: setattr(given[1], "score", None),
    "type of a score": lambda given: setattr(given[1], "score", np.float32(0.1)),
    "text": lambda given: setattr(given[1].node, "text", "owls"),
    "id": lambda given: setattr(given[1].node, "id_", "other"),
    "metadata": lambda given: given[1].node.metadata.update(number=7),
    "type in metadata": lambda given: given[1].node.metadata.update(number=True),
    "order of metadata": reorder,
    "more metadata": lambda given: given[1].node.metadata.update(more=None),
    "what is embedded": lambda given: given[1].node.excluded_embed_metadata_keys.append("number"),
    "template": lambda given: setattr(given[1].node, "text_template", "{content}"),
    "relationships": lambda given: given[1].node.relationships.clear(),
    "embedding": lambda given: setattr(given[1].node, "embedding", [1.0]),
    "order": swap,
    "fewer": lambda given: given.pop(),
    "a node twice": lambda given: given.append(given[1]),
    "an equal node": lambda given: given.append(copy.deepcopy(given[1])),
    "a node twice, scored twice": lambda given: given.append(given[1].model_copy()),
    "metadata of two": lambda given: given.append(
        NodeWithScore(node=given[1].node.model_copy(), score=0.1)
    ),
    "class": lambda given: setattr(given[1], "node", ImageNode(**vars(given[1].node))),
    "class of the user's": lambda given: setattr(given[1], "node", More(**vars(given[1].node))),
}


def test_nodes_that_differ_anywhere_never_share_a_ranking(cache, rank):
    """Every change gives an entry of its own, and the ranking that the plain one gives."""
    plain = WordReranker(keep_retrieval_score=True)
    fast = accelerate(plain, cache=cache)
    for _ in range(2):
        for change in CHANGES.values():
            make = changed(change)
            assert ranked(fast, rank, make=make) == ranked(plain, rank, make=make)
    stats = cache.stats()
    assert (stats.misses, stats.hits) == (len(CHANGES), {"memory": len(CHANGES)})
    assert stats.bypasses == {}


BUNDLES = {
    "text": QueryBundle(QUERY),
    "another text": QueryBundle(OTHER_QUERY),
    "embedding texts": QueryBundle(QUERY, custom_embedding_strs=["horses run"]),
    "embedding": QueryBundle(QUERY, embedding=[1.0, 0.0]),
    "another embedding": QueryBundle(QUERY, embedding=[0.0, 1.0]),
    "image": QueryBundle(QUERY, image_path="cat.png"),
}


def test_every_field_of_the_bundle_is_in_the_key(cache, rank):
    """Queries that differ anywhere never share a ranking."""
    plain = WordReranker()
    fast = accelerate(plain, cache=cache)
    for _ in range(2):
        for bundle in BUNDLES.values():
            assert ranked(fast, rank, bundle) == ranked(plain, rank, bundle)
    stats = cache.stats()
    assert (stats.misses, stats.hits) == (len(BUNDLES), {"memory": len(BUNDLES)})


def test_no_query_is_a_query_of_its_own(cache):
    """A post-processor that needs none is cached without one, and apart from the empty text."""
    fast = accelerate(SimilarityPostprocessor(similarity_cutoff=0.3), cache=cache)
    for _ in range(2):
        assert len(fast.postprocess_nodes(found())) == 3
        assert len(fast.postprocess_nodes(found(), query_str="")) == 3
    assert (cache.stats().misses, cache.stats().hits) == (2, {"memory": 2})


SCALARS = st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False) | st.text()
VALUES = SCALARS | st.lists(SCALARS, max_size=2) | st.dictionaries(st.text(), SCALARS, max_size=2)
METADATA = st.dictionaries(st.sampled_from("abcd"), VALUES, max_size=4)


class Rewriter(BaseNodePostprocessor):
    """Gives nodes new scores and metadata, in place, and some of them out in some order."""

    plan: list[tuple[int, float | None, dict]]

    def _postprocess_nodes(self, nodes, query_bundle=None):
        for one, (_, score, metadata) in zip(nodes, self.plan, strict=True):
            one.score = score
            one.node.metadata.clear()
            one.node.metadata.update(metadata)
        return [nodes[at % len(nodes)] for at, *_ in self.plan if at >= 0]


@given(
    st.lists(
        st.tuples(METADATA, st.integers(-2, 5), st.none() | st.floats(0, 1), METADATA), min_size=1
    )
)
def test_whatever_a_postprocessor_does_in_place_a_hit_does(rows):
    """Any scores, metadata, their order and their types are those of the plain one."""

    def make():
        return [
            NodeWithScore(node=TextNode(id_=str(at), text="", metadata=copy.deepcopy(row[0])))
            for at, row in enumerate(rows)
        ]

    def sync(reranker, nodes, query):
        return reranker.postprocess_nodes(nodes, query_str=query)

    plain = Rewriter(plan=[row[1:] for row in rows])
    with MultiLevelCache.open() as cache:
        fast = accelerate(plain, cache=cache)
        right = ranked(plain, sync, make=make)
        assert ranked(fast, sync, make=make) == right
        assert ranked(fast, sync, make=make) == right
        assert (cache.stats().misses, cache.stats().hits) == (1, {"memory": 1})


# -- components within components ------------------------------------------------------------------


def loudly(text):
    return text.upper()


def shout(nodes):
    return "\n".join(f"Document {at + 1}:\n{one.text.upper()}" for at, one in enumerate(nodes))


class Verdict(DocumentRelevanceList):
    """Documents, each with how well it answers the question."""


LLM_RERANKERS = {
    "plain": lambda: LLMRerank(llm=RankingLLM()),
    "top_n": lambda: LLMRerank(llm=RankingLLM(), top_n=2),
    "batches": lambda: LLMRerank(llm=RankingLLM(), choice_batch_size=2),
    "llm": lambda: LLMRerank(llm=RankingLLM(best=10)),
    "class of the llm": lambda: LLMRerank(llm=MockLLM()),
    "prompts of the llm": lambda: LLMRerank(llm=RankingLLM(completion_to_prompt=loudly)),
    "prompt": lambda: LLMRerank(
        llm=RankingLLM(), choice_select_prompt=PromptTemplate("{context_str} {query_str}")
    ),
    "another prompt": lambda: LLMRerank(
        llm=RankingLLM(), choice_select_prompt=PromptTemplate("{query_str} {context_str}")
    ),
    "function": lambda: LLMRerank(llm=RankingLLM(), format_node_batch_fn=shout),
    "structured": lambda: StructuredLLMRerank(llm=RankingLLM()),
    "class of answers": lambda: StructuredLLMRerank(
        llm=RankingLLM(), document_relevance_list_cls=Verdict
    ),
    "failures": lambda: StructuredLLMRerank(
        llm=RankingLLM(), raise_on_structured_prediction_failure=False
    ),
}


def test_llm_rerankers_that_differ_anywhere_never_share_a_ranking(cache, rank):
    """Settings of the model within, its prompts, and functions of the reranker are in the key."""
    for _ in range(2):
        for made in LLM_RERANKERS.values():
            plain = made()
            try:
                right = ranked(plain, rank)
            except ValueError as error:
                with pytest.raises(type(error)):
                    ranked(accelerate(made(), cache=cache), rank)
            else:
                assert ranked(accelerate(made(), cache=cache), rank) == right
    keys = {fingerprint(made()) for made in LLM_RERANKERS.values()}
    assert len(keys) == len(LLM_RERANKERS)
    assert cache.stats().bypasses == {}


def test_a_wrapped_model_within_counts_as_its_plain_self(cache, rank):
    """An LLM that is cached itself changes nothing in the reranker's key."""
    ranked(accelerate(LLMRerank(llm=RankingLLM()), cache=cache), rank)
    within = LLMRerank(llm=accelerate(RankingLLM(), cache=cache))
    assert is_hit(cache, accelerate(within, cache=cache), rank)


@pytest.mark.parametrize(
    "made",
    [
        lambda: LLMRerank(llm=RankingLLM(), format_node_batch_fn=lambda nodes: shout(nodes)[::-1]),
        lambda: LLMRerank(llm=RankingLLM(messages_to_prompt=lambda messages: str(messages[0]))),
        lambda: PrevNextNodePostprocessor(docstore=SimpleDocumentStore()),
    ],
    ids=["lambda", "lambda of the llm", "docstore"],
)
def test_what_cannot_be_seen_needs_an_identity(made, cache, rank):
    """Two lambdas, or two document stores, cannot be told apart."""
    with pytest.raises(ConfigurationError, match="identity="):
        accelerate(made(), cache=cache)
    accelerate(made())
    right = ranked(made(), rank)
    fast = accelerate(made(), cache=cache, identity="mine")
    for _ in range(2):
        assert ranked(fast, rank) == right
    assert not is_hit(cache, accelerate(made(), cache=cache, identity="another"), rank)


def test_an_identity_adds_to_what_can_be_seen(cache, rank):
    """Two settings do not share rankings for being given one identity."""
    for top_n in (1, 2, 1, 2):
        plain = WordReranker(top_n=top_n)
        fast = accelerate(plain, cache=cache, identity="mine")
        assert ranked(fast, rank) == ranked(plain, rank)
    assert (cache.stats().misses, cache.stats().hits) == (2, {"memory": 2})


# -- what is not cached ----------------------------------------------------------------------------


class Rewording(WordReranker):
    """Gives a node another text after ranking."""

    def _rerank(self, nodes, bundle):
        ranked = super()._rerank(nodes, bundle)
        nodes[0].node.set_content("another text")
        return ranked


class Copying(WordReranker):
    """Gives out copies of the nodes."""

    def _rerank(self, nodes, bundle):
        return copy.deepcopy(super()._rerank(nodes, bundle))


class Emptying(WordReranker):
    """Takes nodes from the caller's list, and gives another one."""

    def _postprocess_nodes(self, nodes, query_bundle=None):
        ranked = super()._postprocess_nodes(nodes, query_bundle)
        nodes.pop()
        return ranked


class Replacing(WordReranker):
    """Gives a node another dict of metadata."""

    def _rerank(self, nodes, bundle):
        nodes[0].node.metadata = dict(nodes[0].node.metadata)
        return super()._rerank(nodes, bundle)


class Embedding(WordReranker):
    """Leaves an embedding in the caller's query."""

    def _rerank(self, nodes, bundle):
        bundle.embedding = [1.0]
        return super()._rerank(nodes, bundle)


class Annotating(WordReranker):
    """Leaves something in the metadata that has no stored form."""

    def _rerank(self, nodes, bundle):
        nodes[0].node.metadata["by"] = {1, 2}
        return super()._rerank(nodes, bundle)


UNCACHED = {
    "replacement": lambda: MetadataReplacementPostProcessor(target_metadata_key="other"),
    "neighbours": lambda: PrevNextNodePostprocessor(docstore=neighbours()),
    "sentences": lambda: SentenceEmbeddingOptimizer(
        embed_model=HashEmbedding(), tokenizer_fn=str.split, percentile_cutoff=0.5
    ),
    "another text": Rewording,
    "copies": Copying,
    "another list": Emptying,
    "another dict": Replacing,
    "another query": Embedding,
    "set": Annotating,
}


def neighbours():
    store = SimpleDocumentStore()
    store.add_documents([TextNode(id_="after", text="what comes after")])
    return store


def found_with_more():
    """Nodes with what the post-processors look at."""
    given = found()
    given[0].node.metadata["other"] = "another text"
    given[5].node.relationships[NodeRelationship.NEXT] = RelatedNodeInfo(node_id="after")
    return given


def plainly(given, before, result):
    """What became of the nodes, some of which nobody gave."""
    return (
        [(one.node_id, one.get_content(), one.metadata, repr(one.score)) for one in result],
        [(one.get_content(), one.metadata, repr(one.score)) for one in before],
        [one.node_id for one in given],
        result is given,
    )


@pytest.mark.parametrize("sort", UNCACHED)
def test_what_does_more_than_rank_works_uncached(sort, cache, rank):
    """Other nodes, other texts and other side effects are those of the plain one, each time."""

    def told(reranker):
        given = found_with_more()
        before = list(given)
        return plainly(given, before, rank(reranker, given))

    right = told(UNCACHED[sort]())
    fast = accelerate(UNCACHED[sort](), cache=cache, identity="mine")
    for _ in range(3):
        assert told(fast) == right
    assert (cache.stats().hits, cache.stats().bypasses) == ({}, {"value": 3})


UNTELLABLE = {
    "set": lambda given: given[1].node.metadata.update(odd={1, 2}),
    "array": lambda given: given[1].node.metadata.update(odd=np.ones(2)),
    "score": lambda given: setattr(given[1], "score", 1 + 2j),
    "embedding": lambda given: given[1].node.__dict__.update(embedding=np.ones(2)),
    "object behind a node": lambda given: setattr(given[1], "node", IndexNode(
        text="owls hunt", index_id="index", obj=WordReranker()
    )),
    "class": lambda given: given.append(Marked(node=TextNode(text="owls hunt"), score=0.1)),
    "class of node": lambda given: setattr(given[1], "node", Own(text="owls hunt")),
}  # fmt: skip


class Marked(NodeWithScore):
    """A node with something of the user's."""

    mark: int = 1


class Own(TextNode):
    """A node of the user's own."""

    @classmethod
    def class_name(cls):
        return "Own"


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
@pytest.mark.parametrize("change", UNTELLABLE)
def test_nodes_that_cannot_be_told_apart_are_ranked_uncached(change, cache, rank):
    """What has no stored form passes the cache by."""
    make = changed(UNTELLABLE[change])
    plain = SimilarityPostprocessor(similarity_cutoff=0.0)
    if change == "score":
        plain = LLMRerank(llm=RankingLLM())
    fast = accelerate(plain, cache=cache)
    for _ in range(2):
        told = [
            [(one.get_content(), repr(one.score)) for one in rank(reranker, make())]
            for reranker in (plain, fast)
        ]
        assert told[0] == told[1]
    stats = cache.stats()
    assert (stats.lookups, sum(stats.bypasses.values())) == (0, 2)


def test_nothing_to_rank_is_nothing_to_cache(cache, rank):
    """An empty list goes straight to the post-processor."""
    fast = accelerate(WordReranker(), cache=cache)
    assert rank(fast, []) == rank(WordReranker(), [])
    assert cache.stats().lookups == 0


def test_errors_pass_through_uncached(cache):
    """The very exception is raised, and the next call asks again."""
    plain = WordReranker()
    fast = accelerate(plain, cache=cache)
    for _ in range(2):
        with pytest.raises(ValueError, match="Missing query bundle"):
            fast.postprocess_nodes(found())
    assert cache.stats().hits == {}


# -- many callers ----------------------------------------------------------------------------------


class SlowReranker(WordReranker):
    """Waits until it is told to go on."""

    _go: threading.Event = PrivateAttr(default_factory=threading.Event)

    def _rerank(self, nodes, bundle):
        assert self._go.wait(60)
        return super()._rerank(nodes, bundle)


def test_callers_that_meet_rank_once_and_each_gets_its_own_nodes(cache):
    """One of them ranks, and all have their nodes as if they had."""
    fast = accelerate(SlowReranker(keep_retrieval_score=True), cache=cache)

    def sync(reranker, nodes, query):
        return reranker.postprocess_nodes(nodes, query_str=query)

    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(ranked, fast, sync) for _ in range(4)]
        while cache.stats().misses == 0:
            pass
        fast._go.set()
        outcomes = [one.result() for one in asked]
    right = ranked(WordReranker(keep_retrieval_score=True), sync)
    assert outcomes == [right] * 4
    assert fast.asked == [QUERY]


def test_a_stale_ranking_is_not_made_anew_with_the_callers_nodes(rank):
    """A background refresh would change nodes that the caller goes on with."""
    with MultiLevelCache.open(ttl=0.01, stale_while_revalidate=600) as cache:
        fast = accelerate(WordReranker(keep_retrieval_score=True), cache=cache)
        ranked(fast, rank)
        threads = set(threading.enumerate())
        time.sleep(0.05)
        for _ in range(3):
            ranked(fast, rank)
        for thread in set(threading.enumerate()) - threads:
            thread.join(60)
        assert (cache.stats().misses, cache.stats().hits) == (1, {"memory": 3})
        assert fast.asked == [QUERY]


def test_rankings_of_a_document_can_be_invalidated(cache, rank):
    """What was ranked is struck by the id of any node given, or of its document."""
    fast = accelerate(WordReranker(), cache=cache)
    ranked(fast, rank)
    for document in ("node-4", "animals-0"):
        assert is_hit(cache, fast, rank)
        cache.invalidate(documents=[document])
        assert not is_hit(cache, fast, rank)
    cache.invalidate(documents=["another"])
    assert is_hit(cache, fast, rank)


def test_other_process_finds_the_entries(tmp_path, rank):
    """A ranking survives on disk, numpy's scores included."""
    plain = WordReranker(keep_retrieval_score=True)
    right = ranked(plain, rank)
    for served in (False, True):
        with MultiLevelCache.open(tmp_path) as cache:
            fast = accelerate(WordReranker(keep_retrieval_score=True), cache=cache)
            assert ranked(fast, rank) == right
            assert (cache.stats().misses == 0) == served


# -- inside a query engine -------------------------------------------------------------------------


async def test_a_query_engine_uses_it(index, cache, mock_llm):
    """An engine gives the same sources, and its second query is a hit."""
    plain = WordReranker(top_n=2, keep_retrieval_score=True)
    fast = accelerate(plain, cache=cache)

    def engine(reranker):
        return RetrieverQueryEngine.from_args(
            index.as_retriever(similarity_top_k=5), node_postprocessors=[reranker]
        )

    right = engine(plain).query(QUERY)
    for _ in range(2):
        for response in (engine(fast).query(QUERY), await engine(fast).aquery(QUERY)):
            assert str(response) == str(right)
            assert response.source_nodes == right.source_nodes
    assert cache.stats().misses <= 2
    assert sum(cache.stats().hits.values()) >= 2
