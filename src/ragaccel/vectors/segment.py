"""A segment: compressed codes of many rows, derived from the slab and rebuilt at will."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import faiss as _typed_faiss
import msgspec
import numpy as np
import xxhash

faiss: Any = _typed_faiss  # its stubs describe the C++ signatures, not the Python ones

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray
    from typing_extensions import Self

    from ragaccel.vectors.spec import CompressionSpec, Metric

_MAGIC: Final = b"ragaccel-segment-1\n"
_TRAIN_ROWS: Final = 20_000
_SEED: Final = 20_261_123
_LIST_ID_BYTES: Final = 8


class _Head(msgspec.Struct):
    codec: str
    dim: int
    metric: str
    trained_rows: int
    oversample: int
    recall: float
    floor: float
    asked_oversample: int | None
    end: int
    rows_of: str
    checksum: int


@dataclass
class Segment:
    """Codes of the slots below `end` that were live when they were added.

    Attributes:
        spec: What the codes are made with.
        dim: Dimensions of the vectors.
        metric: How they are scored.
        trained_rows: Rows there were when the codec was trained.
        oversample: Candidates per result that keep the collection's recall.
        recall: Recall@10 that was estimated with them.
        end: One more than the highest slot that was added.
    """

    spec: CompressionSpec
    dim: int
    metric: Metric
    trained_rows: int
    oversample: int
    recall: float
    end: int
    _index: Any

    @classmethod
    def train(cls, spec: CompressionSpec, metric: Metric, prepared: NDArray[np.float32]) -> Self:
        """Make an empty segment with a codec trained on a sample of prepared rows (n, dim)."""
        dim = prepared.shape[1]
        padded = spec.padded(dim)
        kind = faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT
        index = faiss.index_factory(padded, spec.factory(padded), kind)
        rows = len(prepared)
        if rows > _TRAIN_ROWS:
            chosen = np.random.default_rng(_SEED).choice(rows, _TRAIN_ROWS, replace=False)
            prepared = prepared[np.sort(chosen)]
        index.train(_pad(prepared, padded))
        return cls(spec, dim, metric, rows, spec.oversample or 1, 0.0, 0, index)

    @property
    def bytes_used(self) -> int:
        """Bytes of the codes and row numbers."""
        return int(self._index.ntotal * (_LIST_ID_BYTES + self._index.code_size))

    @property
    def rows(self) -> int:
        """Rows that were encoded, deleted ones included."""
        return int(self._index.ntotal)

    def add(self, slots: NDArray[np.int64], prepared: NDArray[np.float32]) -> None:
        """Encode prepared rows (n, dim) under their slots (n,)."""
        if len(slots):
            self._index.add_with_ids(_pad(prepared, self._index.d), slots)
            self.end = max(self.end, int(slots[-1]) + 1)

    def candidates(
        self, queries: NDArray[np.float32], count: int, allowed: NDArray[np.bool_] | None
    ) -> NDArray[np.int64]:
        """Return the best slots by their codes.

        Args:
            queries: Prepared queries, shape (m, dim).
            count: Candidates per query.
            allowed: By slot, whether it may be found; None allows all.

        Returns:
            Slots of shape (m, count); -1 where there are no more.
        """
        parameters = faiss.SearchParametersIVF(nprobe=1)
        if allowed is not None:
            bitmap = np.packbits(allowed, bitorder="little")
            parameters = faiss.SearchParametersIVF(nprobe=1, sel=faiss.IDSelectorBitmap(bitmap))
        count = max(1, min(count, self._index.ntotal))
        _, slots = self._index.search(_pad(queries, self._index.d), count, params=parameters)
        found: NDArray[np.int64] = slots
        return found

    def save(self, file: Path, rows_of: str, floor: float) -> None:
        """Write the segment, so that it is there whole or not at all.

        Args:
            file: Where.
            rows_of: Names the state of the collection that the codes were made from.
            floor: The recall that the oversampling was set for.
        """
        body = faiss.serialize_index(self._index).tobytes()
        unsealed = _Head(
            self.spec.codec, self.dim, self.metric, self.trained_rows, self.oversample,
            self.recall, floor, self.spec.oversample, self.end, rows_of, 0,
        )  # fmt: skip
        head = msgspec.json.encode(
            msgspec.structs.replace(unsealed, checksum=_checksum(unsealed, body))
        )
        temporary = file.with_name(file.name + ".new")
        with temporary.open("wb") as out:
            out.write(_MAGIC + head + b"\n" + body)
            out.flush()
            os.fsync(out.fileno())
        temporary.replace(file)

    @classmethod
    def load(
        cls,
        file: Path,
        spec: CompressionSpec,
        dim: int,
        metric: Metric,
        floor: float,
        is_known: Callable[[str], bool],
    ) -> Self | None:
        """Read a segment; None if it is missing, damaged or not of the asked kind.

        Args:
            file: Where.
            spec: The asked compression.
            dim: Dimensions of the vectors.
            metric: How they are scored.
            floor: The recall to keep; if the oversampling was set for another one, the segment's
                `recall` is 0, which asks for a new setting.
            is_known: Tells whether the collection went through a state of that name.
        """
        try:
            data = file.read_bytes()
        except FileNotFoundError:
            return None
        head_end = data.find(b"\n", len(_MAGIC))
        if not data.startswith(_MAGIC) or head_end < 0:
            return None
        body = data[head_end + 1 :]
        try:
            head = msgspec.json.decode(data[len(_MAGIC) : head_end], type=_Head)
            unsealed = msgspec.structs.replace(head, checksum=0)
            whole = head.checksum == _checksum(unsealed, body)
        except (msgspec.DecodeError, UnicodeError):
            return None
        asked = (spec.codec, dim, metric)
        if not whole or (head.codec, head.dim, head.metric) != asked or not is_known(head.rows_of):
            return None
        index = faiss.deserialize_index(np.frombuffer(body, dtype=np.uint8))
        same = (head.floor, head.asked_oversample) == (floor, spec.oversample)
        recall = head.recall if same else 0.0
        return cls(spec, dim, metric, head.trained_rows, head.oversample, recall, head.end, index)


def _checksum(head: _Head, body: bytes) -> int:
    return xxhash.xxh3_64_intdigest(msgspec.json.encode(head) + body)


def _pad(rows: NDArray[np.float32], dim: int) -> NDArray[np.float32]:
    if rows.shape[1] == dim:
        return np.ascontiguousarray(rows)
    padded = np.zeros((len(rows), dim), dtype=np.float32)
    padded[:, : rows.shape[1]] = rows
    return padded
