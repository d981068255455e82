"""LangChain: a vector store, a cache of model answers and a byte store of its own.

Retrievers are wrapped by `ragaccel.accelerate`.
"""

from ragaccel.langchain.byte_store import ByteStore
from ragaccel.langchain.llm_cache import LLMCache
from ragaccel.langchain.recording import TrafficHandler
from ragaccel.langchain.vector_store import CompressedVectorStore

__all__ = ["ByteStore", "CompressedVectorStore", "LLMCache", "TrafficHandler"]
