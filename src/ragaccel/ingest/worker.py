"""Transforming documents, here or in a process that ends with its parent."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import threading
import time
import traceback
from typing import TYPE_CHECKING, Any, NamedTuple

from ragaccel.errors import IngestionError
from ragaccel.vectors.records import check_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from multiprocessing.connection import Connection

    from ragaccel.ingest.chunks import Chunk, Task

    Split = Callable[[Task], list[Chunk]]


class Outcome(NamedTuple):
    """What came of a document: its chunks, or the error that it failed with."""

    chunks: list[Chunk]
    error: Exception | None = None
    traceback: str = ""


class Done(NamedTuple):
    """What came of a group of documents, and how long it took, seconds."""

    outcomes: list[Outcome]
    seconds: float


def transform(split: Split, group: Sequence[Task]) -> Done:
    """Split documents; those that cannot be split or stored fail each by itself."""
    started = time.perf_counter()
    outcomes = [_outcome(split, task) for task in group]
    return Done(outcomes, time.perf_counter() - started)


def failed(error: Exception) -> Outcome:
    """Return the outcome of a document that failed, in a form that can be sent."""
    return Outcome([], portable(error), "".join(traceback.format_exception(error)))


def work(connection: Connection, pickled: bytes) -> None:
    """Do the work of a worker process; see `_work`."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the parent needs no answer
        _work(connection, pickled)


def _work(connection: Connection, pickled: bytes) -> None:
    """Answer groups of documents until the other end is closed.

    Args:
        connection: Gives groups and takes a `Done` for each; first it takes None, or what keeps
            this process from working.
        pickled: The function that splits.
    """
    try:
        split = pickle.loads(pickled)  # noqa: S301 - the parent's own
    except Exception as error:  # noqa: BLE001 - the parent raises it
        connection.send(portable(error))
        return
    connection.send(None)
    while True:
        try:
            answer: Any = transform(split, connection.recv())
        except (EOFError, OSError):
            return
        except Exception as error:  # noqa: BLE001 - a document that cannot be unpickled here
            answer = portable(error)
        connection.send(answer)


def _outcome(split: Split, task: Task) -> Outcome:
    try:
        chunks = split(task)
        check_rows(
            [one.id for one in chunks],
            [one.text for one in chunks],
            [one.metadata for one in chunks],
            [one.document_id for one in chunks],
            [one.payload for one in chunks],
        )
    except Exception as error:  # noqa: BLE001 - a bad document is the report's
        return failed(error)
    return Outcome(chunks)


def portable(error: Exception) -> Exception:
    """Return an error that comes out of a pickle as it went in."""
    try:
        back = pickle.loads(pickle.dumps(error))  # noqa: S301 - made here
    except Exception:  # noqa: BLE001 - an error's own methods may raise anything
        back = None
    if type(back) is type(error):
        return error
    return IngestionError(f"{type(error).__qualname__}: {error}")


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
