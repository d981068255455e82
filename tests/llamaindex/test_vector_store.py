"""`CompressedVectorStore` as LlamaIndex uses it: writing, reading, queries, persistence."""

from __future__ import annotations

import asyncio
import copy
import json
import multiprocessing
import pickle
import random

import numpy as np
import pytest
from llama_index.core import MockEmbedding, StorageContext, VectorStoreIndex
from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import (
    Document,
    ImageDocument,
    ImageNode,
    IndexNode,
    MediaResource,
    Node,
    NodeRelationship,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.vector_stores.simple import SimpleVectorStore
from llama_index.core.vector_stores.types import (
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
)

from ragaccel.errors import (
    CollectionNotFoundError,
    ConfigurationError,
    RagaccelError,
)
from ragaccel.llamaindex import CompressedVectorStore
from tests.llamaindex.embeddings import HashEmbedding

IMAGE = "R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="  # a GIF of one pixel
NUMBER_3 = MetadataFilters(filters=[MetadataFilter(key="number", value=3)])
ODD = MetadataFilters(filters=[MetadataFilter(key="kind", value="odd")])


def ask(text: str, *, k: int = 3, **more) -> VectorStoreQuery:
    """A query with the embedding of a text."""
    embedding = HashEmbedding().get_query_embedding(text)
    return VectorStoreQuery(query_embedding=embedding, similarity_top_k=k, **more)


def ids(found) -> list[str]:
    return [one.node_id for one in found]


def without_embedding(node):
    return node.model_copy(update={"embedding": None})


# -- add, replace, delete, read --------------------------------------------------------------------


def test_add_returns_the_ids_in_order(store, embedded):
    """LlamaIndex pairs the returned ids with the nodes, so they come in the order given."""
    shuffled = [*embedded]
    random.Random(1).shuffle(shuffled)
    assert store.add(shuffled) == ids(shuffled)
    assert store.add([]) == []


def test_added_nodes_are_found_at_once(store, embedded):
    """The nearest node comes first, with its cosine similarity, its id and itself."""
    store.add(embedded)
    query = VectorStoreQuery(query_embedding=embedded[4].embedding, similarity_top_k=2)
    found = store.query(query)
    assert found.ids[0] == "node-4"
    assert found.similarities[0] == pytest.approx(1.0, abs=1e-5)
    assert found.similarities == sorted(found.similarities, reverse=True)
    assert ids(found.nodes) == found.ids
    assert found.nodes[0] == without_embedding(embedded[4])


def test_adding_an_id_again_replaces_the_node(store, embedded):
    """Text, metadata, document and vector of the old node are gone."""
    store.add(embedded)
    changed = TextNode(id_="node-0", text="a tale of trains", metadata={"number": 100})
    store.add(HashEmbedding()([changed]))
    assert store.get_nodes(["node-0"]) == [without_embedding(changed)]
    assert len(store.collection) == len(embedded)
    store.delete("animals-0")  # the old node's document
    assert ids(store.get_nodes(["node-0", "node-1"])) == ["node-0"]


def test_of_equal_ids_in_one_call_the_last_counts(store):
    """One vector remains per id."""
    twice = HashEmbedding()([TextNode(id_="a", text="first"), TextNode(id_="a", text="second")])
    assert store.add(twice) == ["a", "a"]
    assert [node.text for node in store.get_nodes()] == ["second"]


def test_add_leaves_the_callers_nodes_as_they_were(store, embedded):
    """Nothing is written into the nodes, nor do later changes of theirs reach the store."""
    before = [node.model_copy(deep=True) for node in embedded]
    store.add(embedded)
    assert embedded == before
    embedded[0].metadata["number"] = "changed"
    assert store.get_nodes(["node-0"])[0].metadata["number"] == 0


def test_delete_takes_the_nodes_of_one_document(store, embedded):
    """Other documents keep theirs, and an unknown document is no error."""
    store.add(embedded)
    store.delete("animals-1")
    store.delete("unknown")
    assert ids(store.get_nodes()) == ["node-0", "node-1", "node-4", "node-5"]
    assert "node-2" not in store.query(ask(embedded[2].text, k=10)).ids


def test_delete_of_no_document_deletes_nothing(store):
    """The `ref_doc_id` of a node without a document is None, and says nothing of other nodes."""
    store.add([TextNode(id_=one, text=one, embedding=[1.0, 0.0]) for one in ("a", "b")])
    with pytest.raises(ConfigurationError, match="id of a document, got None"):
        store.delete(store.get_nodes(["a"])[0].ref_doc_id)
    assert ids(store.get_nodes()) == ["a", "b"]


def test_delete_nodes_takes_ids_and_filters_together(store, embedded):
    """Only a node that has one of the ids and passes the filters is deleted."""
    store.add(embedded)
    store.delete_nodes(["node-1", "node-2"], ODD)
    assert ids(store.get_nodes()) == ["node-0", "node-2", "node-3", "node-4", "node-5"]
    store.delete_nodes(filters=NUMBER_3)
    store.delete_nodes(["node-0", "unknown"])
    assert ids(store.get_nodes()) == ["node-2", "node-4", "node-5"]


def test_an_empty_list_of_ids_selects_nothing(store, embedded):
    """For reading and deleting, no ids means no nodes."""
    store.add(embedded)
    assert store.get_nodes([]) == []
    store.delete_nodes([])
    assert len(store.get_nodes()) == len(embedded)


def test_get_nodes_keeps_the_order_of_the_ids(store, embedded):
    """Unknown ids are left out, and filters apply as well."""
    store.add(embedded)
    assert ids(store.get_nodes(["node-5", "unknown", "node-0"])) == ["node-5", "node-0"]
    assert ids(store.get_nodes(["node-5", "node-3", "node-0"], ODD)) == ["node-5", "node-3"]
    assert ids(store.get_nodes(filters=ODD)) == ["node-1", "node-3", "node-5"]


def test_clear_deletes_everything_and_the_store_goes_on(store, embedded):
    """After clear nothing is found, and adding works."""
    store.add(embedded)
    store.clear()
    assert store.get_nodes() == []
    assert store.query(ask("cats")).ids == []
    store.add(embedded[:1])
    assert store.query(ask("cats")).ids == ["node-0"]


def test_an_empty_store_answers(store):
    """Queries and reads of a store that never held a node find nothing."""
    assert store.query(ask("cats")).ids == []
    assert store.query(ask("cats", mode=VectorStoreQueryMode.MMR)).ids == []
    assert store.get_nodes() == []
    assert store.get_nodes(["a"]) == []
    store.delete("a")
    store.delete_nodes(["a"])
    store.clear()


async def test_async_twins_do_the_same(store, embedded):
    """Every async method changes and finds what its sync twin does."""
    assert await store.async_add(embedded) == ids(embedded)
    query = ask("mice at night", k=4, filters=ODD)
    assert await store.aquery(query) == store.query(query)
    assert await store.aget_nodes(["node-3", "node-1"]) == store.get_nodes(["node-3", "node-1"])
    assert await store.aget_nodes(filters=ODD) == store.get_nodes(filters=ODD)
    await store.adelete("animals-0")
    await store.adelete_nodes(["node-2"])
    await store.adelete_nodes(filters=NUMBER_3)
    assert ids(await store.aget_nodes()) == ["node-4", "node-5"]
    await store.aclear()
    assert await store.aget_nodes() == []


async def test_async_calls_at_once(store, embedded):
    """Many async calls on one loop do not disturb each other."""
    await asyncio.gather(*(store.async_add([node]) for node in embedded))
    found = await asyncio.gather(*(store.aquery(ask(node.text, k=1)) for node in embedded))
    assert [one.ids[0] for one in found] == ids(embedded)


# -- nodes come back as they went in ---------------------------------------------------------------

RELATIONSHIPS = {
    NodeRelationship.SOURCE: RelatedNodeInfo(node_id="doc", metadata={"a": 1}, hash="h"),
    NodeRelationship.PREVIOUS: RelatedNodeInfo(node_id="before"),
    NodeRelationship.NEXT: RelatedNodeInfo(node_id="after", node_type="1"),
    NodeRelationship.PARENT: RelatedNodeInfo(node_id="parent"),
    NodeRelationship.CHILD: [RelatedNodeInfo(node_id="c1"), RelatedNodeInfo(node_id="c2")],
}
METADATA = {
    "text": "größe 日本",
    "number": 3,
    "half": 0.5,
    "yes": True,
    "none": None,
    "list": [1, "two", 3.5, None, [True]],
    "dict": {"a": {"b": [1]}},
    'odd "key".[0]\\': "x",
    "big": 2**70,
    "": "empty key",
}
FIELDS = {
    "id_": "an id: with /odd\\ signs ü 😀",
    "metadata": METADATA,
    "excluded_embed_metadata_keys": ["number"],
    "excluded_llm_metadata_keys": ["text", "half"],
    "relationships": RELATIONSHIPS,
    "metadata_template": "{key} = {value}",
    "metadata_separator": " | ",
    "embedding": [1.0, 0.0],
}
NODES = {
    "TextNode": TextNode(
        text="text", mimetype="text/markdown", start_char_idx=3, end_char_idx=7,
        text_template="{content} -- {metadata_str}", **FIELDS,
    ),
    "TextNode of defaults": TextNode(text="text", embedding=[1.0, 0.0]),
    "TextNode with a null character": TextNode(text="a\x00b", embedding=[1.0, 0.0]),
    "TextNode of lines": TextNode(text="\r\n a\n\tb \u2028", embedding=[1.0, 0.0]),
    "Document": Document(text="text", text_template="{content}!", **FIELDS),
    "Document without text": Document(text="", **FIELDS),
    "IndexNode": IndexNode(text="text", index_id="elsewhere", **FIELDS),
    "IndexNode with a node": IndexNode(
        text="text", index_id="elsewhere", obj=TextNode(id_="inner", text="inner"), **FIELDS
    ),
    "ImageNode": ImageNode(
        text="a caption", image=IMAGE, image_mimetype="image/png", text_embedding=[0.5, 1.5],
        **FIELDS,
    ),
    "ImageNode of a file": ImageNode(image_path="cat.png", image_url="http://a.b/c", **FIELDS),
    "ImageDocument of a url": ImageDocument(
        image_resource=MediaResource(url="http://a.b/c.png"), **FIELDS
    ),
    "Node": Node(
        text_resource=MediaResource(text="text", mimetype="text/plain"),
        image_resource=MediaResource(url="http://a.b/c.png"),
        **FIELDS,
    ),
    "Node of a file": Node(image_resource=MediaResource(path="cat.png"), **FIELDS),
    "Node with image bytes": Node(image_resource=MediaResource(data=IMAGE.encode()), **FIELDS),
    "Node without resources": Node(**FIELDS),
}  # fmt: skip


@pytest.mark.parametrize("name", NODES)
def test_nodes_come_back_equal(store, name):
    """A node is found again with its class and all its fields, the embedding aside."""
    node = NODES[name]
    store.add([node])
    right = without_embedding(node)
    found = store.query(VectorStoreQuery(query_embedding=[1.0, 0.0])).nodes
    for back in (*store.get_nodes([node.node_id]), *found):
        assert type(back) is type(node)
        assert back == right
        assert back.hash == node.hash
        assert back.ref_doc_id == node.ref_doc_id
    assert len(found) == 1


def test_nodes_come_back_equal_from_disk(tmp_path):
    """What was stored by one object is read by the next one."""
    store = CompressedVectorStore.open(tmp_path / "corpus")
    given = [
        node.model_copy(update={"id_": f"{at} {node.id_}"})
        for at, node in enumerate(NODES.values())
    ]
    store.add(given)
    store.close()
    again = CompressedVectorStore.open(tmp_path / "corpus")
    assert again.get_nodes() == [without_embedding(node) for node in given]
    again.close()


def test_returned_nodes_are_fresh(store, embedded):
    """Whoever changes a node that came back changes it for nobody else."""
    store.add(embedded)
    for read in (lambda: store.get_nodes(["node-0"])[0], lambda: store.query(ask("cats")).nodes[0]):
        found = read()
        found.metadata["number"] = "changed"
        found.text = "changed"
        assert read() == without_embedding(embedded[0])


class Chapter(TextNode):
    """A node class of a user's own."""

    heading: str = ""

    @classmethod
    def class_name(cls) -> str:
        return "Chapter"


def test_a_node_class_of_the_users_own_keeps_its_text_and_metadata(store):
    """A class that LlamaIndex cannot load comes back as a `TextNode`."""
    store.add([Chapter(id_="a", text="text", metadata={"n": 1}, heading="h", embedding=[1.0])])
    (back,) = store.get_nodes(["a"])
    assert back == TextNode(id_="a", text="text", metadata={"n": 1})


# -- queries ---------------------------------------------------------------------------------------


def test_no_node_ids_in_a_query_restrict_nothing(store, embedded):
    """LlamaIndex's retrievers send an empty list to stores that keep texts."""
    store.add(embedded)
    assert store.query(ask("night", k=6, node_ids=[])) == store.query(ask("night", k=6))


def test_restrictions_apply_together(store, embedded):
    """Ids, documents and filters each narrow the answer, and k of the rest come back."""
    store.add(embedded)
    wanted = ["node-1", "node-2", "node-3"]
    both = ask("cats", k=6, node_ids=wanted, doc_ids=["animals-1", "animals-2"])
    assert set(store.query(both).ids) == {"node-2", "node-3"}
    all_three = ask("cats", k=1, node_ids=wanted, doc_ids=["animals-1"], filters=ODD)
    assert store.query(all_three).ids == ["node-3"]
    assert store.query(ask("cats", doc_ids=[])).ids == []


def test_k_results_come_back_whenever_k_exist(store, embed_model):
    """A filter is applied before the search, not to its results."""
    many = [TextNode(text=f"word{at} cats", metadata={"mod": at % 50}) for at in range(500)]
    store.add(embed_model(many))
    rare = MetadataFilters(filters=[MetadataFilter(key="mod", value=7)])
    assert len(store.query(ask("cats", k=10, filters=rare)).ids) == 10


def test_equal_vectors_have_equal_scores(store):
    """Copies of one text are found in the order of adding, whatever lies between them."""
    wrong = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        same, asked = rng.normal(size=(2, 64))
        nodes = [
            TextNode(id_=f"other {at}", text="text", embedding=row.tolist())
            for at, row in enumerate(rng.normal(size=(rng.integers(5, 60), 64)))
        ]
        nodes += [
            TextNode(id_=f"same {at}", text="text", embedding=same.tolist()) for at in range(7)
        ]
        rng.shuffle(nodes)
        store.add(nodes)
        query = VectorStoreQuery((same + 0.3 * asked).tolist(), similarity_top_k=7)
        found = store.query(query)
        right = [node.node_id for node in nodes if node.node_id.startswith("same")]
        if found.ids != right or len(set(found.similarities)) != 1:
            wrong.append((seed, found.ids, right, set(found.similarities)))
        store.clear()
    assert not wrong


@pytest.mark.parametrize(
    "mode",
    [one for one in VectorStoreQueryMode if one.value not in {"default", "mmr"}],
)
def test_other_modes_are_refused(store, embedded, mode):
    """A mode that the store has not raises at once instead of giving something else."""
    store.add(embedded)
    with pytest.raises(ConfigurationError, match="use DEFAULT or MMR"):
        store.query(ask("cats", mode=mode))


@pytest.mark.parametrize("mode", ["default", "mmr", "sparse"])
def test_modes_may_be_given_by_name(store, embedded, mode):
    """`VectorStoreQuery` does not check its mode, so a plain string reaches the store."""
    store.add(embedded)
    if mode == "sparse":
        with pytest.raises(ConfigurationError, match="use DEFAULT or MMR"):
            store.query(ask("cats", mode=mode))
    else:
        assert store.query(ask("cats", mode=mode)).ids[0] == "node-0"


# -- maximal marginal relevance --------------------------------------------------------------------


def random_nodes(seed: int, count: int = 30, dim: int = 6) -> list[TextNode]:
    rows = np.random.default_rng(seed).normal(size=(count, dim))
    return [
        TextNode(id_=str(at), text="text", embedding=row.tolist()) for at, row in enumerate(rows)
    ]


def classic_mmr(query, nodes, k: int, weight: float) -> list[str]:
    """MMR as Carbonell and Goldstein wrote it, in plain Python."""

    def cosine(a, b):
        return float(np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)))

    nearest = sorted(nodes, key=lambda node: -cosine(query, node.embedding))
    left = {node.node_id: node.embedding for node in nearest}  # of equal values the nearer
    chosen: dict[str, list[float]] = {}
    while left and len(chosen) < k:

        def value(row):
            likeness = max((cosine(row, other) for other in chosen.values()), default=0.0)
            return weight * cosine(query, row) - (1 - weight) * likeness

        best = max(left, key=lambda one: value(left[one]))
        chosen[best] = left.pop(best)
    return list(chosen)


