"""Ours and the peers through the frameworks' own query calls.

LlamaIndex's is `store.query(VectorStoreQuery(...))`, LangChain's
`store.similarity_search_with_score_by_vector(...)` or what a store has in its place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tests.benchmarks.vectors import ours
from tests.benchmarks.vectors.contender import Setting
from tests.benchmarks.vectors.data import K

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from tests.benchmarks.vectors.contender import Contender
    from tests.benchmarks.vectors.data import Data

_BATCH = 5_000
_OURS = ("auto@0.9", "auto@0.99", "auto@0.995", "auto@0.999")


def _own(store: Any) -> tuple[int, str]:
    return store.collection.stats().bytes_in_memory, "collection.stats()"


# -- LlamaIndex ------------------------------------------------------------------------------------


def _question(vector: Any) -> Any:
    from llama_index.core.vector_stores.types import VectorStoreQuery

    return VectorStoreQuery(query_embedding=vector.tolist(), similarity_top_k=K)


def _add_nodes(store: Any, data: Data) -> None:
    from llama_index.core.schema import TextNode

    for start in range(0, len(data.base), _BATCH):
        part = data.base[start : start + _BATCH].tolist()
        store.add(
            [
                TextNode(
                    id_=_id(start + at), text=ours.text(start + at), embedding=vector,
                    metadata={"n": start + at},
                )
                for at, vector in enumerate(part)
            ]
        )  # fmt: skip


def _id(row: int) -> str:
    """Return an id that every store takes: Qdrant wants a UUID."""
    return f"00000000-0000-0000-0000-{row:012d}"


def _index_rows(found: Any) -> list[int]:
    if found.nodes:
        return [int(node.metadata["n"]) for node in found.nodes]
    return [int(one.rsplit("-", 1)[-1]) for one in found.ids]


def _llamaindex(make: Callable[[int, Path], Any]) -> Contender:
    def contender(data: Data, folder: Path) -> Iterator[Setting]:
        store = make(data.base.shape[1], folder)
        _add_nodes(store, data)
        yield Setting("", store.query, _index_rows, _question)

    return contender


def _llamaindex_ours(data: Data, folder: Path) -> Iterator[Setting]:
    from ragaccel.llamaindex import CompressedVectorStore

    for at, setting in enumerate(_OURS):
        store = CompressedVectorStore.open(folder / "ours", **ours.options(setting))
        if not at:
            _add_nodes(store, data)
        store.collection.flush()
        yield Setting(setting, store.query, _index_rows, _question, *_own(store))
        store.close()


def _simple(dim: int, folder: Path) -> Any:
    from llama_index.core.vector_stores import SimpleVectorStore

    return SimpleVectorStore()


def _llamaindex_faiss(dim: int, folder: Path) -> Any:
    import faiss
    from llama_index.vector_stores.faiss import FaissVectorStore

    return FaissVectorStore(faiss_index=faiss.IndexFlatIP(dim))


def _llamaindex_chroma(dim: int, folder: Path) -> Any:
    import chromadb
    from llama_index.vector_stores.chroma import ChromaVectorStore

    client = chromadb.EphemeralClient()
    space = {"hnsw": {"space": "cosine", "num_threads": 1}}
    return ChromaVectorStore(client.create_collection("vectors", configuration=space))


def _llamaindex_lancedb(dim: int, folder: Path) -> Any:
    from llama_index.vector_stores.lancedb import LanceDBVectorStore

    return LanceDBVectorStore(uri=str(folder / "lance"), mode="create")


def _llamaindex_qdrant(dim: int, folder: Path) -> Any:
    from llama_index.vector_stores.qdrant import QdrantVectorStore
    from qdrant_client import QdrantClient

    return QdrantVectorStore("vectors", client=QdrantClient(":memory:"))


def _llamaindex_turbovec(dim: int, folder: Path) -> Any:
    from turbovec.llama_index import TurboQuantVectorStore

    return TurboQuantVectorStore()


# -- LangChain -------------------------------------------------------------------------------------


def given(data: Data) -> Any:
    """Return an embedding model that knows the vectors of our texts; a query is a vector."""
    from langchain_core.embeddings import Embeddings

    class Given(Embeddings):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            rows = [int([*one.split(":")[0].split(), "0"][1]) for one in texts]  # or a try-out
            return data.base[rows].tolist()

        def embed_query(self, text: Any) -> list[float]:
            return data.base[0].tolist() if isinstance(text, str) else text

    return Given()


def add_texts(store: Any, data: Data, extra: Sequence[str] = ()) -> None:
    """Add every row's text with its number and the ranks named in `extra`."""
    ranks = {name: ours.rank(data, name) for name in extra}
    for start in range(0, len(data.base), _BATCH):
        rows = range(start, min(start + _BATCH, len(data.base)))
        texts = [ours.text(row) for row in rows]
        about = [{"n": row, **{name: int(ranks[name][row]) for name in extra}} for row in rows]
        store.add_texts(texts, about, ids=[_id(row) for row in rows])


