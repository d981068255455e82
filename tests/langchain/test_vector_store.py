"""`CompressedVectorStore`: exact scores, LangChain's own choices, and documents that survive."""

from __future__ import annotations

import copy
import gc
from typing import get_args

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_core.vectorstores.utils import maximal_marginal_relevance

from ragaccel.errors import ConfigurationError
from ragaccel.langchain import CompressedVectorStore
from ragaccel.vectors.spec import Codec
from tests.langchain.embeddings import HashEmbeddings
from tests.langchain.retrievers import TEXTS
from tests.langchain.stores import opened

TOLERANCE = 1e-5
QUERIES = ("w1 w2 w3", "w7 w8", "n3 w5 w6 w7", "w11")


def many(rows):
    """Texts of a few common words and a rare one, no two of them with the same words."""
    return [f"w{row % 7} w{row % 11} w{row % 13} w{row % 17} n{row}" for row in range(rows)]


def cosines(query, texts, embeddings):
    """The similarity of a query to each text, in double precision."""
    rows = np.array(embeddings.embed_documents(texts), dtype=np.float64)
    one = np.array(embeddings.embed_query(query), dtype=np.float64)
    return rows @ one / np.linalg.norm(rows, axis=1) / np.linalg.norm(one)


def ids(documents):
    """The ids of documents, in their order."""
    return [document.id for document in documents]


# -- scores ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("query", QUERIES)
def test_results_and_scores_are_those_of_an_exact_search(query, embeddings):
    """The nearest documents come back in the order of their cosines, which are the scores."""
    texts = many(400)
    store = CompressedVectorStore.from_texts(texts, embeddings, ids=[str(i) for i in range(400)])
    exact = cosines(query, texts, embeddings)
    found = store.similarity_search_with_score(query, 10)
    best = np.sort(exact)[::-1][:10]
    assert [score for _, score in found] == pytest.approx(best, abs=TOLERANCE)
    for document, score in found:
        assert exact[int(document.id)] == pytest.approx(score, abs=TOLERANCE)
        assert document.page_content == texts[int(document.id)]


@pytest.mark.parametrize("compression", get_args(Codec))
def test_compressed_search_gives_exact_scores(compression, embeddings):
    """Whatever the codec, scores are cosines, sorted, and of nearly the best documents."""
    texts = many(2_100)
    store = CompressedVectorStore.from_texts(
        texts, embeddings, ids=[str(i) for i in range(len(texts))], compression=compression
    )
    store.collection.flush()
    assert store.collection.stats().compression.codec == compression
    shares = []
    for query in QUERIES:
        exact = cosines(query, texts, embeddings)
        scores = {}
        for document, score in store.similarity_search_with_score(query, 10):
            assert exact[int(document.id)] == pytest.approx(score, abs=TOLERANCE)
            scores[document.id] = score
        assert list(scores.values()) == sorted(scores.values(), reverse=True)
        shares.append(len(scores.keys() & {str(row) for row in np.argsort(-exact)[:10]}) / 10)
    assert np.mean(shares) >= 0.9


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
def test_relevance_scores_are_within_zero_and_one(metric, embeddings):
    """The same text has the highest relevance, opposite and far ones stay at or above zero."""
    store = CompressedVectorStore(embeddings, metric=metric)
    store.add_texts(TEXTS)
    store.collection.upsert(
        ["opposite"], -np.array([embeddings.embed_query(TEXTS[0])]), texts=["opposite"]
    )
    found = store.similarity_search_with_relevance_scores(TEXTS[0], 10)
    scores = [score for _, score in found]
    assert len(scores) == len(TEXTS) + 1
    assert all(0 <= score <= 1 for score in scores)
    assert scores == sorted(scores, reverse=True)
    assert scores[0] == pytest.approx(1, abs=TOLERANCE)
    assert found[0][0].page_content == TEXTS[0]


def test_threshold_keeps_what_reaches_it(store):
    """A score threshold drops exactly the documents below it."""
    found = store.similarity_search_with_relevance_scores("red apple tree", 6)
    threshold = found[2][1]
    kept = store.similarity_search_with_relevance_scores(
        "red apple tree", 6, score_threshold=threshold
    )
    assert kept == found[:3]