def mmr(node: TextNode, k: int, **more) -> VectorStoreQuery:
    return VectorStoreQuery(
        query_embedding=node.embedding, similarity_top_k=k, mode=VectorStoreQueryMode.MMR, **more
    )


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.9, 1.0])
def test_two_diverse_results_are_simple_stores(store, seed, threshold):
    """Up to the second result LlamaIndex's definition of MMR is the classic one."""
    (asked, *given) = random_nodes(seed)
    theirs = SimpleVectorStore()
    store.add(given)
    theirs.add(given)
    kwargs = {"mmr_threshold": threshold}
    right = theirs.query(mmr(asked, 2), **kwargs)
    found = store.query(mmr(asked, 2), mmr_prefetch_k=len(given), **kwargs)
    assert found.ids == right.ids
    assert found.similarities == pytest.approx(right.similarities, abs=1e-5)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7, 1.0])
def test_diverse_results_are_the_classic_ones(store, seed, threshold):
    """Each result is unlike all results before it, not only unlike the last one."""
    (asked, *given) = random_nodes(seed)
    store.add(given)
    query = mmr(asked, 8, mmr_threshold=threshold)
    found = store.query(query, mmr_prefetch_k=len(given))
    assert found.ids == classic_mmr(asked.embedding, given, 8, threshold)


