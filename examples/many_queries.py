# /// script
# requires-python = ">=3.10"
# dependencies = ["ragaccel[llamaindex,demo]"]
# ///
"""Ask a retriever many queries at a time, and let documents flow through stages."""

import asyncio
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llama_index.core import VectorStoreIndex
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.schema import TextNode

from ragaccel.batching import StreamStage, agather, gather, stream
from ragaccel.cli.demo.models import llamaindex_embedding, load_model

DATA = Path(__file__).parent / "data" / "xquad_en"


def records(name: str) -> Iterator[dict[str, Any]]:
    with gzip.open(DATA / name, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def parse(record: dict[str, Any]) -> TextNode:
    return TextNode(text=record["text"], id_=record["_id"])


async def retriever_over(name: str) -> BaseRetriever:
    embed_model = llamaindex_embedding(load_model("wordllama"))
    # Both stages block, so they run in threads; at most `limit` items are between source and list.
    stages = [parse, StreamStage(embed_model, batch=64, concurrency=2, name="embed")]
    nodes = [node async for node in stream(records(name), stages, limit=256)]
    return VectorStoreIndex(nodes, embed_model=embed_model).as_retriever(similarity_top_k=3)


async def ask(retriever: BaseRetriever, queries: list[str]) -> None:
    # On an event loop: 16 at a time, at most 500 in a second; time-outs are tried twice more.
    async for outcome in agather(queries, retriever, concurrency=16, rate=500, retry=2):
        if outcome.position % 50 == 0:
            print(f"{outcome.item} -> {outcome.unwrap()[0].text[:50]}...")


def main() -> None:
    retriever = asyncio.run(retriever_over("corpus.jsonl.gz"))
    queries = [record["text"] for record in records("queries.jsonl.gz")][:200]
    asyncio.run(ask(retriever, queries))

    # Without one, in threads; an error is that of its query alone.
    outcomes = list(gather([*queries[:9], None], retriever, concurrency=4))
    print(f"{sum(one.error is None for one in outcomes)} of {len(outcomes)} answered")


if __name__ == "__main__":
    main()
