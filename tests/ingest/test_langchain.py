"""LangChain's documents, text splitters and models."""

from __future__ import annotations

import pytest
from langchain_core.documents import Document
from langchain_text_splitters import RecursiveCharacterTextSplitter

from ragaccel import accelerate
from ragaccel.errors import ConfigurationError
from ragaccel.ingest import ingest
from ragaccel.langchain import CompressedVectorStore
from tests.ingest import texts
from tests.langchain.embeddings import HashEmbeddings

SPLITTER = RecursiveCharacterTextSplitter(chunk_size=60, chunk_overlap=10, add_start_index=True)


@pytest.fixture
def store():
    """An empty store in memory."""
    made = CompressedVectorStore.open(None, HashEmbeddings(dim=16))
    yield made
    made.close()


def documents(count):
    return [
        Document(text, id=id_, metadata={"source": f"{id_}.txt"})
        for id_, text, _ in texts.documents(count)
    ]


@pytest.mark.parametrize("workers", [0, 1])
def test_chunks_are_those_of_the_splitter(store, workers):
    """In processes as here, and found by the store's retriever."""
    ingest(documents(8), store, transform=SPLITTER, workers=workers)
    expected = SPLITTER.split_documents(documents(8))
    found = [(row.text, row.metadata) for row in store.collection.select()]
    assert found == [(one.page_content, one.metadata) for one in expected]
    (nearest,) = store.as_retriever(search_kwargs={"k": 1}).invoke(expected[3].page_content)
    assert nearest.page_content == expected[3].page_content


def test_a_changed_splitter_is_noticed(store):
    """By its settings; equal chunks keep their vectors."""
    ingest(documents(5), store, transform=SPLITTER, workers=0)
    again = ingest(documents(5), store, transform=SPLITTER, workers=0)
    other = RecursiveCharacterTextSplitter(chunk_size=60, chunk_overlap=10)
    changed = ingest(documents(5), store, transform=other, workers=0)
    assert (again.unchanged, changed.stored, changed.embedded) == (5, 5, 0)


def test_documents_without_an_id_are_known_by_their_content(store):
    """A changed one is another one, unless a key tells that they are the same."""
    ingest([Document("one", metadata={"source": "x"})], store, transform=SPLITTER)
    same = ingest([Document("one", metadata={"source": "x"})], store, transform=SPLITTER)
    ingest([Document("two", metadata={"source": "x"})], store, transform=SPLITTER)
    assert same.unchanged == 1
    assert len(store.collection) == 2
    for text in ("three", "four"):
        ingest([Document(text, metadata={"source": "y"})], store, transform=SPLITTER, key="source")
    assert len(store.collection) == 3


def test_without_a_transformation_documents_are_stored_as_by_the_store_itself(store):
    """Under their own ids."""
    ingest(documents(5), store)
    with_ids = CompressedVectorStore.open(None, HashEmbeddings(dim=16))
    with_ids.add_documents(documents(5))
    assert texts.rows(store.collection) == texts.rows(with_ids.collection)
    with_ids.close()


def test_a_function_may_return_texts(store):
    """They have the document's metadata."""
    ingest(documents(3), store, transform=_sentences, workers=0)
    expected = [
        (part, one.metadata) for one in documents(3) for part in texts.parts(one.page_content)
    ]
    assert [(row.text, row.metadata) for row in store.collection.select()] == expected


def _sentences(document):
    return texts.parts(document.page_content)


def test_an_accelerated_model_is_the_same_model(store):
    """What the bare one has embedded is passed over."""
    ingest(documents(5), store, transform=SPLITTER, workers=0)
    model = accelerate(HashEmbeddings(dim=16))
    report = ingest(documents(5), store, embed=model, transform=SPLITTER, workers=0)
    assert report.unchanged == 5


def test_what_is_no_document_or_transformation_is_told(store):
    """By what it is."""
    report = ingest([Document("one"), "text"], store)
    assert "a LangChain Document, got str" in str(report.errors[0])
    with pytest.raises(ConfigurationError, match="a text splitter or a function"):
        ingest([], store, transform="sentences")