def test_diverse_results_are_chosen_among_the_nearest(store):
    """Without `mmr_prefetch_k` four times k candidates are looked at, or as many as asked."""
    (asked, *given) = random_nodes(3)
    store.add(given)
    nearest = store.query(VectorStoreQuery(asked.embedding, similarity_top_k=12)).ids
    by_id = {node.node_id: node for node in given}
    for kwargs, count in (({}, 12), ({"mmr_prefetch_factor": 2}, 6), ({"mmr_prefetch_k": 5}, 5)):
        candidates = [by_id[one] for one in nearest[:count]]
        right = classic_mmr(asked.embedding, candidates, 3, 0.1)
        assert store.query(mmr(asked, 3, mmr_threshold=0.1), **kwargs).ids == right


def test_diversity_follows_filters_and_defaults(store):
    """Without a threshold it is 0.5, the query's own goes before the keyword's."""
    (asked, *given) = random_nodes(4)
    for node in given:
        node.metadata["kind"] = "odd" if int(node.node_id) % 2 else "even"
    store.add(given)
    odd = [node for node in given if node.metadata["kind"] == "odd"]
    found = store.query(mmr(asked, 4, filters=ODD), mmr_prefetch_k=len(given))
    assert found.ids == classic_mmr(asked.embedding, odd, 4, 0.5)
    both = store.query(mmr(asked, 4, mmr_threshold=1.0), mmr_threshold=0.0, mmr_prefetch_k=99)
    assert both.ids == store.query(VectorStoreQuery(asked.embedding, similarity_top_k=4)).ids


