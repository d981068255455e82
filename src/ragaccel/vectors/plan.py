"""What is asked of an index, and the plan that makes its codes anew beside searches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ragaccel.vectors import calibrate
from ragaccel.vectors.choice import choose_spec
from ragaccel.vectors.segment import TRAIN_ROWS, Segment
from ragaccel.vectors.spec import COMPRESS_FROM_ROWS, CompressionSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ragaccel.vectors.calibrate import Exam
    from ragaccel.vectors.slab import Rows
    from ragaccel.vectors.spec import Metric

#: Rows that a codec can be trained on.
MIN_TRAIN_ROWS: Final = 1024
_CHOOSE_GROWTH: Final = 8


@dataclass(frozen=True)
class Asked:
    """What a collection's user asked of its index.

    Attributes:
        metric: How vectors are scored.
        spec: The compression; None lets the index choose.
        recall: The recall@10 to keep.
        memory_bytes: The most that codes may take where the index chooses; None for 1/24 of the
            vectors.
    """

    metric: Metric
    spec: CompressionSpec | None
    recall: float
    memory_bytes: int | None = None

    @property
    def compress_from(self) -> int:
        """Rows from which compression pays."""
        return COMPRESS_FROM_ROWS if self.spec is None else MIN_TRAIN_ROWS


@dataclass(frozen=True)
class Plan:
    """Making a segment anew, without the collection's lock: the rows of a slab never change.

    Attributes:
        asked: What the user asked.
        slab: The raw vectors.
        slots: Those that lived when the plan was made, all in the slab.
        old: The segment there was, whose compression is taken over unless it has outgrown it.
        questions: See `Index`.
    """

    asked: Asked
    slab: Rows
    slots: NDArray[np.int64]
    old: Segment | None
    questions: NDArray[np.float32] | None = None

    def exam(self) -> Exam:
        """Return questions, or stand-ins for them, and their right answers."""
        return calibrate.exam_on(self.slab, self.slots, self.questions, self.asked.metric)

    def run(self, exam: Exam | None = None) -> Segment | None:
        """Choose, train, encode and set the effort; None where compression does not pay.

        Args:
            exam: What `exam` gave, if it was asked already.
        """
        asked, slots = self.asked, self.slots
        if len(slots) < asked.compress_from or (asked.spec is not None and asked.spec.exact):
            return None
        return self.made(exam)

    def made(self, exam: Exam | None = None) -> Segment:
        """Do what `run` does, whether or not compression pays."""
        segment = Segment.build(self._spec(), self.asked.metric, self.slab, self.slots)
        calibrate.set_effort(segment, exam or self.exam(), self.asked.recall)
        return segment

    def _spec(self) -> CompressionSpec:
        asked, old = self.asked, self.old
        if asked.spec is not None:
            return asked.spec
        rows = len(self.slots)
        fits = old is not None and (old.recall or 0) >= asked.recall
        if old is not None and fits and not is_outgrown(asked, old, rows):
            return old.spec
        sample = self.slots[:: max(1, rows // TRAIN_ROWS)]
        return choose_spec(
            self.slab, sample, rows, asked.metric, asked.recall, asked.memory_bytes, self.questions
        )


def is_outgrown(asked: Asked, old: Segment | None, rows: int) -> bool:
    """Tell whether rows have become so many that another compression may be better."""
    grown = old is None or rows >= _CHOOSE_GROWTH * old.codes.rows
    return asked.spec is None and grown