def test_searches_agree_with_each_other(store, embeddings):
    """The same documents come back by text, by vector, with scores and through `search`."""
    query = "red apple tree"
    found = store.similarity_search_with_score(query, 4)
    documents = [document for document, _ in found]
    vector = embeddings.embed_query(query)
    assert store.similarity_search(query, 4) == documents
    assert store.similarity_search_by_vector(vector, 4) == documents
    assert store.similarity_search_with_score_by_vector(vector, 4) == found
    assert store.search(query, "similarity", k=4) == documents


def test_fewer_rows_than_asked_for_all_come_back(embeddings):
    """An empty store finds nothing, and a small one everything."""
    store = CompressedVectorStore(embeddings)
    assert store.similarity_search("red") == []
    assert store.max_marginal_relevance_search("red") == []
    assert store.similarity_search_with_relevance_scores("red") == []
    store.add_texts(["red apple"])
    assert len(store.similarity_search("red", 100)) == 1


# -- diversity -------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [0.0, 0.25, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("query", QUERIES)
def test_diverse_results_are_langchains_own_choice(query, weight, embeddings):
    """Among the nearest candidates the documents that LangChain's function picks come back."""
    store = CompressedVectorStore.from_texts(many(300), embeddings)
    candidates = store.similarity_search(query, 25)
    vectors = embeddings.embed_documents([one.page_content for one in candidates])
    chosen = maximal_marginal_relevance(
        np.array(embeddings.embed_query(query)), vectors, lambda_mult=weight, k=6
    )
    found = store.max_marginal_relevance_search(query, k=6, fetch_k=25, lambda_mult=weight)
    assert found == [candidates[at] for at in chosen]


def test_diverse_search_agrees_with_langchains_own_store(embeddings):
    """The whole search picks the documents that `InMemoryVectorStore` picks."""
    texts = many(200)
    numbers = [str(row) for row in range(len(texts))]
    ours = CompressedVectorStore.from_texts(texts, embeddings, ids=numbers)
    theirs = InMemoryVectorStore.from_texts(texts, embeddings, ids=numbers)
    for query in QUERIES:
        assert ids(ours.max_marginal_relevance_search(query, 5)) == ids(
            theirs.max_marginal_relevance_search(query, 5)
        )


# -- writing ---------------------------------------------------------------------------------------


def test_given_ids_are_kept_and_missing_ones_made(store):
    """Ids come back in the order of the texts; a None gets an id of its own."""
    made = store.add_texts(["one more", "and another"], ids=[None, "mine"])
    assert made[1] == "mine"
    assert made[0]
    assert [document.page_content for document in store.get_by_ids(made)] == [
        "one more",
        "and another",
    ]


def test_ids_argument_goes_before_the_documents_own(store):
    """`ids=` names documents, whatever ids they bring."""
    document = Document(id="own", page_content="a new text")
    assert store.add_documents([document], ids=["given"]) == ["given"]
    assert ids(store.get_by_ids(["own", "given"])) == ["given"]


def test_existing_id_is_replaced(store):
    """Adding an id again replaces its text and its metadata, and finds it under the new text."""
    store.add_texts(["quite something else"], [{"new": True}], ids=["text-0"])
    assert store.get_by_ids(["text-0"]) == [
        Document(id="text-0", page_content="quite something else", metadata={"new": True})
    ]
    assert ids(store.similarity_search("something else", 1)) == ["text-0"]
    assert len(store.similarity_search("anything", 100)) == len(TEXTS)


def test_last_of_equal_ids_counts(embeddings):
    """Of one id given twice in a call, the later text is stored."""
    store = CompressedVectorStore(embeddings)
    assert store.add_texts(["first", "second"], ids=["same", "same"]) == ["same", "same"]
    assert [one.page_content for one in store.get_by_ids(["same"])] == ["second"]
    assert len(store.collection) == 1


