# /// script
# requires-python = ">=3.10"
# dependencies = ["ragaccel[llamaindex,demo]"]
# ///
"""Take in documents; run it again, and only what has changed is split and embedded."""

import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from llama_index.core.schema import Document

from ragaccel.cli.demo.corpus import load_corpus
from ragaccel.cli.demo.models import llamaindex_embedding, load_model
from ragaccel.ingest import IngestReport, ingest
from ragaccel.llamaindex import CompressedVectorStore

DATA = Path(__file__).parent / "data" / "xquad_en"


def articles() -> Iterator[Document]:
    parts = defaultdict(list)
    for passage in load_corpus(DATA, distractors=3000).passages:
        parts[passage.title].append(passage.text)
    for title, texts in parts.items():
        yield Document(id_=title, text="\n\n".join(texts), metadata={"title": title})


def paragraphs(document: Document) -> list[str]:
    return document.text.split("\n\n")


def main() -> None:
    store = CompressedVectorStore.open(tempfile.mkdtemp())
    model = llamaindex_embedding(load_model("wordllama"))

    def take_in(documents: list[Document]) -> IngestReport:
        return ingest(documents, into=store, embed=model, transform=paragraphs)

    documents = list(articles())
    print(take_in(documents))
    documents[0] = Document(
        id_=documents[0].doc_id,
        text=f"A new first paragraph.\n\n{documents[0].text}",
        metadata=documents[0].metadata,
    )
    print(take_in(documents))
    store.close()


if __name__ == "__main__":
    main()
