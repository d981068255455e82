# /// script
# requires-python = ">=3.10"
# dependencies = ["ragaccel[llamaindex,demo]"]
# ///
"""A cache as production needs it: lifetimes by result, warming, invalidation, statistics."""

import gzip
import json
import tempfile
from pathlib import Path

import rich
from llama_index.core import VectorStoreIndex
from llama_index.core.schema import TextNode

from ragaccel import MultiLevelCache, accelerate
from ragaccel.cache import adaptive_ttl
from ragaccel.cli.demo.models import llamaindex_embedding, load_model

DATA = Path(__file__).parent / "data" / "xquad_en" / "corpus.jsonl.gz"
QUESTIONS = [
    "How many points did the Panthers defense surrender?",
    "What is the latest score of the Panthers?",
    "Who designed the Warsaw Ghetto memorial?",
]


def main() -> None:
    with gzip.open(DATA, "rt", encoding="utf-8") as lines:
        nodes = [TextNode(text=json.loads(line)["text"]) for line in lines]
    index = VectorStoreIndex(nodes, embed_model=llamaindex_embedding(load_model("wordllama")))

    with (
        tempfile.TemporaryDirectory() as folder,
        MultiLevelCache.open(
            folder,  # redis="redis://…" shares it with other machines
            namespace="help-desk",  # a hard partition: one per tenant
            ttl=adaptive_ttl(base=3600),  # longer for confident results, a minute for "latest …"
            stale_while_revalidate=600,  # an old answer is served once more while a new one is made
            early_refresh=1.0,  # hot answers are renewed before they expire
        ) as cache,
    ):
        retriever = accelerate(index.as_retriever(), cache=cache, identity="xquad, wordllama")

        print(cache.warm(QUESTIONS, through=retriever, concurrency=2))
        found = retriever.retrieve(QUESTIONS[0])  # served

        # The document behind an answer changed: every answer made of it goes, here and in all
        # processes that share the folder or the server, at the same cost for ten or ten million.
        cache.invalidate(documents=[found[0].node.node_id])
        retriever.retrieve(QUESTIONS[0])  # made anew
        retriever.retrieve(QUESTIONS[2])  # still served

        rich.print(cache.stats())


if __name__ == "__main__":
    main()
