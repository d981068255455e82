"""The same application in both frameworks: a plain one, and the one with ragaccel in it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Protocol

from ragaccel import accelerate
from ragaccel.cli.demo.models import langchain_embeddings, llamaindex_embedding

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from ragaccel import MultiLevelCache, VectorCollection
    from ragaccel.cli.demo.corpus import Passage
    from ragaccel.cli.demo.models import TextModel

K: Final = 10


@dataclass(frozen=True)
class Application:
    """A retriever and the writes to its store.

    Attributes:
        ask: Returns (id, text) of the passages found for a question.
        put: Adds a passage or replaces the one with its id.
        delete: Deletes a passage by id.
        collection: What is searched; None for the plain application.
        restart: Returns the application as it is after a restart, with another cache object.
    """

    ask: Callable[[str], list[tuple[str, str]]]
    put: Callable[[Passage], object]
    delete: Callable[[str], object]
    collection: VectorCollection | None = None
    restart: Callable[[MultiLevelCache], Application] | None = None


class Framework(Protocol):
    """Builds the two applications."""

    name: str

    def plain(self, model: TextModel, passages: Sequence[Passage]) -> Application:
        """Build the application as the framework's own tutorial does, in memory."""

    def accelerated(
        self, model: TextModel, passages: Sequence[Passage], folder: Path, cache: MultiLevelCache
    ) -> Application:
        """Build it on a compressed store with a wrapped retriever."""


class LlamaIndex:
    """`VectorStoreIndex` and its `VectorIndexRetriever`."""

    name = "LlamaIndex"

    def plain(self, model: TextModel, passages: Sequence[Passage]) -> Application:
        """Use LlamaIndex's default store, `SimpleVectorStore`."""
        from llama_index.core import VectorStoreIndex

        index = VectorStoreIndex(_nodes(passages), embed_model=llamaindex_embedding(model))
        return _llamaindex(index, index.as_retriever(similarity_top_k=K))

    def accelerated(
        self, model: TextModel, passages: Sequence[Passage], folder: Path, cache: MultiLevelCache
    ) -> Application:
        """Use `CompressedVectorStore` and `accelerate`."""
        from llama_index.core import StorageContext, VectorStoreIndex

        from ragaccel.llamaindex import CompressedVectorStore

        store = CompressedVectorStore.open(folder)
        index = VectorStoreIndex(
            _nodes(passages),
            storage_context=StorageContext.from_defaults(vector_store=store),
            embed_model=llamaindex_embedding(model),
        )
        store.collection.flush()

        def start(cache: MultiLevelCache) -> Application:
            retriever = accelerate(index.as_retriever(similarity_top_k=K), cache=cache)
            return replace(_llamaindex(index, retriever, store.collection), restart=start)

        return start(cache)


class LangChain:
    """A vector store and its `VectorStoreRetriever`."""

    name = "LangChain"

    def plain(self, model: TextModel, passages: Sequence[Passage]) -> Application:
        """Use LangChain's own store, `InMemoryVectorStore`."""
        from langchain_core.vectorstores import InMemoryVectorStore

        store = InMemoryVectorStore(langchain_embeddings(model))
        _fill(store, passages)
        return _langchain(store, store.as_retriever(search_kwargs={"k": K}))

    def accelerated(
        self, model: TextModel, passages: Sequence[Passage], folder: Path, cache: MultiLevelCache
    ) -> Application:
        """Use `CompressedVectorStore` and `accelerate`."""
        from ragaccel.langchain import CompressedVectorStore

        store = CompressedVectorStore.open(folder, langchain_embeddings(model))
        _fill(store, passages)
        store.collection.flush()

        def start(cache: MultiLevelCache) -> Application:
            retriever = accelerate(store.as_retriever(search_kwargs={"k": K}), cache=cache)
            return replace(_langchain(store, retriever, store.collection), restart=start)

        return start(cache)


def _nodes(passages: Sequence[Passage]) -> list[Any]:
    from llama_index.core.schema import TextNode

    # The title is left out of what is embedded, so that both frameworks embed the same text.
    return [
        TextNode(
            id_=one.id,
            text=one.text,
            metadata={"title": one.title},
            excluded_embed_metadata_keys=["title"],
        )
        for one in passages
    ]


def _llamaindex(
    index: Any, retriever: Any, collection: VectorCollection | None = None
) -> Application:
    return Application(
        ask=lambda text: [(one.node.node_id, one.node.text) for one in retriever.retrieve(text)],
        put=lambda passage: index.insert_nodes(_nodes([passage])),
        delete=lambda id_: index.delete_nodes([id_]),
        collection=collection,
    )


def _fill(store: Any, passages: Sequence[Passage]) -> None:
    store.add_texts(
        [one.text for one in passages],
        [{"title": one.title} for one in passages],
        ids=[one.id for one in passages],
    )


def _langchain(
    store: Any, retriever: Any, collection: VectorCollection | None = None
) -> Application:
    return Application(
        ask=lambda text: [(one.id, one.page_content) for one in retriever.invoke(text)],
        put=lambda passage: _fill(store, [passage]),
        delete=lambda id_: store.delete([id_]),
        collection=collection,
    )
