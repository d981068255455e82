"""A store with six texts in it."""

from __future__ import annotations

from ragaccel.langchain import CompressedVectorStore
from tests.langchain.embeddings import HashEmbeddings
from tests.langchain.retrievers import TEXTS


def opened(path=None, *, embeddings=None, **options):
    """Open a new store and add the six texts of `TEXTS` under the ids text-0 to text-5."""
    store = CompressedVectorStore.open(path, embeddings or HashEmbeddings(), **options)
    store.add_texts(
        TEXTS,
        [{"number": number, "words": text.split()} for number, text in enumerate(TEXTS)],
        ids=[f"text-{number}" for number in range(len(TEXTS))],
    )
    return store
