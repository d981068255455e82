# /// script
# requires-python = ">=3.10"
# dependencies = ["ragaccel[llamaindex,otel,demo]"]
# ///
"""See every stage of a retrieval in Jaeger.

docker run --rm -p 16686:16686 -p 4317:4317 -p 4318:4318 jaegertracing/jaeger:latest
python examples/traces_in_jaeger.py            # then open http://localhost:16686, service my-rag
"""

import gzip
import json
import sys
from pathlib import Path

from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.schema import TextNode

from ragaccel import MultiLevelCache, accelerate, telemetry
from ragaccel.cli.demo.models import llamaindex_embedding, load_model
from ragaccel.llamaindex import CompressedVectorStore

DATA = Path(__file__).parent / "data" / "xquad_en" / "corpus.jsonl.gz"


def main(endpoint: str = "http://localhost:4317") -> None:
    telemetry.configure(endpoint, service_name="my-rag")

    with gzip.open(DATA, "rt", encoding="utf-8") as lines:
        nodes = [TextNode(text=json.loads(line)["text"]) for line in lines]
    index = VectorStoreIndex(
        nodes,
        storage_context=StorageContext.from_defaults(vector_store=CompressedVectorStore.open()),
        embed_model=llamaindex_embedding(load_model("wordllama")),
    )
    retriever = accelerate(index.as_retriever(), cache=MultiLevelCache.open())

    question = "How many points did the Panthers defense surrender?"
    retriever.retrieve(question)  # query > preprocess, cache.lookup, retrieve > embed, search
    retriever.retrieve(question)  # query > preprocess, cache.lookup (hit)
    telemetry.flush()
    print(f"sent to {endpoint}")


if __name__ == "__main__":
    main(*sys.argv[1:])
