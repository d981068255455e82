"""What an ingestion did, and the documents that it could not take in."""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, Literal

from ragaccel.errors import IngestionError

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

Stage = Literal["read", "transform", "embed"]

_KEPT: Final = 1000
#: After so many failures at one stage and no success in between the fault is not the documents'.
_HOPELESS: Final = 1000


@dataclass(frozen=True)
class Failure:
    """A document that was not taken in; what was stored of it before still is.

    Attributes:
        document_id: Its id; None where it could not be told.
        stage: Where it failed: "read", "transform" or "embed".
        error: What was raised.
        traceback: Where, as text, if that is known.
    """

    document_id: str | None
    stage: Stage
    error: Exception
    traceback: str = ""

    def __str__(self) -> str:
        name = "a document" if self.document_id is None else repr(self.document_id)
        return f"{name} ({self.stage}): {type(self.error).__name__}: {self.error}"


@dataclass(frozen=True)
class IngestReport:
    """What an ingestion did.

    Attributes:
        documents: How many were read.
        unchanged: Those that were stored already, or came again.
        stored: Those that were new or changed.
        empty: Those of them that have no chunk.
        failed: Those that could not be taken in.
        chunks: Rows written.
        deleted: Rows deleted: chunks of changed documents, and what was pruned.
        embedded: Texts that the model was asked for.
        seconds: How long it took.
        errors: The first 1,000 failures.
    """

    documents: int
    unchanged: int
    stored: int
    empty: int
    failed: int
    chunks: int
    deleted: int
    embedded: int
    seconds: float
    errors: tuple[Failure, ...] = ()

    def __str__(self) -> str:
        text = (
            f"{self.documents:,} documents in {self.seconds:.1f} s: {self.stored:,} stored in "
            f"{self.chunks:,} chunks, {self.unchanged:,} unchanged, {self.failed:,} failed; "
            f"{self.embedded:,} texts embedded, {self.deleted:,} old chunks deleted"
        )
        return f"{text}; the first failure is {self.errors[0]}" if self.errors else text


class Tally:
    """Counts while documents come and go.

    Args:
        file: Takes a line of JSON for each failure.
        stops: Whether the first failure is one too many.
    """

    def __init__(self, file: IO[str] | None, *, stops: bool) -> None:
        self._file, self._stops = file, stops
        self._started = time.monotonic()
        self._in_a_row: Counter[Stage] = Counter()
        self._errors: list[Failure] = []
        self.documents = self.unchanged = self.stored = self.empty = self.failed = 0
        self.chunks = self.deleted = self.unread = 0

    @property
    def ended(self) -> int:
        """Documents that are done with."""
        return self.unchanged + self.stored + self.failed

    def succeeded(self, *, unchanged: bool) -> None:
        """Count a document that is stored."""
        self.unchanged += unchanged
        self.stored += not unchanged

    def passed(self, stage: Stage) -> None:
        """Note that a document has come through a stage."""
        self._in_a_row[stage] = 0

    def fail(self, failure: Failure) -> None:
        """Note a document that is not.

        Raises:
            IngestionError: There are not to be any, or there are too many.
        """
        self.failed += 1
        self.unread += failure.document_id is None
        self._in_a_row[failure.stage] += 1
        if len(self._errors) < _KEPT:
            self._errors.append(failure)
        if self._file is not None:
            self._file.write(json.dumps(_as_line(failure)) + "\n")
        if self._stops:
            raise IngestionError(f"{failure}.") from failure.error
        if self._in_a_row[failure.stage] >= _HOPELESS:
            raise IngestionError(
                f"{_HOPELESS:,} documents in a row failed; the last is {failure}. What came before "
                "is stored and will be passed over when you run it again."
            ) from failure.error

    def report(self, embedded: int) -> IngestReport:
        """Return what was counted."""
        return IngestReport(
            self.documents, self.unchanged, self.stored, self.empty, self.failed, self.chunks,
            self.deleted, embedded, time.monotonic() - self._started, tuple(self._errors),
        )  # fmt: skip


@contextlib.contextmanager
def error_file(path: str | os.PathLike[str] | None) -> Iterator[IO[str] | None]:
    """Open a file for failures, if there is to be one; what was in it goes."""
    if path is None:
        yield None
        return
    with Path(path).open("w", encoding="utf-8", buffering=1) as file:
        yield file


def _as_line(failure: Failure) -> dict[str, str | None]:
    return {
        "document_id": failure.document_id,
        "stage": failure.stage,
        "error": type(failure.error).__name__,
        "message": str(failure.error),
        "traceback": failure.traceback,
    }
