"""The same documents for a bare collection and for both frameworks."""

from __future__ import annotations

from ragaccel import VectorCollection
from tests.ingest import texts


class Bare:
    """A collection without a framework."""

    model = texts.HashModel()

    def open(self, path=None):
        return VectorCollection.open(path)

    def collection(self, store):
        return store

    def document(self, id_, text):
        return (id_, text, {"of": id_})

    transform = staticmethod(texts.sentences)

    def close(self, store):
        store.close()


class LlamaIndex:
    """LlamaIndex's documents, with a transformation of nodes."""

    def __init__(self):
        from tests.ingest.nodes import Sentences
        from tests.llamaindex.embeddings import HashEmbedding

        self.model, self.transform = HashEmbedding(dim=16), Sentences()

    def open(self, path=None):
        from ragaccel.llamaindex import CompressedVectorStore

        return CompressedVectorStore.open(path)

    def collection(self, store):
        return store.collection

    def document(self, id_, text):
        from llama_index.core.schema import Document

        return Document(id_=id_, text=text, metadata={"of": id_})

    def close(self, store):
        store.close()


class LangChain:
    """LangChain's documents."""

    def __init__(self):
        from tests.ingest.splitters import Sentences
        from tests.langchain.embeddings import HashEmbeddings

        self.model, self.transform = HashEmbeddings(dim=16), Sentences()

    def open(self, path=None):
        from ragaccel.langchain import CompressedVectorStore

        return CompressedVectorStore.open(path, self.model)

    def collection(self, store):
        return store.collection

    def document(self, id_, text):
        from langchain_core.documents import Document

        return Document(text, id=id_, metadata={"of": id_})

    def close(self, store):
        store.close()


KITS = {"bare": Bare, "llamaindex": LlamaIndex, "langchain": LangChain}
