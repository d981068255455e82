# /// script
# requires-python = ">=3.10"
# dependencies = ["ragaccel[llamaindex,demo]"]
# ///
"""Swap in a compressed vector store under a LlamaIndex index."""

import tempfile
from pathlib import Path

from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters

from ragaccel.cli.demo.corpus import load_corpus
from ragaccel.cli.demo.models import llamaindex_embedding, load_model
from ragaccel.llamaindex import CompressedVectorStore

DATA = Path(__file__).parent / "data" / "xquad_en"


def main() -> None:
    passages = load_corpus(DATA, distractors=6000).passages
    nodes = [TextNode(id_=one.id, text=one.text, metadata={"title": one.title}) for one in passages]

    store = CompressedVectorStore.open(tempfile.mkdtemp(), compression="auto", recall=0.99)
    index = VectorStoreIndex(
        nodes,
        storage_context=StorageContext.from_defaults(vector_store=store),
        embed_model=llamaindex_embedding(load_model("wordllama")),
    )
    store.collection.flush()

    stats = store.collection.stats()
    print(f"{stats.rows} vectors, {stats.compression}")
    print(f"{stats.bytes_per_vector:.0f} bytes each in memory, {4 * stats.dim} as float32")
    print(f"recall@10 measured: {store.collection.measure_recall():.3f}")

    football = MetadataFilters(filters=[MetadataFilter(key="title", value="Super Bowl 50")])
    retriever = index.as_retriever(similarity_top_k=2, filters=football)
    for found in retriever.retrieve("How many points did the Panthers defense surrender?"):
        print(f"{found.score:.3f} {found.node.metadata['title']}: {found.text[:60]}...")
    store.close()


if __name__ == "__main__":
    main()