# -- the rest of LlamaIndex over the store ---------------------------------------------------------


def documents() -> list[Document]:
    return [
        Document(id_="cats", text="Cats sleep all day. Cats hunt mice at dusk."),
        Document(id_="ships", text="Ships cross the ocean. Sailors fear the storm."),
    ]


def test_an_index_over_the_store(store, embed_model):
    """Building, inserting, retrieving and deleting go through `VectorStoreIndex`."""
    index = VectorStoreIndex.from_documents(
        documents(),
        storage_context=StorageContext.from_defaults(vector_store=store),
        embed_model=embed_model,
        transformations=[SentenceSplitter(chunk_size=16, chunk_overlap=0)],
    )
    retriever = index.as_retriever(similarity_top_k=1)
    assert "storm" in retriever.retrieve("do sailors fear a storm")[0].text
    index.insert(Document(id_="trains", text="Trains run on rails."))
    assert retriever.retrieve("trains on rails")[0].node.ref_doc_id == "trains"
    index.delete_ref_doc("trains")
    index.delete_ref_doc("ships", delete_from_docstore=True)
    left = VectorStoreIndex.from_vector_store(store, embed_model=embed_model)
    found = left.as_retriever(similarity_top_k=10).retrieve("trains ships storm")
    assert {one.node.ref_doc_id for one in found} == {"cats"}


