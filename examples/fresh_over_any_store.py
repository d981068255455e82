# /// script
# requires-python = ">=3.10"
# dependencies = ["ragaccel[langchain,demo]"]
# ///
"""Cache over the vector store you already have, write to it, and never see a stale answer."""

import gzip
import json
from pathlib import Path

from langchain_core.vectorstores import InMemoryVectorStore

from ragaccel import MultiLevelCache, accelerate
from ragaccel.cli.demo.models import langchain_embeddings, load_model
from ragaccel.langchain import CompressedVectorStore
from ragaccel.reuse import NeighbourReuse, same_words

DATA = Path(__file__).parent / "data" / "xquad_en" / "corpus.jsonl.gz"
QUESTION = "How many points did the Panthers defense surrender?"


def main() -> None:
    with gzip.open(DATA, "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines]
    embeddings = langchain_embeddings(load_model("wordllama"))

    # A store of LangChain's or LlamaIndex's own keeps a change log once it is accelerated, and is
    # still of its class. Write through what accelerate gives back.
    store = accelerate(InMemoryVectorStore(embeddings))
    store.add_texts(texts, ids=[str(number) for number in range(len(texts))])
    with MultiLevelCache.open() as cache:
        # Spellings of a question share an answer.
        retriever = accelerate(store.as_retriever(), cache=cache, normalise=same_words())
        best = retriever.invoke(QUESTION)[0]
        assert retriever.invoke(QUESTION.upper() + "  ")[0].id == best.id
        store.delete([best.id])
        assert retriever.invoke(QUESTION)[0].id != best.id
        print(f"{cache.stats().hits['memory']} hit, and none that a write made wrong")

    # Over ragaccel's own store, rewordings are answered from the rows that cached questions keep,
    # where that is proven to be what a search finds.
    compressed = CompressedVectorStore.from_texts(texts, embeddings)
    neighbours = NeighbourReuse("certified", min_gain=None)
    with MultiLevelCache.open() as cache:
        retriever = accelerate(compressed.as_retriever(), cache=cache, neighbours=neighbours)
        for asked in (QUESTION, "How many points did the Panthers' defense surrender?"):
            retriever.invoke(asked)
        print(f"{neighbours.stats().share_served:.0%} of the searches were not made")


if __name__ == "__main__":
    main()