def test_delete_takes_ids_or_everything(store):
    """Unknown ids are passed over, and without ids nothing is left."""
    assert store.delete(["text-0", "unknown"])
    assert store.get_by_ids(["text-0"]) == []
    assert len(store.similarity_search("red", 100)) == len(TEXTS) - 1
    assert store.delete()
    assert store.similarity_search("red", 100) == []
    store.add_texts(["after all"])
    assert [one.page_content for one in store.similarity_search("red", 9)] == ["after all"]


async def test_a_delete_that_is_not_understood_deletes_nothing(store):
    """Other stores take a filter there; it must not be dropped, with everything else."""
    with pytest.raises(ConfigurationError, match="filter= and would delete everything"):
        store.delete(filter={"topic": "a"})
    with pytest.raises(ConfigurationError, match="where"):
        await store.adelete(where={"topic": "a"})
    assert len(store.collection) == len(TEXTS)
    assert store.delete(["text-0"], batch_size=1)
    assert len(store.collection) == len(TEXTS) - 1


def test_nothing_to_add_is_no_error(embeddings):
    """Empty lists add nothing and do not ask the model."""
    store = CompressedVectorStore(embeddings)
    assert store.add_texts([]) == []
    assert store.add_documents([]) == []
    assert store.delete([])
    assert store.get_by_ids([]) == []


def test_callers_documents_are_not_changed(store):
    """Adding gives the caller's documents neither ids nor other metadata."""
    given = [
        Document(page_content="without an id", metadata={"list": [1, {"deep": [2]}]}),
        Document(id="with", page_content="with an id"),
    ]
    before = copy.deepcopy(given)
    store.add_documents(given)
    assert given == before
    assert given[0].id is None


def test_stored_documents_cannot_be_changed_from_outside(store):
    """Neither a given nor a returned document shares anything with the store."""
    metadata = {"list": [1]}
    store.add_texts(["shared"], [metadata], ids=["shared"])
    metadata["list"].append(2)
    found = store.get_by_ids(["shared"])[0]
    found.metadata["list"].append(3)
    found.page_content = "changed"
    assert store.get_by_ids(["shared"]) == [
        Document(id="shared", page_content="shared", metadata={"list": [1]})
    ]


@pytest.mark.parametrize(
    "text", ["zero \0 character", " ", "😀 größe 日本", "line\r\nbreak", "x" * 10**6]
)
def test_text_comes_back_as_it_was(store, text):
    """Every character of a text is kept, those that parsers leave behind too."""
    store.add_texts([text], ids=["odd"])
    assert store.get_by_ids(["odd"]) == [Document(id="odd", page_content=text)]


def test_metadata_comes_back_as_json(store):
    """Every JSON value keeps its type, and a tuple becomes a list."""
    given = {
        "text": 'größe 日本 😀 "quoted" back\\slash\nline',
        "whole": 2**62,
        "fraction": 0.1,
        "truth": True,
        "nothing": None,
        "list": [1, "a", None, [2.5]],
        "dict": {"inner": {"deep": []}},
        "tuple": (1, (2, 3)),
        "": "an empty key",
    }
    store.add_texts(["rich"], [given], ids=["rich"])
    stored = store.get_by_ids(["rich"])[0].metadata
    assert stored == {**given, "tuple": [1, [2, 3]]}
    assert {key: type(value) for key, value in stored.items()} == {
        **{key: type(value) for key, value in given.items()},
        "tuple": list,
    }


# -- constructors and persistence ------------------------------------------------------------------


@pytest.mark.parametrize("on_disk", [False, True])
def test_framework_constructors_fill_a_store(on_disk, tmp_path, embeddings):
    """`from_texts` and `from_documents` give stores with the same contents."""
    metadatas = [{"number": number} for number in range(len(TEXTS))]
    names = [f"id-{number}" for number in range(len(TEXTS))]
    documents = [
        Document(id=name, page_content=text, metadata=metadata)
        for name, text, metadata in zip(names, TEXTS, metadatas, strict=True)
    ]
    folders = (tmp_path / "a", tmp_path / "b") if on_disk else (None, None)
    by_text = CompressedVectorStore.from_texts(
        list(TEXTS), embeddings, metadatas, ids=names, path=folders[0]
    )
    by_document = CompressedVectorStore.from_documents(documents, embeddings, path=folders[1])
    for store in (by_text, by_document):
        assert store.get_by_ids(names) == documents
        assert store.embeddings is embeddings
        store.close()


