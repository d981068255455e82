"""LlamaIndex: a vector store and a key-value store of its own.

Retrievers are wrapped by `ragaccel.accelerate`.
"""

from ragaccel.llamaindex.kvstore import CacheKVStore
from ragaccel.llamaindex.vector_store import CompressedVectorStore

__all__ = ["CacheKVStore", "CompressedVectorStore"]
