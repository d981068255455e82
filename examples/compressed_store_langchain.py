# /// script
# requires-python = ">=3.10"
# dependencies = ["ragaccel[langchain,demo]"]
# ///
"""Swap in a compressed vector store under a LangChain retriever."""

import tempfile
from pathlib import Path

from ragaccel.cli.demo.corpus import load_corpus
from ragaccel.cli.demo.models import langchain_embeddings, load_model
from ragaccel.langchain import CompressedVectorStore

DATA = Path(__file__).parent / "data" / "xquad_en"


def main() -> None:
    passages = load_corpus(DATA, distractors=6000).passages
    store = CompressedVectorStore.from_texts(
        [one.text for one in passages],
        langchain_embeddings(load_model("wordllama")),
        [{"title": one.title} for one in passages],
        ids=[one.id for one in passages],
        path=tempfile.mkdtemp(),
        compression="auto",
        recall=0.99,
    )
    store.collection.flush()

    stats = store.collection.stats()
    print(f"{stats.rows} vectors, {stats.compression}")
    print(f"{stats.bytes_per_vector:.0f} bytes each in memory, {4 * stats.dim} as float32")
    print(f"recall@10 measured: {store.collection.measure_recall():.3f}")

    retriever = store.as_retriever(
        search_kwargs={"k": 2, "filter": {"title": {"$in": ["Super Bowl 50", "Warsaw"]}}}
    )
    for found in retriever.invoke("How many points did the Panthers defense surrender?"):
        print(f"{found.metadata['title']}: {found.page_content[:60]}...")
    store.close()


if __name__ == "__main__":
    main()
