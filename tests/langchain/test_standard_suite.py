"""LangChain's own conformance suites, whole, and its indexing API."""

from __future__ import annotations

from functools import partial

import pytest
from langchain_core.documents import Document
from langchain_core.indexing import InMemoryRecordManager, aindex, index
from langchain_tests.integration_tests import (
    RetrieversIntegrationTests,
    VectorStoreIntegrationTests,
)

from ragaccel import MultiLevelCache, accelerate
from ragaccel.langchain import CompressedVectorStore
from tests.langchain.embeddings import HashEmbeddings
from tests.langchain.retrievers import WordRetriever
from tests.langchain.stores import opened


class TestStoreInMemory(VectorStoreIntegrationTests):
    """The vector store suite, in memory."""

    @pytest.fixture
    def vectorstore(self):
        store = CompressedVectorStore(self.get_embeddings())
        yield store
        store.close()


class TestStoreOnDisk(VectorStoreIntegrationTests):
    """The vector store suite, in a folder."""

    @pytest.fixture
    def vectorstore(self, tmp_path):
        store = CompressedVectorStore.open(tmp_path / "corpus", self.get_embeddings())
        yield store
        store.close()


class _Accelerated(RetrieversIntegrationTests):
    """The retriever suite, whose retrievers are wrapped and share a cache."""

    @pytest.fixture(autouse=True)
    def _cached(self):
        with MultiLevelCache.open() as self.cache:
            yield

    @property
    def retriever_query_example(self):
        return "red tree"


class TestStoreRetriever(_Accelerated):
    """The retriever suite, over the compressed store."""

    @property
    def retriever_constructor(self):
        store = opened()
        return lambda k=4: accelerate(store.as_retriever(search_kwargs={"k": k}), cache=self.cache)


class _WithK(WordRetriever):
    """Takes the number of results for one call, too."""

    def _get_relevant_documents(self, query, *, run_manager, k=None):
        return self.ranked(query)[:k]


class TestCustomRetriever(_Accelerated):
    """The retriever suite, over a class that a user wrote."""

    @property
    def retriever_constructor(self):
        return lambda **fields: accelerate(
            _WithK(**fields), cache=self.cache, identity=f"words {fields}"
        )


# -- indexing --------------------------------------------------------------------------------------


@pytest.fixture(params=["memory", "disk"])
def store(request, tmp_path):
    """An empty store."""
    path = None if request.param == "memory" else tmp_path / "corpus"
    with_path = CompressedVectorStore.open(path, HashEmbeddings())
    yield with_path
    with_path.close()


@pytest.fixture
def indexed(store):
    """LangChain's `index` into the store; it remembers what it has written."""
    manager = InMemoryRecordManager(namespace="tests")
    manager.create_schema()
    return partial(
        index,
        record_manager=manager,
        vector_store=store,
        source_id_key="source",
        key_encoder="sha256",
    )


def documents(**texts):
    """One document per source."""
    return [
        Document(page_content=text, metadata={"source": source}) for source, text in texts.items()
    ]


def stored(store):
    """What the store holds, by source."""
    return {row.metadata["source"]: row.text for row in store.collection.scan()}


def counts(added=0, updated=0, skipped=0, deleted=0):
    """What `index` reports."""
    return {
        "num_added": added,
        "num_updated": updated,
        "num_skipped": skipped,
        "num_deleted": deleted,
    }


def test_indexing_skips_what_is_unchanged(store, indexed):
    """The second run over the same documents writes nothing."""
    given = documents(a="red apple", b="green pear")
    assert indexed(given, cleanup="incremental") == counts(added=2)
    assert indexed(given, cleanup="incremental") == counts(skipped=2)
    assert stored(store) == {"a": "red apple", "b": "green pear"}


def test_incremental_cleanup_replaces_a_changed_source(store, indexed):
    """A changed document takes the place of its old version, others stay."""
    indexed(documents(a="red apple", b="green pear"), cleanup="incremental")
    assert indexed(documents(a="blue sky"), cleanup="incremental") == counts(added=1, deleted=1)
    assert stored(store) == {"a": "blue sky", "b": "green pear"}
    found = store.similarity_search("red apple", 4)
    assert {document.page_content for document in found} == {"green pear", "blue sky"}


def test_full_cleanup_deletes_what_is_no_longer_there(store, indexed):
    """A run over fewer documents deletes the others."""
    indexed(documents(a="red apple", b="green pear", c="blue sky"), cleanup="full")
    assert indexed(documents(b="green pear"), cleanup="full") == counts(skipped=1, deleted=2)
    assert stored(store) == {"b": "green pear"}
    assert indexed([], cleanup="full") == counts(deleted=1)
    assert stored(store) == {}


async def test_indexing_works_asynchronously(store):
    """The asynchronous API adds, skips and cleans up as the synchronous one does."""
    manager = InMemoryRecordManager(namespace="tests")
    await manager.acreate_schema()
    run = partial(
        aindex,
        record_manager=manager,
        vector_store=store,
        source_id_key="source",
        key_encoder="sha256",
    )
    given = documents(a="red apple", b="green pear")
    assert await run(given, cleanup="full") == counts(added=2)
    assert await run(given[:1], cleanup="full") == counts(skipped=1, deleted=1)
    assert stored(store) == {"a": "red apple"}


def test_indexing_is_seen_by_a_cached_retriever(store, indexed, cache):
    """What `index` writes and deletes is in the next cached answer, which is not made anew."""
    retriever = accelerate(store.as_retriever(search_kwargs={"k": 1}), cache=cache)

    def answer():
        return [document.page_content for document in retriever.invoke("red apple")]

    indexed(documents(a="green pear"), cleanup="full")
    assert answer() == answer() == ["green pear"]
    indexed(documents(a="red apple", b="green pear"), cleanup="full")
    assert answer() == answer() == ["red apple"]
    indexed(documents(b="green pear"), cleanup="full")
    assert answer() == answer() == ["green pear"]
    assert cache.stats().hits == {"memory": 5}  # written or deleted meanwhile, it is repaired