async def test_asynchronous_constructors_fill_a_store(embeddings):
    """`afrom_texts` and `afrom_documents` do what their twins do."""
    documents = [Document(id=str(row), page_content=text) for row, text in enumerate(TEXTS)]
    by_document = await CompressedVectorStore.afrom_documents(documents, embeddings)
    by_text = await CompressedVectorStore.afrom_texts(
        list(TEXTS), embeddings, ids=[document.id for document in documents]
    )
    assert by_document.get_by_ids(ids(documents)) == documents
    assert by_text.get_by_ids(ids(documents)) == documents


@pytest.mark.parametrize("compression", ["auto", "int8", "pq"])
def test_reopened_store_gives_the_same_results(compression, tmp_path, embeddings):
    """After closing and opening again every search gives the same documents and scores."""
    folder = tmp_path / "corpus"
    texts = many(1_500)
    metadatas = [{"row": row, "odd": bool(row % 2)} for row in range(len(texts))]
    store = CompressedVectorStore.from_texts(
        texts, embeddings, metadatas, path=folder, compression=compression
    )
    store.delete([store.similarity_search(QUERIES[0], 1)[0].id])
    store.collection.flush()

    def answers(store):
        return [
            (
                store.similarity_search_with_score(query, 10),
                store.similarity_search_with_score(query, 10, filter={"odd": True}),
                store.max_marginal_relevance_search(query, 5),
            )
            for query in QUERIES
        ]

    before = answers(store)
    store.close()
    again = CompressedVectorStore.open(folder, embeddings, compression=compression)
    assert answers(again) == before
    again.add_texts(["w1 w2 w3"], ids=["new"])
    assert ids(again.similarity_search("w1 w2 w3", 1)) == ["new"]
    again.close()
    reader = CompressedVectorStore.open(folder, embeddings, read_only=True)
    assert ids(reader.similarity_search("w1 w2 w3", 1)) == ["new"]
    reader.close()


def test_reader_follows_the_writer(disk_store, embeddings):
    """A store that is open for reading finds what the writer adds, and loses what it deletes."""
    reader = CompressedVectorStore.open(disk_store.collection.path, embeddings, read_only=True)
    disk_store.add_texts(["an extraordinary zebra"], ids=["zebra"])
    assert ids(reader.similarity_search("extraordinary zebra", 1)) == ["zebra"]
    disk_store.delete(["zebra"])
    assert "zebra" not in ids(reader.similarity_search("extraordinary zebra", 10))
    reader.close()


def test_store_that_nobody_holds_lets_go_of_the_folder(tmp_path, embeddings):
    """LangChain has no habit of closing stores: a forgotten one can be opened again, complete."""
    store = CompressedVectorStore.from_texts(list(TEXTS), embeddings, path=tmp_path / "corpus")
    del store
    gc.collect()
    again = CompressedVectorStore.open(tmp_path / "corpus", embeddings)
    assert len(again.collection) == len(TEXTS)
    again.close()


def test_failed_constructor_lets_go_of_the_folder(tmp_path, embeddings):
    """After `from_texts` has raised, the corrected call succeeds on the same folder."""
    folder = tmp_path / "corpus"
    with pytest.raises(ValueError, match="object"):
        CompressedVectorStore.from_texts(["a text"], embeddings, [{"bad": object()}], path=folder)
    store = CompressedVectorStore.from_texts(["a text"], embeddings, [{"bad": "no"}], path=folder)
    assert len(store.collection) == 1
    store.close()


