"""A cached answer over our store is repaired after a write, and is what a search gives then."""

from __future__ import annotations

import asyncio

import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.schema import TextNode

from ragaccel import accelerate
from ragaccel.llamaindex import CompressedVectorStore


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_answer_follows_writes_without_a_search(cache, embed_model, asynchronous):
    """A new nearest node enters, a deleted one leaves, and the question is searched for once."""
    store = CompressedVectorStore()
    index = VectorStoreIndex.from_vector_store(store, embed_model=embed_model)
    index.insert_nodes([TextNode(text=f"a cat and {row} dogs", id_=str(row)) for row in range(30)])
    plain = index.as_retriever(similarity_top_k=3)
    fast = accelerate(plain, cache=cache)

    def ask(retriever):
        if asynchronous:
            return asyncio.run(retriever.aretrieve("a cat"))
        return retriever.retrieve("a cat")

    first = ask(fast)
    index.insert_nodes([TextNode(text="a cat", id_="new", metadata={"kind": "cat"})])
    assert ask(fast) == ask(plain) != first
    store.delete_nodes([first[0].node.node_id])
    assert ask(fast) == ask(plain)
    assert cache.stats().misses == 1
    store.close()
