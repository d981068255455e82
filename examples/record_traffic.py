# /// script
# requires-python = ">=3.10"
# dependencies = ["ragaccel[demo,langchain,llamaindex]"]
# ///
"""Record what is asked, in LangChain and in LlamaIndex, and read it again for the tuner."""

import tempfile
from pathlib import Path

from langchain_core.vectorstores import InMemoryVectorStore
from llama_index.core import Document, VectorStoreIndex

from ragaccel import langchain, llamaindex
from ragaccel.cli.demo.models import langchain_embeddings, llamaindex_embedding, load_model
from ragaccel.tuning.recorder import TrafficRecorder
from ragaccel.tuning.traffic import Traffic

FACTS = ["Red apples grow on trees.", "Potatoes grow in the ground.", "Fish swim in the sea."]
model = load_model("wordllama")
store = InMemoryVectorStore(langchain_embeddings(model))
store.add_texts(FACTS, ids=["apples", "potatoes", "fish"])
retriever = store.as_retriever(search_kwargs={"k": 1})
index = VectorStoreIndex.from_documents(
    [Document(text=fact) for fact in FACTS], embed_model=llamaindex_embedding(model)
)

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "traffic.jsonl"
    with TrafficRecorder.open(path, max_bytes=10_000_000) as recorder:
        handler = langchain.TrafficHandler(recorder)
        retriever.invoke("Where do apples grow?", config={"callbacks": [handler]})
        with llamaindex.TrafficHandler(recorder):  # hears of every retrieval of the process
            index.as_retriever(similarity_top_k=2).retrieve("Where do fish live?")

    traffic = Traffic.read(path)
    for asked in traffic:
        print(asked.query, asked.arguments, len(asked.ids), "found", f"{asked.seconds:.4f} s")
    earlier, later = traffic.split(0.5)
    print(f"{len(earlier)} to study, {len(later)} to confirm")

    with TrafficRecorder.open(Path(folder) / "private.jsonl", content=False) as recorder:
        handler = langchain.TrafficHandler(recorder)
        retriever.invoke("Something private?", config={"callbacks": [handler]})
    private = Traffic.read(Path(folder) / "private.jsonl")[0]
    print("without content:", private.query, private.ids)
