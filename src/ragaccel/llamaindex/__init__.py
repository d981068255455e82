"""LlamaIndex: a vector store and a key-value store of its own, and its global settings.

Components are wrapped by `ragaccel.accelerate`.
"""

from ragaccel.llamaindex.kvstore import CacheKVStore
from ragaccel.llamaindex.recording import TrafficHandler
from ragaccel.llamaindex.settings import accelerated_settings
from ragaccel.llamaindex.vector_store import CompressedVectorStore

__all__ = ["CacheKVStore", "CompressedVectorStore", "TrafficHandler", "accelerated_settings"]