def _langchain(make: Callable[[Any, int, Path], Any], call: str = "") -> Contender:
    name = call or "similarity_search_with_score_by_vector"

    def contender(data: Data, folder: Path) -> Iterator[Setting]:
        store = make(given(data), data.base.shape[1], folder)
        add_texts(store, data)
        ask = getattr(store, name)
        yield Setting(
            call, lambda q: ask(q, k=K),
            lambda found: [int(one.metadata["n"]) for one, _ in found], np.ndarray.tolist,
        )  # fmt: skip

    return contender


def _langchain_ours(data: Data, folder: Path) -> Iterator[Setting]:
    from ragaccel.langchain import CompressedVectorStore

    for at, setting in enumerate(_OURS):
        place = folder / "ours"
        store = CompressedVectorStore.open(place, given(data), **ours.options(setting))
        if not at:
            add_texts(store, data)
        store.collection.flush()
        yield Setting(
            setting,
            lambda q, s=store: s.similarity_search_with_score_by_vector(q, K),
            lambda found: [int(one.metadata["n"]) for one, _ in found],
            np.ndarray.tolist,
            *_own(store),
        )
        store.close()


def in_memory(model: Any, dim: int, folder: Path) -> Any:
    from langchain_core.vectorstores import InMemoryVectorStore

    return InMemoryVectorStore(model)


def langchain_faiss(model: Any, dim: int, folder: Path) -> Any:
    import faiss
    from langchain_community.docstore import InMemoryDocstore
    from langchain_community.vectorstores import FAISS

    return FAISS(model, faiss.IndexFlatIP(dim), InMemoryDocstore(), {})


def langchain_chroma(model: Any, dim: int, folder: Path) -> Any:
    from langchain_chroma import Chroma

    space = {"hnsw": {"space": "cosine", "num_threads": 1}}
    return Chroma("vectors", model, collection_configuration=space)


def _langchain_lancedb(model: Any, dim: int, folder: Path) -> Any:
    from langchain_lancedb import LanceDB

    return LanceDB(model, folder / "lance")


def _langchain_qdrant(model: Any, dim: int, folder: Path) -> Any:
    from langchain_qdrant import QdrantVectorStore
    from qdrant_client import QdrantClient, models

    client = QdrantClient(":memory:")
    client.create_collection("vectors", models.VectorParams(size=dim, distance="Cosine"))
    return QdrantVectorStore(client, "vectors", model)


def langchain_turbovec(model: Any, dim: int, folder: Path) -> Any:
    from turbovec.langchain import TurboQuantVectorStore

    return TurboQuantVectorStore(model)


LLAMAINDEX: dict[str, Contender] = {
    "ours": _llamaindex_ours,
    "SimpleVectorStore": _llamaindex(_simple),
    "FaissVectorStore (Flat, ids only)": _llamaindex(_llamaindex_faiss),
    "turbovec 4-bit": _llamaindex(_llamaindex_turbovec),
    "Chroma": _llamaindex(_llamaindex_chroma),
    "LanceDB (no index)": _llamaindex(_llamaindex_lancedb),
    "Qdrant (local)": _llamaindex(_llamaindex_qdrant),
}
LANGCHAIN: dict[str, Contender] = {
    "ours": _langchain_ours,
    "InMemoryVectorStore": _langchain(in_memory),
    "community FAISS (Flat)": _langchain(langchain_faiss),
    "turbovec 4-bit": _langchain(langchain_turbovec),
    "Chroma": _langchain(langchain_chroma, "similarity_search_by_vector_with_relevance_scores"),
    "LanceDB (no index)": _langchain(_langchain_lancedb, "similarity_search_with_score"),
    "Qdrant (local)": _langchain(_langchain_qdrant),
}