async def test_failed_asynchronous_constructor_lets_go_of_the_folder(tmp_path, embeddings):
    """After `afrom_texts` has raised, the corrected call succeeds on the same folder."""
    folder = tmp_path / "corpus"
    with pytest.raises(ValueError, match="empty"):
        await CompressedVectorStore.afrom_texts([""], embeddings, path=folder)
    store = await CompressedVectorStore.afrom_texts(["a text"], embeddings, path=folder)
    assert len(store.collection) == 1
    store.close()


def test_store_of_llamaindex_is_readable(tmp_path, embeddings):
    """What LlamaIndex wrote is found, filtered and fetched here as documents."""
    from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode

    from ragaccel.llamaindex import CompressedVectorStore as LlamaIndexStore

    writer = LlamaIndexStore.open(tmp_path / "corpus")
    writer.add(
        [
            TextNode(
                id_=f"node-{number}",
                text=text,
                metadata={"number": number, "words": text.split()},
                embedding=embeddings.embed_query(text),
                relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id="document")},
            )
            for number, text in enumerate(TEXTS)
        ]
    )
    writer.close()
    store = CompressedVectorStore.open(tmp_path / "corpus", embeddings)
    expected = Document(
        id="node-2", page_content=TEXTS[2], metadata={"number": 2, "words": TEXTS[2].split()}
    )
    assert store.similarity_search(TEXTS[2], 1) == [expected]
    assert store.get_by_ids(["node-2"]) == [expected]
    found = store.similarity_search("red", 9, filter={"number": {"$lt": 2}})
    assert set(ids(found)) == {"node-0", "node-1"}
    store.add_texts(["a later text"], ids=["later"])
    assert len(store.similarity_search("red", 100)) == len(TEXTS) + 1
    store.close()


# -- async -----------------------------------------------------------------------------------------

SEARCHES = {
    "similarity_search": ("red apple tree", 3),
    "similarity_search_with_score": ("red apple tree", 3),
    "similarity_search_with_relevance_scores": ("red apple tree", 3),
    "max_marginal_relevance_search": ("red apple tree", 3, 5, 0.3),
    "similarity_search_by_vector": (HashEmbeddings().embed_query("red apple tree"), 3),
    "max_marginal_relevance_search_by_vector": (
        HashEmbeddings().embed_query("red apple tree"),
        3,
        5,
        0.3,
    ),
    "get_by_ids": (["text-3", "unknown", "text-1"],),
}
FILTERS = {
    "none": {},
    "dict": {"filter": {"number": {"$gte": 1}}},
    "function": {"filter": lambda document: document.metadata["number"] != 3},
}


@pytest.mark.parametrize(
    ("method", "options"),
    [
        pytest.param(method, options, id=f"{method}-{name}")
        for method in SEARCHES
        for name, options in FILTERS.items()
        if method != "get_by_ids" or name == "none"
    ],
)
async def test_asynchronous_methods_give_what_their_twins_give(store, method, options):
    """Every search has an async twin with the same answer, with and without a filter."""
    given = SEARCHES[method]
    expected = getattr(store, method)(*given, **options)
    assert expected
    assert await getattr(store, f"a{method}")(*given, **options) == expected


async def test_asynchronous_writes_do_what_their_twins_do(store):
    """Documents added and deleted asynchronously are there and gone."""
    given = [Document(page_content="a new text", metadata={"a": 1}), Document(page_content="b")]
    made = await store.aadd_documents(given, ids=[None, "b"])
    assert made[1] == "b"
    assert [one.page_content for one in await store.aget_by_ids(made)] == ["a new text", "b"]
    assert await store.aadd_texts(["changed"], ids=["b"]) == ["b"]
    assert [one.page_content for one in store.get_by_ids(["b"])] == ["changed"]
    assert await store.adelete(made)
    assert store.get_by_ids(made) == []
    assert await store.adelete()
    assert len(store.collection) == 0


def test_store_in_memory_does_not_touch_the_disk(tmp_path, monkeypatch):
    """Without a path nothing is written into the working directory."""
    monkeypatch.chdir(tmp_path)
    store = opened()
    store.collection.flush()
    store.close()
    assert list(tmp_path.iterdir()) == []