async def test_an_index_over_the_store_async(store, embed_model):
    """The async face of `VectorStoreIndex` works on the store, too."""
    index = VectorStoreIndex.from_vector_store(store, embed_model=embed_model)
    await index.ainsert(documents()[0])
    await index.ainsert_nodes([TextNode(id_="n", text="ships on the ocean")])
    retriever = index.as_retriever(similarity_top_k=1)
    assert (await retriever.aretrieve("ocean ships"))[0].node_id == "n"
    await index.adelete_nodes(["n"])
    await index.adelete_ref_doc("cats")
    assert await retriever.aretrieve("ocean ships") == []


def test_a_query_engine_over_the_store(index, mock_llm):
    """Source nodes of a query engine come from the store."""
    engine = index.as_query_engine(response_mode="no_text", similarity_top_k=2, filters=ODD)
    response = engine.query("owls hunt mice")
    assert ids(response.source_nodes)[0] == "node-5"
    assert {one.metadata["kind"] for one in response.source_nodes} == {"odd"}


def test_retrievers_pass_the_mode_and_its_options_on(index):
    """MMR is reached through `as_retriever`."""
    plain = index.as_retriever(similarity_top_k=3)
    diverse = index.as_retriever(
        similarity_top_k=3,
        vector_store_query_mode="mmr",
        vector_store_kwargs={"mmr_threshold": 1.0},
    )
    query = "hunt at night in the forest"
    assert ids(diverse.retrieve(query)) == ids(plain.retrieve(query))


