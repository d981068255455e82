"""LangChain: a vector store of its own; retrievers are wrapped by `ragaccel.accelerate`."""

from ragaccel.langchain.vector_store import CompressedVectorStore

__all__ = ["CompressedVectorStore"]
