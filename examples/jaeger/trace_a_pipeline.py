# /// script
# requires-python = ">=3.10"
# dependencies = ["ragaccel[llamaindex,otel,demo]"]
# ///
"""See every stage of a question in Jaeger: asked for the first time, and again.

docker compose -f examples/jaeger/compose.yaml up -d
python examples/jaeger/trace_a_pipeline.py     # then open http://localhost:16686, service my-rag
"""

import gzip
import json
import sys
from pathlib import Path

from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.llms import MockLLM
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from opentelemetry import trace

from ragaccel import MultiLevelCache, accelerate, telemetry
from ragaccel.cli.demo.models import llamaindex_embedding, load_model
from ragaccel.llamaindex import CompressedVectorStore

DATA = Path(__file__).parents[1] / "data" / "xquad_en" / "corpus.jsonl.gz"


class SharedWords(BaseNodePostprocessor):
    top_n: int = 2

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        asked = set(query_bundle.query_str.split()) if query_bundle else set()
        return sorted(nodes, key=lambda one: -len(asked & set(one.text.split())))[: self.top_n]


def main(endpoint: str = "http://localhost:4317") -> None:
    telemetry.configure(endpoint, service_name="my-rag")
    with gzip.open(DATA, "rt", encoding="utf-8") as lines:
        nodes = [TextNode(text=json.loads(line)["text"]) for line in lines]
    index = VectorStoreIndex(
        nodes,
        storage_context=StorageContext.from_defaults(vector_store=CompressedVectorStore.open()),
        embed_model=llamaindex_embedding(load_model("wordllama")),
    )
    plain = index.as_query_engine(llm=MockLLM(), node_postprocessors=[SharedWords()])
    engine = accelerate(plain, cache=MultiLevelCache.open(), identity="my-rag", cache_sampled=True)
    question = "How many points did the Panthers defense surrender?"
    for name in ("new question", "same question"):  # spans of your own: a request of your server's
        with trace.get_tracer("my-rag").start_as_current_span(name):
            engine.query(question)  # query > retrieve > embed, search; rerank; generate
    telemetry.flush()
    print(f"sent to {endpoint}")


if __name__ == "__main__":
    main(*sys.argv[1:])