def test_an_ingestion_pipeline_fills_the_store(store, embed_model):
    """A pipeline adds nodes, and one that knows its documents replaces changed ones."""
    pipeline = IngestionPipeline(
        transformations=[SentenceSplitter(chunk_size=16, chunk_overlap=0), embed_model],
        vector_store=store,
        docstore=SimpleDocumentStore(),
        docstore_strategy=DocstoreStrategy.UPSERTS_AND_DELETE,
    )
    added = pipeline.run(documents=documents())
    assert sorted(ids(store.get_nodes())) == sorted(ids(added))
    pipeline.run(documents=[Document(id_="cats", text="Cats purr.")])
    assert [node.text for node in store.get_nodes()] == ["Cats purr."]


# -- on disk ---------------------------------------------------------------------------------------


def test_a_closed_store_reopens_with_the_same_answers(tmp_path, embedded):
    """Closing and opening changes no result, flushed or not."""
    store = CompressedVectorStore.open(tmp_path)
    store.add(embedded)
    store.delete_nodes(["node-3"])
    query = ask("hunt at night", k=6, filters=ODD)
    before = store.query(query), store.get_nodes()
    store.close()
    for _ in range(2):
        again = CompressedVectorStore(tmp_path)  # opens at its first use
        assert (again.query(query), again.get_nodes()) == before
        again.collection.flush()
        again.close()


