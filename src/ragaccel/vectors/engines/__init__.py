"""Engines: libraries that keep codes and find the nearest of them. Another one is one more file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from ragaccel.vectors.spec import CompressionSpec, Metric


#: How many bytes are read in a row in the time of one that lies here or there.
SCATTERED: Final = 3


class Effort(NamedTuple):
    """How hard a search tries.

    Attributes:
        oversample: Candidates per asked result.
        probes: Inverted lists that are looked into, or nodes of a graph that are kept in view;
            nothing to a flat structure.
    """

    oversample: int = 1
    probes: int = 1


class Codes(Protocol):
    """Codes of rows, each under its slot."""

    @property
    def rows(self) -> int:
        """How many were added."""

    @property
    def bytes_used(self) -> int:
        """Bytes that codes, slots and links take."""

    @property
    def most_probes(self) -> int:
        """The most that `Effort.probes` can mean; 1 for a flat structure."""

    def bytes_read(self, probes: int) -> float:
        """Return about how many bytes a query reads in a row, or could in its time."""

    def add(self, slots: NDArray[np.int64], prepared: NDArray[np.float32]) -> None:
        """Encode prepared rows (n, dim) under their slots (n,), ascending and new."""

    def search(
        self,
        queries: NDArray[np.float32],
        count: int,
        probes: int,
        allowed: NDArray[np.uint8] | None,
    ) -> NDArray[np.int64]:
        """Return the best slots by their codes.

        Args:
            queries: Prepared queries, shape (m, dim).
            count: How many per query.
            probes: See `Effort`.
            allowed: Bitmap by slot (little-endian bits) of what may be found; None allows all.

        Returns:
            Slots, int64 of shape (m, count); -1 where there are no more.
        """

    def write(self, out: Callable[[bytes], object]) -> None:
        """Give everything to a function, in parts that are together what `Engine.load` takes."""


class Engine(Protocol):
    """Makes codes."""

    def train(
        self, spec: CompressionSpec, metric: Metric, sample: NDArray[np.float32], rows: int
    ) -> Codes:
        """Return empty codes whose quantizer was trained.

        Args:
            spec: The codec and structure.
            metric: How vectors are scored; cosine is the inner product of prepared vectors.
            sample: Prepared rows to train on, float32 of shape (n, dim).
            rows: About how many rows will be added.
        """

    def rows_to_train(self, spec: CompressionSpec, rows: int) -> int:
        """Return how many rows codes for `rows` rows are to be trained on; 0 where any will do."""

    def bytes_of(self, spec: CompressionSpec, dim: int, rows: int) -> int:
        """Return `Codes.bytes_used` of so many rows, without making codes."""

    def load(self, spec: CompressionSpec, dim: int, data: NDArray[np.uint8]) -> Codes:
        """Return codes from what `Codes.write` gave."""
