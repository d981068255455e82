"""The engine on faiss: scalar and product quantizers and RaBitQ; flat, inverted lists, graphs."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import faiss as _typed_faiss
import numpy as np

from ragaccel.vectors.engines import SCATTERED
from ragaccel.vectors.spec import PQ_DIMENSIONS

faiss: Any = _typed_faiss  # its stubs describe the C++ signatures, not the Python ones

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from ragaccel.vectors.spec import CompressionSpec, Metric

_SEED: Final = 20_261_123
_SLOT_BYTES: Final = 8
_LINK_BYTES: Final = 4
_LINKS: Final = 16
_BUILD_PROBES: Final = 100
_WRITTEN_BYTES: Final = 1 << 20
_MOST_LISTS: Final = 4096
_ROWS_PER_LIST: Final = 40  # of the training sample: fewer make lists at random
_SCALAR: Final = {
    "float32": "Flat", "float16": "SQfp16", "bfloat16": "SQbf16", "int8": "SQ8", "int4": "SQ4",
}  # fmt: skip


def train(
    spec: CompressionSpec, metric: Metric, sample: NDArray[np.float32], rows: int
) -> FaissCodes:
    """Return empty codes whose quantizer was trained; see `Engine`."""
    codes = _untrained(spec, metric, sample.shape[1], _lists_of(spec, rows, len(sample)))
    codes.train(sample)
    return codes


@lru_cache(maxsize=256)
def bytes_of(spec: CompressionSpec, dim: int, rows: int) -> int:
    """Return the bytes that codes of rows take; see `Engine`."""
    return _untrained(spec, "ip", dim, _lists_of(spec, rows, rows)).bytes_of(rows)


def _untrained(spec: CompressionSpec, metric: Metric, dim: int, lists: int) -> FaissCodes:
    kind = faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT
    padded = _padded(spec, dim)
    index = faiss.index_factory(padded, _factory(spec, padded, lists), kind)
    if spec.structure != "hnsw":
        return FaissCodes(spec, dim, index)
    index.hnsw.efConstruction = _BUILD_PROBES
    return GraphCodes(spec, dim, index, np.zeros(0, np.int64))


def rows_to_train(spec: CompressionSpec, rows: int) -> int:
    """Return how many rows a structure for `rows` rows is to be trained on; 0 where any will do."""
    return _ROWS_PER_LIST * _lists(rows) if spec.structure == "ivf" else 0


def _lists(rows: int) -> int:
    return min(_MOST_LISTS, int(rows**0.5))


def _lists_of(spec: CompressionSpec, rows: int, trained: int) -> int:
    if spec.structure != "ivf":
        return 1
    return max(1, min(_lists(rows), trained // _ROWS_PER_LIST))


def load(spec: CompressionSpec, dim: int, data: NDArray[np.uint8]) -> FaissCodes:
    """Return codes from what `write` gave."""
    if spec.structure != "hnsw":
        return FaissCodes(spec, dim, faiss.deserialize_index(data))
    rows = int(data[:_SLOT_BYTES].view(np.int64)[0])
    end = _SLOT_BYTES * (rows + 1)
    slots = data[_SLOT_BYTES:end].view(np.int64).copy()
    return GraphCodes(spec, dim, faiss.deserialize_index(data[end:]), slots)


def share_cores(workers: int) -> None:
    """Let faiss use its share of the cores in this thread, where so many work at a time."""
    faiss.omp_set_num_threads(max(1, faiss.omp_get_max_threads() // workers))


class FaissCodes:
    """Codes in inverted lists.

    A flat structure is one list: an exhaustive scan that, unlike faiss's flat indexes of the same
    codecs, takes selectors and keeps our own row numbers.

    Attributes:
        rows: How many were added.
    """

    def __init__(self, spec: CompressionSpec, dim: int, index: Any) -> None:
        self._index, self._dim = index, dim
        self._rotation = _rotation(dim) if spec.codec.startswith("rabitq") else None
        self.rows = int(index.ntotal)

    @property
    def bytes_used(self) -> int:
        """Bytes of codes, slots and the centres of lists."""
        return self.bytes_of(self.rows)

    def bytes_of(self, rows: int) -> int:
        """Return what `bytes_used` would be with so many rows."""
        centres = 4 * self._index.d * self._index.nlist
        return int(rows * (_SLOT_BYTES + self._index.code_size) + centres)

    def train(self, sample: NDArray[np.float32]) -> None:
        """Train the quantizer on prepared rows (n, dim)."""
        self._index.train(self.transformed(sample))

    @property
    def most_probes(self) -> int:
        """How many lists there are."""
        return int(self._index.nlist)

    def bytes_read(self, probes: int) -> float:
        """Return the size of the codes in so many lists."""
        return float(self.rows * self._index.code_size * probes / self._index.nlist)

    def add(self, slots: NDArray[np.int64], prepared: NDArray[np.float32]) -> None:
        """Encode prepared rows (n, dim) under their slots (n,)."""
        self._index.add_with_ids(self.transformed(prepared), slots)
        self.rows += len(slots)

    def search(
        self,
        queries: NDArray[np.float32],
        count: int,
        probes: int,
        allowed: NDArray[np.uint8] | None,
    ) -> NDArray[np.int64]:
        """Return the best slots by their codes; see `Codes`."""
        if allowed is not None:
            selector = faiss.IDSelectorBitmap(allowed)
            parameters = faiss.SearchParametersIVF(nprobe=probes, sel=selector)
        else:
            parameters = _parameters(probes)
        _, found = self._index.search(self.transformed(queries), count, params=parameters)
        slots: NDArray[np.int64] = found
        return slots

    def write(self, out: Callable[[bytes], object]) -> None:
        """Give everything to a function in parts, so that no copy is in memory."""
        faiss.write_index(self._index, faiss.PyCallbackIOWriter(out, _WRITTEN_BYTES))

    def transformed(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return vectors as the index takes them: rotated and padded where its codec wants that."""
        if self._rotation is not None:
            vectors = vectors @ self._rotation
        if vectors.shape[1] == self._index.d:
            return np.ascontiguousarray(vectors)
        padded = np.zeros((len(vectors), self._index.d), dtype=np.float32)
        padded[:, : vectors.shape[1]] = vectors
        return padded