@pytest.mark.parametrize("on_disk", [True, False])
def test_a_storage_context_persists_the_store(tmp_path, embedded, embed_model, on_disk):
    """`StorageContext.persist` and `from_persist_dir` work for a store on disk and in memory."""
    store = CompressedVectorStore.open(tmp_path / "corpus" if on_disk else None)
    store.add(embedded)
    query = ask("hunt at night", k=6)
    before = store.query(query)
    context = StorageContext.from_defaults(vector_store=store)
    context.persist(tmp_path / "storage")
    store.add(HashEmbedding()([TextNode(id_="late", text="hunt at night")]))
    context.persist(tmp_path / "storage")  # replaces what is there
    store.close()

    again = CompressedVectorStore.from_persist_dir(str(tmp_path / "storage"))
    assert again.query(query).ids == ["late", *before.ids][:6]
    assert again.get_nodes()[: len(embedded)] == [without_embedding(node) for node in embedded]
    loaded = StorageContext.from_defaults(persist_dir=str(tmp_path / "storage"), vector_store=again)
    index = VectorStoreIndex.from_vector_store(again, embed_model=embed_model)
    assert index.as_retriever().retrieve("hunt at night")[0].node_id == "late"
    assert loaded.vector_store is again
    again.close()


def test_a_persisted_folder_can_be_moved(tmp_path, embedded):
    """The note names the collection relative to itself."""
    store = CompressedVectorStore.open(metric="ip")
    store.add(embedded)
    StorageContext.from_defaults(vector_store=store).persist(tmp_path / "before")
    (tmp_path / "before").rename(tmp_path / "after")
    again = CompressedVectorStore.from_persist_dir(str(tmp_path / "after"))
    assert ids(again.get_nodes()) == ids(embedded)
    assert again.collection.metric == "ip"
    again.close()


def test_an_empty_store_persists(tmp_path):
    """A store without nodes comes back as one."""
    store = CompressedVectorStore.open()
    store.persist(str(tmp_path / "default__vector_store.json"))
    again = CompressedVectorStore.from_persist_dir(str(tmp_path))
    assert again.get_nodes() == []
    again.add([TextNode(id_="a", text="text", embedding=[1.0])])
    again.close()


def test_a_persisted_folder_is_not_loaded_as_an_empty_store(tmp_path, embedded):
    """Who forgets to pass the store gets an error: LlamaIndex takes any note for one of its own."""
    store = CompressedVectorStore.open()
    store.add(embedded)
    StorageContext.from_defaults(vector_store=store).persist(tmp_path)
    store.close()
    with pytest.raises((ValueError, TypeError, AttributeError, RagaccelError)):
        StorageContext.from_defaults(persist_dir=str(tmp_path))


@pytest.mark.parametrize("content", [None, "{}", '{"embedding_dict": {}}', "not JSON"])
def test_what_persist_did_not_write_is_not_opened(tmp_path, content):
    """A missing, foreign or damaged note is an error that names the file."""
    if content is not None:
        (tmp_path / "default__vector_store.json").write_text(content)
    with pytest.raises(CollectionNotFoundError, match=r"default__vector_store\.json"):
        CompressedVectorStore.from_persist_dir(str(tmp_path))


# -- what a dump of the store tells ----------------------------------------------------------------


def test_dumps_hold_no_content(tmp_path, embedded):
    """A dump names the folder and the options, and gives an equal store."""
    store = CompressedVectorStore.open(tmp_path, recall=0.95)
    store.add(embedded)
    dumps = [json.dumps(store.to_dict()), json.dumps(store.model_dump()), store.to_json()]
    for dump in (*dumps, repr(store), str(store)):
        assert "cats" not in dump
        assert "node-0" not in dump
    store.close()
    again = CompressedVectorStore.from_dict(store.to_dict())
    assert again.to_dict() == store.to_dict()
    assert ids(again.get_nodes()) == ids(embedded)
    again.close()


# -- other frameworks and processes ----------------------------------------------------------------


