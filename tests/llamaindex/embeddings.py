"""A real embedding model that needs no weights, and a few texts to try it on."""

from __future__ import annotations

import hashlib
import re

import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding

TEXTS = (
    "cats sleep most of the day and hunt at dusk",
    "dogs bark at strangers and sleep at night",
    "birds sing at dawn in the forest",
    "fish swim in cold water below the ice",
    "horses run across the dry plain",
    "owls hunt mice in the forest at night",
)


class HashEmbedding(BaseEmbedding):
    """Words hashed into a few dimensions: the more of them two texts share, the nearer they are.

    A little of the whole text's own is added, so that no two texts are equally near to a third.
    The same in every process. Another `seed` is another model.
    """

    model_name: str = "hash"
    dim: int = 64
    seed: int = 0

    @classmethod
    def class_name(cls) -> str:
        return "HashEmbedding"

    def _get_text_embedding(self, text: str) -> list[float]:
        own = hashlib.shake_256(f"{self.seed} {text}".encode()).digest(self.dim)
        vector = np.frombuffer(own, np.uint8) / 2048 - 1 / 16
        for word in re.findall(r"\w+", text.lower()):
            key = f"{self.seed} {word}".encode()
            number = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big")
            vector[number % self.dim] += 1 if number & (1 << 63) else -1
        return (vector / np.linalg.norm(vector)).tolist()

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)
