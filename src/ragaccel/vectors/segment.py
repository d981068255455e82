"""A segment: compressed codes of many rows, derived from the slab and rebuilt at will."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np
import xxhash

from ragaccel.vectors.engines import Effort, faiss_engine
from ragaccel.vectors.metric import prepare
from ragaccel.vectors.slab import blocks
from ragaccel.vectors.spec import CompressionSpec

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray
    from typing_extensions import Self

    from ragaccel.vectors.engines import Codes
    from ragaccel.vectors.slab import Rows
    from ragaccel.vectors.spec import Metric

#: About how many rows a codec is trained on; up to twice as many.
TRAIN_ROWS: Final = 20_000
_MAGIC: Final = b"ragaccel-segment-2\n"


class _Head(msgspec.Struct):
    """What stands before the codes in the file.

    Attributes:
        floor: The recall that the effort was set for.
        rows_of: Names the state of the collection that the codes were made from.
        checksum: xxh3-64 of this head, without the checksum, and of the codes.
    """

    codec: str
    structure: str
    asked_oversample: int | None
    dim: int
    metric: str
    trained_rows: int
    rows_when_made: int
    oversample: int
    probes: int
    recall: float | None
    floor: float
    end: int
    rows_of: str
    checksum: int = 0


@dataclass
class Segment:
    """Codes of the slots below `end` that were live when they were added.

    Attributes:
        spec: What the codes are made with.
        dim: Dimensions of the vectors.
        metric: How they are scored.
        codes: The codes.
        trained_rows: Rows that the codec was trained on.
        rows_when_made: Rows there were when the segment was made or its effort last set.
        effort: How hard searches try, so that they keep the collection's recall.
        recall: Recall@10 that was estimated with it; None while the effort is to be set.
        end: One more than the highest slot that was added.
    """

    spec: CompressionSpec
    dim: int
    metric: Metric
    codes: Codes
    trained_rows: int
    rows_when_made: int
    effort: Effort = Effort()  # noqa: RUF009 - it is frozen
    recall: float | None = None
    end: int = 0
    _stored: object = field(default=None, init=False, repr=False, compare=False)

    @classmethod
    def train(
        cls, spec: CompressionSpec, metric: Metric, sample: NDArray[np.float32], rows: int
    ) -> Self:
        """Make an empty segment with a codec trained on prepared rows (n, dim), for `rows` rows."""
        codes = faiss_engine.train(spec, metric, sample, rows)
        return cls(spec, sample.shape[1], metric, codes, len(sample), rows)

    @classmethod
    def build(
        cls, spec: CompressionSpec, metric: Metric, rows: Rows, slots: NDArray[np.int64]
    ) -> Self:
        """Train a codec on some raw rows and encode all of those slots, int64 of shape (n,)."""
        wanted = max(TRAIN_ROWS, faiss_engine.rows_to_train(spec, len(slots)))
        step = max(1, len(slots) // wanted)
        segment = cls.train(spec, metric, _sampled(rows, slots[::step], metric), len(slots))
        for part in blocks(slots):
            segment.add(part, prepare(rows.read(part), metric))
        return segment

    def add(self, slots: NDArray[np.int64], prepared: NDArray[np.float32]) -> None:
        """Encode prepared rows (n, dim) under their slots (n,)."""
        if len(slots):
            self.codes.add(slots, prepared)
            self.end = max(self.end, int(slots[-1]) + 1)

    def candidates(
        self,
        queries: NDArray[np.float32],
        count: int,
        allowed: NDArray[np.uint8] | None = None,
        probes: int | None = None,
    ) -> NDArray[np.int64]:
        """Return the best slots by their codes.

        Args:
            queries: Prepared queries, shape (m, dim).
            count: Candidates per query.
            allowed: Bitmap by slot of what may be found; None allows all.
            probes: See `Effort`; the segment's own by default.

        Returns:
            Slots of shape (m, count); -1 where there are no more.
        """
        count = max(1, min(count, self.codes.rows))
        if probes is None:
            probes = self.effort.probes
        return self.codes.search(queries, count, min(probes, self.codes.most_probes), allowed)

    def save(self, file: Path, rows_of: str, floor: float) -> None:
        """Write the segment, so that it is there whole or not at all, unless it is there already.

        Args:
            file: Where.
            rows_of: Names the state of the collection that the codes were made from.
            floor: The recall that the effort was set for.
        """
        state = self._state(rows_of, floor)
        if state == self._stored and file.exists():
            return
        head = _Head(
            self.spec.codec, self.spec.structure, self.spec.oversample, self.dim, self.metric,
            self.trained_rows, self.rows_when_made, *self.effort, self.recall, floor, self.end,
            rows_of,
        )  # fmt: skip
        digest = _digest(head)
        self.codes.write(digest.update)
        head.checksum = digest.intdigest()
        temporary = file.with_name(file.name + ".new")
        with temporary.open("wb") as out:
            out.write(_MAGIC + msgspec.json.encode(head) + b"\n")
            self.codes.write(out.write)
            out.flush()
            os.fsync(out.fileno())
        temporary.replace(file)
        self._stored = state

    def unsaved(self) -> Self:
        """Return the same codes, to be stored whatever lies there by now."""
        return replace(self)

    def _state(self, rows_of: str, floor: float) -> object:
        """Return what changes whenever a stored segment is another one."""
        return rows_of, floor, self.effort, self.recall, self.rows_when_made, self.end

    @classmethod
    def load(
        cls,
        file: Path,
        spec: CompressionSpec | None,
        dim: int,
        metric: Metric,
        floor: float,
        is_known: Callable[[str], bool],
    ) -> Self | None:
        """Read a segment; None if it is missing, damaged or not of the asked kind.

        Args:
            file: Where.
            spec: The asked compression; None takes any.
            dim: Dimensions of the vectors.
            metric: How they are scored.
            floor: The recall to keep; if the effort was set for another one, the segment's `recall`
                is None, and for a higher one its effort is twice the stored one.
            is_known: Tells whether the collection went through a state of that name.
        """
        try:
            data = np.fromfile(file, dtype=np.uint8)
        except FileNotFoundError:
            return None
        found = _head(data)
        if found is None:
            return None
        head, body = found
        asked = spec or CompressionSpec(head.codec, head.structure)  # type: ignore[arg-type]
        of_kind = (asked.codec, asked.structure, dim, metric)
        if of_kind != (head.codec, head.structure, head.dim, head.metric):
            return None
        if not is_known(head.rows_of):
            return None
        same = head.floor == floor and asked.oversample == head.asked_oversample
        times = 2 if floor > head.floor else 1
        effort = Effort(asked.oversample or times * head.oversample, times * head.probes)
        segment = cls(
            asked, dim, metric, faiss_engine.load(asked, dim, body), head.trained_rows,
            head.rows_when_made, effort, head.recall if same else None, head.end,
        )  # fmt: skip
        segment._stored = segment._state(head.rows_of, head.floor)
        return segment


def _sampled(rows: Rows, slots: NDArray[np.int64], metric: Metric) -> NDArray[np.float32]:
    """Return prepared rows, with little else in memory meanwhile."""
    sample = np.empty((len(slots), rows.mapped.shape[1]), dtype=np.float32)
    at = 0
    for part in blocks(slots):
        sample[at : at + len(part)] = prepare(rows.read(part), metric)
        at += len(part)
    return sample


def _head(data: NDArray[np.uint8]) -> tuple[_Head, NDArray[np.uint8]] | None:
    """Return the head and the codes of a file, or None if it is none or is damaged."""
    start = data[: len(_MAGIC) + 4096].tobytes()
    end = start.find(b"\n", len(_MAGIC))
    if not start.startswith(_MAGIC) or end < 0:
        return None
    try:
        head = msgspec.json.decode(start[len(_MAGIC) : end], type=_Head)
    except (msgspec.DecodeError, UnicodeError):
        return None
    body = data[end + 1 :]
    return (head, body) if head.checksum == _checksum(head, body.data) else None


def _checksum(head: _Head, body: memoryview) -> int:
    digest = _digest(head)
    digest.update(body)
    return digest.intdigest()


def _digest(head: _Head) -> xxhash.xxh3_64:
    return xxhash.xxh3_64(msgspec.json.encode(msgspec.structs.replace(head, checksum=0)))