def test_a_collection_written_by_langchain_is_readable(tmp_path):
    """Documents of the LangChain adapter are text nodes here, and the other way round."""
    embeddings = pytest.importorskip("langchain_core.embeddings")
    from langchain_core.documents import Document as LangChainDocument

    from ragaccel.langchain import CompressedVectorStore as LangChainStore

    class Words(embeddings.Embeddings):
        def embed_documents(self, texts):
            return [HashEmbedding().get_text_embedding(text) for text in texts]

        def embed_query(self, text):
            return HashEmbedding().get_query_embedding(text)

    theirs = LangChainStore(Words(), path=tmp_path)
    theirs.add_documents(
        [
            LangChainDocument(id="a", page_content="cats sleep", metadata={"n": 1, "tags": ["x"]}),
            LangChainDocument(id="b", page_content="dogs bark", metadata={"n": 2}),
        ]
    )
    theirs.close()
    store = CompressedVectorStore.open(tmp_path)
    assert store.get_nodes(["a"]) == [
        TextNode(id_="a", text="cats sleep", metadata={"n": 1, "tags": ["x"]})
    ]
    assert store.query(ask("do dogs bark", k=1)).ids == ["b"]
    n_is_1 = MetadataFilters(filters=[MetadataFilter(key="n", value=1)])
    assert store.query(ask("do dogs bark", k=1, filters=n_is_1)).ids == ["a"]
    none = MetadataFilters(filters=[MetadataFilter(key="doc_id", value="None")])
    assert len(store.get_nodes(filters=none)) == 2
    store.add(HashEmbedding()([TextNode(id_="c", text="fish swim", metadata={"n": 3})]))
    store.close()
    theirs = LangChainStore(Words(), path=tmp_path)
    assert theirs.similarity_search("fish swim", k=1) == [
        LangChainDocument(id="c", page_content="fish swim", metadata={"n": 3})
    ]
    theirs.close()


def test_copies_share_the_collection(store, embedded):
    """Like a database client, a copy of the store reads and writes what the store does."""
    for twin in (copy.copy(store), store.model_copy(), copy.deepcopy(store)):
        twin.add(embedded)
        assert ids(store.get_nodes()) == ids(embedded)
        store.clear()
        assert twin.get_nodes() == []


def test_a_store_in_memory_is_not_pickled_empty(store, embedded):
    """Its content cannot travel, so that pickling it is refused."""
    store.add(embedded)
    with pytest.raises((RagaccelError, TypeError, pickle.PicklingError)):
        pickle.dumps(store)


def test_a_pickled_store_reads_beside_the_writer(tmp_path, embedded):
    """In the same process, too, a pickled store follows the one that writes."""
    store = CompressedVectorStore.open(tmp_path, recall=0.95)
    store.add(embedded[:2])
    twin = pickle.loads(pickle.dumps(store))
    assert ids(twin.get_nodes()) == ["node-0", "node-1"]
    store.add(embedded[2:])
    assert ids(twin.get_nodes()) == ids(embedded)
    with pytest.raises(RagaccelError, match="reading only"):
        twin.add(embedded)
    twin.close()
    store.close()


def follow(store: CompressedVectorStore, questions, answers) -> None:
    """Answer questions with a store that came from another process."""
    for text in iter(questions.get, None):
        try:
            answers.put(store.query(ask(text, k=2)).ids)
        except RagaccelError as error:
            answers.put(repr(error))
    store.close()


def test_a_pickled_store_follows_its_writer_in_another_process(tmp_path, embedded):
    """It opens for reading only, and sees what the first process writes later."""
    store = CompressedVectorStore.open(tmp_path)
    store.add(embedded)
    spawn = multiprocessing.get_context("spawn")
    questions, answers = spawn.Queue(), spawn.Queue()
    child = spawn.Process(target=follow, args=(store, questions, answers))
    child.start()
    try:
        for text, change in (
            ("cats sleep", lambda: store.delete_nodes(["node-0"])),
            ("cats sleep", lambda: store.add(HashEmbedding()([TextNode(id_="new", text="cats")]))),
            ("cats", store.clear),
            ("cats", lambda: None),
        ):
            questions.put(text)
            assert answers.get(timeout=120) == store.query(ask(text, k=2)).ids
            change()
    finally:
        questions.put(None)
        child.join(30)
        child.kill()
        child.join()
        store.close()


def test_wrong_embeddings_for_the_corpus_are_told(index):
    """An index with another embedding model than the corpus was made with says so."""
    other = VectorStoreIndex.from_vector_store(
        index.vector_store, embed_model=MockEmbedding(embed_dim=5)
    )
    with pytest.raises(ConfigurationError, match="64 dimensions"):
        other.as_retriever().retrieve("cats")
