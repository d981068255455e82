# /// script
# requires-python = ">=3.10"
# dependencies = ["ragaccel[llamaindex,demo]"]
# ///
"""Wrap the LlamaIndex retriever you already have: same class, same answers, cached."""

import gzip
import json
import tempfile
import time
from pathlib import Path

from llama_index.core import Document, VectorStoreIndex
from llama_index.core.retrievers import VectorIndexRetriever

from ragaccel import MultiLevelCache, accelerate
from ragaccel.cli.demo.models import llamaindex_embedding, load_model

DATA = Path(__file__).parent / "data" / "xquad_en" / "corpus.jsonl.gz"


def main() -> None:
    with gzip.open(DATA, "rt", encoding="utf-8") as lines:
        documents = [Document(text=json.loads(line)["text"]) for line in lines]
    # Any embedding model does; this one comes with its weights from the package registry.
    embed_model = llamaindex_embedding(load_model("wordllama"))
    index = VectorStoreIndex.from_documents(documents, embed_model=embed_model)

    with MultiLevelCache.open(tempfile.mkdtemp()) as cache:  # memory + disk; redis=URL shares it
        retriever = accelerate(index.as_retriever(similarity_top_k=3), cache=cache)
        assert isinstance(retriever, VectorIndexRetriever)  # still your retriever

        for _ in range(2):
            started = time.perf_counter()
            nodes = retriever.retrieve("How many points did the Panthers defense surrender?")
            print(f"{1000 * (time.perf_counter() - started):.2f} ms: {nodes[0].text[:60]}...")
        print(cache.stats())


if __name__ == "__main__":
    main()