class GraphCodes(FaissCodes):
    """Codes in a graph, whose nodes are numbered in the order of adding."""

    def __init__(
        self, spec: CompressionSpec, dim: int, index: Any, slots: NDArray[np.int64]
    ) -> None:
        super().__init__(spec, dim, index)
        self._slots = slots

    def bytes_of(self, rows: int) -> int:
        """Return what `bytes_used` would be with so many rows: codes, slots and links."""
        links = 2 * _LINKS * _LINK_BYTES
        return rows * (_SLOT_BYTES + self._code_bytes + links)

    @property
    def _code_bytes(self) -> int:
        storage = faiss.downcast_index(self._index.storage)
        return int(getattr(storage, "code_size", 4 * self._index.d))

    @property
    def most_probes(self) -> int:
        """All nodes."""
        return max(1, self.rows)

    def bytes_read(self, probes: int) -> float:
        """Return the size of the codes of so many nodes and their neighbours, which are apart."""
        return float(SCATTERED * probes * 2 * _LINKS * self._code_bytes)

    def add(self, slots: NDArray[np.int64], prepared: NDArray[np.float32]) -> None:
        """Encode prepared rows (n, dim) under their slots (n,)."""
        self._index.add(self.transformed(prepared))
        self.rows += len(slots)
        self._slots = np.concatenate((self._slots, slots))

    def search(
        self,
        queries: NDArray[np.float32],
        count: int,
        probes: int,
        allowed: NDArray[np.uint8] | None,
    ) -> NDArray[np.int64]:
        """Return the best slots by their codes; see `Codes`.

        A graph loses its way among rows that are not allowed: with a bitmap, the codes are scanned.
        """
        vectors = self.transformed(queries)
        if allowed is None:
            parameters = faiss.SearchParametersHNSW(efSearch=max(probes, count))
            _, found = self._index.search(vectors, count, params=parameters)
        else:
            bits = np.unpackbits(allowed, bitorder="little")
            inside = np.zeros(len(self._slots), dtype=np.uint8)
            known = self._slots < len(bits)
            inside[known] = bits[self._slots[known]]
            selector = faiss.IDSelectorBitmap(np.packbits(inside, bitorder="little"))
            storage = faiss.downcast_index(self._index.storage)
            parameters = faiss.SearchParameters(sel=selector)
            _, found = storage.search(vectors, count, params=parameters)
        slots: NDArray[np.int64] = np.where(found >= 0, self._slots[found], -1)
        return slots

    def write(self, out: Callable[[bytes], object]) -> None:
        """Give everything to a function in parts: the slots, and the graph."""
        out(np.array([len(self._slots)], dtype=np.int64).tobytes())
        out(self._slots.tobytes())
        super().write(out)


def _padded(spec: CompressionSpec, dim: int) -> int:
    """Return the dimension that a codec works in; vectors are padded with zeros."""
    step = PQ_DIMENSIONS.get(spec.codec, 1)
    return -(-dim // step) * step


def _factory(spec: CompressionSpec, dim: int, lists: int) -> str:
    """Return the faiss factory string of a padded dimension."""
    if spec.codec in PQ_DIMENSIONS:
        code = f"PQ{dim // PQ_DIMENSIONS[spec.codec]}x4fs"
    elif spec.codec.startswith("rabitq"):
        bits = int(spec.codec[-1])
        code = "RaBitQfs" if bits == 1 else f"RaBitQfs{bits}"
    else:
        code = _SCALAR[spec.codec]
    return f"HNSW{_LINKS},{code}" if spec.structure == "hnsw" else f"IVF{lists},{code}"


@lru_cache(maxsize=16)
def _rotation(dim: int) -> NDArray[np.float32]:
    """Return a random rotation, always the same for a dimension."""
    normal = np.random.default_rng(_SEED).standard_normal((dim, dim))
    rotation: NDArray[np.float32] = np.linalg.qr(normal)[0].astype(np.float32)
    return rotation


@lru_cache(maxsize=1024)
def _parameters(probes: int) -> Any:
    """Return search parameters, making which takes a tenth of a search."""
    return faiss.SearchParametersIVF(nprobe=probes)
