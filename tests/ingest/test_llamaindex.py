"""LlamaIndex's documents, nodes, transformations and models."""

from __future__ import annotations

import logging

import pytest
from llama_index.core import Settings, VectorStoreIndex
from llama_index.core.node_parser import SentenceSplitter, TokenTextSplitter
from llama_index.core.schema import Document, NodeRelationship, RelatedNodeInfo, TextNode

from ragaccel import accelerate
from ragaccel.errors import ConfigurationError
from ragaccel.ingest import ingest
from ragaccel.llamaindex import CompressedVectorStore
from tests.ingest import texts
from tests.ingest.nodes import Sentences, shouted
from tests.llamaindex.embeddings import HashEmbedding

MODEL = HashEmbedding(dim=16)


@pytest.fixture
def store():
    """An empty store in memory."""
    made = CompressedVectorStore.open()
    yield made
    made.close()


def documents(count):
    return [
        Document(id_=id_, text=text, metadata={"title": f"title {id_}"})
        for id_, text, _ in texts.documents(count)
    ]


def test_chunks_are_those_of_the_splitter(store):
    """In processes as here, with the same texts, metadata and places in the document."""
    splitter = TokenTextSplitter(chunk_size=40, chunk_overlap=5)
    report = ingest(documents(8), store, embed=MODEL, transform=splitter, workers=1)
    expected = splitter(documents(8))
    assert report.chunks == len(expected)
    assert [_told(one) for one in store.get_nodes()] == [_told(one) for one in expected]


def _told(node):
    return node.text, node.metadata, node.ref_doc_id, node.start_char_idx, node.end_char_idx


def test_chunks_name_each_other_by_their_new_ids(store):
    """Next and previous ones can be had from the store, and the document's chunks deleted."""
    splitter = TokenTextSplitter(chunk_size=40, chunk_overlap=0)
    ingest(documents(3), store, embed=MODEL, transform=splitter, workers=0)
    nodes = store.get_nodes()
    assert any(one.next_node for one in nodes)
    for node in nodes:
        if node.next_node:
            (following,) = store.get_nodes([node.next_node.node_id])
            assert following.prev_node.node_id == node.node_id
    store.delete("document-1")
    assert {one.ref_doc_id for one in store.get_nodes()} == {"document-0", "document-2"}


def test_a_splitter_with_functions_of_its_own_works_here_only(store):
    """LlamaIndex would lose them on the way to a process, and split in another way there."""
    splitter = SentenceSplitter(
        chunk_size=20, chunk_overlap=0, chunking_tokenizer_fn=texts.parts, include_metadata=False
    )
    with pytest.raises(ConfigurationError, match="SentenceSplitter forgets functions"):
        ingest(documents(5), store, embed=MODEL, transform=splitter, workers=1)
    ingest(documents(5), store, embed=MODEL, transform=splitter, workers=0)
    expected = [one.text for one in splitter(documents(5))]
    assert [one.text for one in store.get_nodes()] == expected


def test_sending_a_splitter_warns_of_nothing(store, caplog):
    """LlamaIndex would warn of every lambda that a component makes anew by itself."""
    splitter = TokenTextSplitter(chunk_size=40, chunk_overlap=5)
    with caplog.at_level(logging.WARNING):
        ingest(documents(1), store, embed=MODEL, transform=splitter, workers=1)
    assert not [one for one in caplog.messages if "Removing" in one]
    assert logging.root.filters == []


def test_transformations_follow_each_other(store):
    """Components, and functions of a node that return texts or nodes."""
    report = ingest(documents(4), store, embed=MODEL, transform=[Sentences(), shouted], workers=0)
    expected = [part.upper() for one in documents(4) for part in texts.parts(one.text)]
    assert [one.text for one in store.get_nodes()] == expected
    again = ingest(documents(4), store, embed=MODEL, transform=[Sentences(), shouted], workers=0)
    assert (report.stored, again.unchanged) == (4, 4)


def test_an_embedding_model_is_no_transformation(store):
    """As it is in LlamaIndex's own pipeline; here it has a place of its own."""
    with pytest.raises(ConfigurationError, match="pass embed="):
        ingest(documents(1), store, transform=[Sentences(), MODEL])


def test_the_model_of_the_settings_is_used(store, monkeypatch):
    """As by an index that is given none; what was ingested is found through one."""
    monkeypatch.setattr(Settings, "_embed_model", MODEL)
    ingest(documents(20), store, transform=Sentences(), workers=0)
    sentence = texts.parts(documents(20)[7].text)[0]
    index = VectorStoreIndex.from_vector_store(store, embed_model=MODEL)
    prompt = f"title: title document-7\n\n{sentence}"
    (found,) = index.as_retriever(similarity_top_k=1).retrieve(prompt)
    assert (found.text, found.node.ref_doc_id) == (sentence, "document-7")
    assert found.score == pytest.approx(1, abs=1e-5)


def test_metadata_counts_where_it_is_embedded(store):
    """A field that is left out of what is embedded changes the rows and not the vectors."""

    def made(**metadata):
        return Document(
            id_="a", text="one", metadata=metadata, excluded_embed_metadata_keys=["seen"]
        )

    ingest([made(title="x", seen=1)], store, embed=MODEL, transform=_alone, workers=0)
    seen = ingest([made(title="x", seen=2)], store, embed=MODEL, transform=_alone, workers=0)
    titled = ingest([made(title="y", seen=2)], store, embed=MODEL, transform=_alone, workers=0)
    assert (seen.stored, seen.embedded, titled.stored, titled.embedded) == (1, 0, 1, 1)
    assert store.get_nodes()[0].metadata == {"title": "y", "seen": 2}


def _alone(document):
    return [document]


def test_the_documents_that_were_given_stay_as_they_are(store):
    """Even where the transformation returns them, or a key gives them another id."""
    given = Document(id_="a", text="one", metadata={"path": "p"})
    ingest([given], store, embed=MODEL, transform=_alone, workers=0, key="path")
    assert given == Document(id_="a", text="one", metadata={"path": "p"})
    (node,) = store.get_nodes()
    assert (node.ref_doc_id, node.node_id != "a") == ("p", True)


def test_an_accelerated_model_is_the_same_model(store):
    """What the bare one has embedded is passed over."""
    ingest(documents(5), store, embed=MODEL, transform=Sentences(), workers=0)
    report = ingest(documents(5), store, embed=accelerate(MODEL), transform=Sentences(), workers=0)
    assert report.unchanged == 5


def test_nodes_are_stored_as_by_the_store_itself(store):
    """Under their own ids, with their document; a changed one in the place of the old one."""
    nodes = [
        TextNode(
            id_=f"node {number}", text=f"text {number}", metadata={"number": number},
            relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id="source")},
        )
        for number in range(5)
    ]  # fmt: skip
    report = ingest(nodes, store, embed=MODEL)
    other = CompressedVectorStore.open()
    other.add(MODEL(nodes))
    assert texts.rows(store.collection) == texts.rows(other.collection)
    nodes[2].set_content("changed")
    again = ingest(nodes, store, embed=MODEL)
    assert (report.stored, again.stored, again.unchanged, again.embedded) == (5, 1, 4, 1)
    assert store.get_nodes(["node 2"])[0].text == "changed"
    other.close()


def test_what_is_no_document_is_listed(store):
    """By what it is."""
    report = ingest([Document(text="one"), "text"], store, embed=MODEL)
    assert report.stored == 1
    assert "a LlamaIndex Document or node, got str" in str(report.errors[0])
