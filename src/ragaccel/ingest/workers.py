"""Processes that transform documents: one that dies takes only the document with it."""

from __future__ import annotations

import math
import multiprocessing
import pickle
import signal
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING, Any, Final

from ragaccel.errors import ConfigurationError, IngestionError, RagaccelWarning
from ragaccel.ingest.script import is_guarded
from ragaccel.ingest.worker import Done, failed, transform, work
from ragaccel.resources.container import cpu_limit

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Future

    from ragaccel.ingest.chunks import Task
    from ragaccel.ingest.worker import Split

#: How long transformations may take before processes are worth their start, where it is left open.
_WORTH_SECONDS: Final = 1.0
_END_SECONDS: Final = 5.0
_UNGUARDED: Final = (
    "worker processes import the script that runs, and would run it once more: put what it does "
    'under `if __name__ == "__main__":`, or pass workers=0 to transform in this process'
)
_NOT_STARTED: Final = (
    "a worker process ended before it could begin, see what it printed above. Workers import the "
    'main script: what it does must stand under `if __name__ == "__main__":`. Or pass workers=0'
)


class Workers:
    """Transforms groups of documents, each in one of several processes or in this one.

    A thread for each process hands it groups and waits for it. Processes are started when they are
    needed. One that dies is replaced; its documents are tried one by one, so that it is known which
    of them did it.

    Args:
        split: Makes the chunks of a document; pickled, for processes.
        count: How many processes; 0 for this one. None lets the work decide: processes for each
            core once it has taken a second here, if they can be had.
    """

    def __init__(self, split: Split, count: int | None) -> None:
        """Get ready.

        Raises:
            ConfigurationError: There are to be processes and cannot be any.
        """
        self._split, self._is_auto = split, count is None
        self._is_open = self._is_auto
        self.count = max(1, math.floor(cpu_limit()) if count is None else count)
        self._is_here = not count
        self._pickled = b"" if self._is_here else self._prepared()
        self._here, self._telling = threading.Lock(), threading.Lock()
        self._seconds = 0.0
        self._own = threading.local()
        self._all: set[_Process] = set()
        self._is_stopped = False
        self._threads = ThreadPoolExecutor(self.count, "ragaccel-ingest", _block_interrupts)

    def submit(self, group: Sequence[Task]) -> Future[Done]:
        """Begin to transform a group."""
        return self._threads.submit(self._run, group)

    def close(self, *, kill: bool = False) -> None:
        """End the processes.

        Args:
            kill: Do not wait for what they do now.
        """
        self._is_stopped = True
        if kill:
            for one in list(self._all):
                one.kill()
        self._threads.shutdown(cancel_futures=True)
        for one in self._all:
            one.end()

    def _run(self, group: Sequence[Task], *, suspect: bool = False) -> Done:
        """Transform a group.

        Args:
            group: The documents.
            suspect: Whether a process has died of them.
        """
        if self._is_here and self._is_open and self._seconds > _WORTH_SECONDS:
            self._open()
        if self._is_here and not suspect:
            return self._run_here(group)
        try:
            process = self._process()
            if not process.is_ready(wait=suspect or not self._is_auto):
                return self._run_here(group)
            return process.call(group)
        except ConfigurationError as error:
            if self._is_stopped or suspect or not self._is_auto:
                raise
            self._stay(error)
            return self._run_here(group)
        except Exception as error:
            if self._is_stopped:
                raise
            if len(group) == 1:
                return Done([failed(error)], 0.0)
        parts = [self._run([task], suspect=True) for task in group]
        return Done([part.outcomes[0] for part in parts], sum(part.seconds for part in parts))

    def _run_here(self, group: Sequence[Task]) -> Done:
        with self._here:
            done = transform(self._split, group)
            self._seconds += done.seconds
        return done

    def _open(self) -> None:
        """Go over to processes, if there can be any."""
        with self._here:
            if self._is_here and self._is_open:
                try:
                    self._pickled = self._prepared()
                except ConfigurationError as error:
                    self._stay(error)
                else:
                    self._is_here = False

    def _stay(self, error: ConfigurationError) -> None:
        """Transform in this process and say why."""
        with self._telling:
            is_news, self._is_here, self._is_open = self._is_open, True, False
        if is_news:
            message = f"documents are transformed in this process, by one core: {error}"
            warnings.warn(message, RagaccelWarning, stacklevel=2)

    def _prepared(self) -> bytes:
        """Return what processes are started with."""
        if not is_guarded():
            raise ConfigurationError(f"{_UNGUARDED}.")
        try:
            return pickle.dumps(self._split)
        except Exception as error:
            raise ConfigurationError(
                f"the transformation cannot be sent to worker processes ({error}): make it a "
                "function of a module, or pass workers=0."
            ) from error

    def _process(self) -> _Process:
        """Return the calling thread's process."""
        process: _Process | None = getattr(self._own, "process", None)
        if process is None or process.is_dead:
            process = self._own.process = _Process(self._pickled)
            self._all.add(process)
            if self._is_stopped:
                process.kill()
        return process


class _Process:
    """A worker process and the pipe to it.

    Attributes:
        is_dead: Whether it has ended.
    """

    def __init__(self, pickled: bytes) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=work, args=(theirs, pickled), name="ragaccel-ingest", daemon=True
        )
        self._process.start()
        theirs.close()
        self.is_dead = self._is_ready = False

    def is_ready(self, *, wait: bool) -> bool:
        """Tell whether it can work.

        Args:
            wait: Wait until it can.

        Raises:
            ConfigurationError: It never will.
        """
        if self._is_ready or not (wait or self._connection.poll()):
            return self._is_ready
        try:
            error = self._connection.recv()
        except (EOFError, OSError):
            self.end()
            raise ConfigurationError(f"{_NOT_STARTED}.") from None
        if error is not None:
            self.end()
            raise ConfigurationError(
                f"a worker process cannot load the transformation ({error}): it must stand in a "
                "module that can be imported. Or pass workers=0."
            ) from error
        self._is_ready = True
        return True

    def call(self, group: Sequence[Task]) -> Done:
        """Return what it makes of documents.

        Raises:
            IngestionError: It died.
            Exception: The documents cannot be sent.
        """
        try:
            self._connection.send(group)
            answer: Any = self._connection.recv()
        except (EOFError, OSError) as error:
            self.end()
            code = self._process.exitcode
            raise IngestionError(f"the worker process died of it ({_named(code)}).") from error
        if isinstance(answer, Exception):
            raise answer
        done: Done = answer
        return done

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    def end(self) -> None:
        """Let it end, and wait for that."""
        if self.is_dead:
            return
        self.is_dead = True
        self._connection.close()
        if self._is_ready:
            self._process.join(_END_SECONDS)
        self._process.kill()
        self._process.join()


def _named(code: int | None) -> str:
    """Return how a process ended, in words."""
    if code is None or code >= 0:
        return f"exit code {code}"
    return signal.Signals(-code).name


def _block_interrupts() -> None:
    """Let processes that this thread starts not hear of Ctrl-C, which is the parent's to handle."""
    resource_tracker.ensure_running()  # starting it would unblock them
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
