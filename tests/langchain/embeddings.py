"""A real embedding model that needs no weights: every word has a random direction of its own."""

from __future__ import annotations

import functools
import hashlib
import re

import numpy as np
from langchain_core.embeddings import Embeddings


class HashEmbeddings(Embeddings):
    """A bag of words: the more words two texts share, the nearer they are.

    The same in every process. Another `seed` is another model of the same dimension.
    """

    def __init__(self, dim=64, seed=0):
        self.dim = dim
        self.seed = seed

    def embed_documents(self, texts):
        return [self.embed_query(text) for text in texts]

    def embed_query(self, text):
        total = np.zeros(self.dim, dtype=np.float32)
        for word in re.findall(r"\w+", text.lower()):
            total += _direction(word, self.dim, self.seed)
        return total.tolist()


@functools.cache
def _direction(word, dim, seed):
    number = hashlib.blake2b(f"{seed} {word}".encode(), digest_size=8).digest()
    generator = np.random.default_rng(int.from_bytes(number, "big"))
    return generator.standard_normal(dim).astype(np.float32)
