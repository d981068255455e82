"""Embedding chunks: every text once, sorted by length, and a bad one fails alone."""

from __future__ import annotations

import contextvars
import hashlib
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ragaccel import telemetry
from ragaccel.batching.halves import outcomes
from ragaccel.errors import InvalidVectorError
from ragaccel.io import run
from ragaccel.telemetry import attributes
from ragaccel.wrapping.seam import stage_of
from ragaccel.wrapping.transparent import state_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from threading import Event

    from numpy.typing import NDArray

    Vector = NDArray[np.float32]

#: How many texts the model is asked for at a time.
CALL_TEXTS: Final = 256
_REMEMBERED_BYTES: Final = 16 << 20
_ENTRY_BYTES: Final = 400  # that a vector takes beside its numbers


class Stopped(BaseException):
    """The ingestion is to end, and what is under way with it."""


class Embedder:
    """Gives the vectors of texts.

    Those of the last texts are remembered, in 16 MiB, so that what documents have in common is
    embedded once.

    Args:
        model: The model.
        call: Its function.
        stopped: Whether to end.
        lanes: How many calls to make at a time.

    Attributes:
        sent: How many texts were sent to the model.
        lanes: How many calls are made at a time.
    """

    def __init__(
        self, model: Any, call: Callable[[list[str]], Any], stopped: Event, lanes: int = 1
    ) -> None:
        self._model, self._call, self._stopped, self.lanes = model, call, stopped, lanes
        self._remembered: OrderedDict[bytes, Vector] = OrderedDict()
        self.sent = 0

    def vectors(
        self, texts: Iterable[str], known: Mapping[str, Vector]
    ) -> dict[str, Vector | Exception]:
        """Return the vector of each text, float32 of shape (dim,), or what the model raised for it.

        Args:
            texts: The texts.
            known: Vectors of some of them.

        Raises:
            Stopped: It was stopped.
        """
        found: dict[str, Vector | Exception] = {}
        missing = []
        for text in dict.fromkeys(texts):
            there = known.get(text)
            if there is None:
                there = self._remembered.get(_digest(text))
            if there is None:
                missing.append(text)
            else:
                found[text] = there
        missing.sort(key=len)
        parts = [missing[at : at + CALL_TEXTS] for at in range(0, len(missing), CALL_TEXTS)]
        for part, made in zip(parts, self._asked(parts), strict=True):
            self.sent += len(part)
            for text, vector in zip(part, made, strict=True):
                found[text] = vector
                if not isinstance(vector, Exception):
                    self._remember(text, vector)
        return found

    def _asked(self, parts: Sequence[Sequence[str]]) -> Iterable[list[Vector | Exception]]:
        if self.lanes == 1:
            return map(self._embedded, parts)
        calls = [partial(contextvars.copy_context().run, self._embedded, one) for one in parts]
        with ThreadPoolExecutor(self.lanes, "ragaccel-ingest-embed") as threads:
            return [one.result() for one in [threads.submit(call) for call in calls]]

    def _embedded(self, texts: Sequence[str]) -> list[Vector | Exception]:
        if self._stopped.is_set():
            raise Stopped
        with self._stage(len(texts)):
            made = run(outcomes(self._ask, texts))
        return [_checked(one) for one in made]

    async def _ask(self, texts: Sequence[str]) -> Sequence[Any]:
        vectors: Sequence[Any] = self._call(list(texts))
        return vectors

    def _stage(self, count: int) -> telemetry.Stage:
        """Return the stage of a call, unless the model has one of its own."""
        if state_of(self._model) is not None:
            return telemetry.OFF
        return stage_of("embed", self._model, {attributes.ITEMS: count})

    def _remember(self, text: str, vector: Vector) -> None:
        self._remembered[_digest(text)] = vector
        if len(self._remembered) * (vector.nbytes + _ENTRY_BYTES) > _REMEMBERED_BYTES:
            self._remembered.popitem(last=False)


def _checked(made: Any) -> Vector | Exception:
    if isinstance(made, Exception):
        return made
    try:
        vector = np.array(made, dtype=np.float32)
    except (TypeError, ValueError) as error:
        return InvalidVectorError(f"the model gave no vector of numbers: {error}.")
    if vector.ndim != 1 or not np.isfinite(vector).all():
        return InvalidVectorError("the model gave a vector with NaN or infinite components.")
    return vector


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()
