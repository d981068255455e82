"""Judges, which tell whether two answers are the same one, and the models that questions ask."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ragaccel.errors import ConfigurationError, InvalidVectorError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from numpy.typing import NDArray

    Judge = Callable[[str, str, str], bool | Awaitable[bool]]

#: Methods of the frameworks' embedding models that embed one question: blocking, and awaited.
_METHODS: Final = (
    ("embed_query", "aembed_query"),
    ("get_query_embedding", "aget_query_embedding"),
)


def same_text(question: str, kept: str, answer: str) -> bool:
    """Judge two answers the same if they differ in case and white space at most.

    Args:
        question: What was asked.
        kept: The answer to a similar question.
        answer: The model's own.
    """
    del question
    return _plain(kept) == _plain(answer)


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


class Embedder:
    """Turns questions into unit vectors, by a function or by a framework's embedding model.

    Args:
        model: A function of a text, blocking or not, or an embedding model of LangChain or
            LlamaIndex.

    Raises:
        ConfigurationError: It is neither.
    """

    def __init__(self, model: Any) -> None:
        for blocking, awaited in _METHODS:
            if hasattr(model, blocking):
                self.blocking = getattr(model, blocking)
                self.awaited = getattr(model, awaited, self.blocking)
                return
        if not callable(model):
            raise ConfigurationError(
                "embed must be a function of a text or an embedding model of LangChain or "
                f"LlamaIndex, got {type(model).__name__}."
            )
        self.blocking = self.awaited = model


def unit(vector: Any) -> NDArray[np.float32]:
    """Return a vector of length one.

    Raises:
        InvalidVectorError: It is no vector of finite numbers, or has no length.
    """
    row = np.asarray(vector, np.float32).reshape(-1)
    length = float(np.linalg.norm(row))
    if not 0 < length < float("inf"):
        raise InvalidVectorError("embed gave a vector of no length, or with NaN or infinity.")
    return row / np.float32(length)


def similar_text(embed: Callable[[str], Any], at_least: float = 0.9) -> Judge:
    """Return a judge that calls two answers the same if their vectors are near each other.

    Its own mistakes are part of what `VerifiedReuse` cannot see: audit it on answers of yours.

    Args:
        embed: Gives the vector of a text.
        at_least: The cosine from which on they are.
    """

    def judge(question: str, kept: str, answer: str) -> bool:
        return same_text(question, kept, answer) or (
            float(unit(embed(kept)) @ unit(embed(answer))) >= at_least
        )

    return judge
