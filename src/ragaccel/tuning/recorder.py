"""Recording traffic: requests are noted in memory, and a thread writes them down."""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
import weakref
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from ragaccel.errors import ConfigurationError
from ragaccel.resources import Forkable
from ragaccel.tuning.traffic import Asked, encode_line, query_key

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from typing_extensions import Self

_DELAY: Final = 0.25
_MOST_WAITING: Final = 10_000
_SECRET_BYTES: Final = 32
_DIGESTS: Final = 2**64
_NOTHING: Final[Mapping[str, Any]] = {}
_log = logging.getLogger("ragaccel.tuning")


class _Noted(NamedTuple):
    at: float
    query: str
    ids: tuple[str, ...]
    seconds: float
    arguments: Mapping[str, Any]
    error: str | None


class TrafficRecorder(Forkable):
    """Writes requests to a file, as lines of JSON, until it holds `max_bytes`; then it stops.

    A request notes what happened in memory; a thread in the background writes it down four times a
    second. Several processes may record to the same file. What cannot be written, as on a full
    disk, is left out and counted; no request hears of it. A crash loses a quarter of a second.

    The frameworks' faces are `ragaccel.langchain.TrafficHandler` and
    `ragaccel.llamaindex.TrafficHandler`. `Traffic.read` reads the file.

    Example:
        >>> with TrafficRecorder.open("traffic.jsonl") as recorder:  # doctest: +SKIP
        ...     retriever.invoke("…", config={"callbacks": [TrafficHandler(recorder)]})
    """

    def __init__(self, sink: _Sink) -> None:
        self._sink = sink
        self._lock = threading.Lock()
        self._have_no_thread()
        self.follow_forks()

    def _have_no_thread(self) -> None:
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._finish = weakref.finalize(self, _finish, self._sink, self._stopping)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        max_bytes: int = 64 * 2**20,
        content: bool = True,
        sample: float = 1.0,
    ) -> Self:
        """Open a file for recording; what it holds already stays, and counts.

        Args:
            path: The file, made if there is none, and then readable for its owner only.
            max_bytes: How much it may hold.
            content: Whether queries are written. Without it `Asked.query` is None, arguments
                are written only where they are numbers, and equal queries are known by a digest,
                whose secret is kept in a file beside it, named as it is and ".secret".
            sample: The share of queries that are recorded, over 0 and up to 1. A query is recorded
                each time or never, so that caches are measured right. Source: Waldspurger et al.,
                "Efficient MRC construction with SHARDS", FAST 2015.

        Raises:
            ConfigurationError: A number that makes no sense, or a file that cannot be written.
        """
        if max_bytes < 1:
            raise ConfigurationError(f"max_bytes must be 1 or more, got {max_bytes!r}.")
        if not 0 < sample <= 1:
            raise ConfigurationError(f"sample must be over 0 and up to 1, got {sample!r}.")
        try:
            secret = b"" if content else _secret(Path(f"{os.fspath(path)}.secret"))
            file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        except OSError as error:
            raise ConfigurationError(
                f"no traffic can be recorded to {str(path)!r}: {error.strerror}; give the path of "
                "a file, in a folder that exists."
            ) from error
        return cls(_Sink(file, str(path), max_bytes, secret, content=content, sample=sample))

    @property
    def recorded(self) -> int:
        """How many requests this process has written so far."""
        return self._sink.recorded

    @property
    def lost(self) -> int:
        """How many could not be written: too many at once, a full disk, no Unicode."""
        return self._sink.lost

    @property
    def is_full(self) -> bool:
        """Whether the file holds `max_bytes`, so that nothing more is recorded."""
        return self._sink.is_full

    def record(
        self,
        query: str,
        *,
        seconds: float,
        ids: Iterable[str] = (),
        arguments: Mapping[str, Any] = _NOTHING,
        error: str | None = None,
    ) -> None:
        """Record a request that is over now.

        Args:
            query: What was asked.
            seconds: How long it took.
            ids: Ids of what was found, best first.
            arguments: What else it was asked with; JSON values, others are left out.
            error: The name of the exception that ended it.
        """
        sink = self._sink
        if sink.is_full or self._stopping.is_set():
            return
        sink.note(_Noted(time.time() - seconds, query, tuple(ids), seconds, arguments, error))
        if self._thread is None:
            self._begin()

    def flush(self) -> None:
        """Write down what is noted so far."""
        self._sink.flush()

    def close(self) -> None:
        """Write down what is noted, and record no more; closing again does nothing."""
        self._finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exit_: object) -> None:
        self.close()

    def _begin(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(
                    target=_write, args=(self._sink, self._stopping), name="ragaccel-traffic",
                    daemon=True,
                )  # fmt: skip
                self._thread.start()

    def before_fork(self) -> None:
        """Let no other thread hold the locks while the process is copied."""
        self._lock.acquire()
        self._sink.lock.acquire()

    def after_fork_in_parent(self) -> None:
        """Go on."""
        self._sink.lock.release()
        self._lock.release()

    def after_fork_in_child(self) -> None:
        """Leave what is noted to the parent, and have no thread: it is the parent's."""
        is_closed = self._finish.detach() is None
        self._sink.forget()
        self._have_no_thread()
        self.after_fork_in_parent()
        if is_closed:
            self.close()


def _write(sink: _Sink, stopping: threading.Event) -> None:
    while not stopping.wait(_DELAY):
        sink.flush()


def _finish(sink: _Sink, stopping: threading.Event) -> None:
    stopping.set()
    sink.close()


class _Sink:
    """The file, and what waits to be written to it."""

    def __init__(
        self, file: int, name: str, max_bytes: int, secret: bytes, *, content: bool, sample: float
    ) -> None:
        self._file: int | None = file
        self._name, self._max_bytes = name, max_bytes
        self._secret, self._content, self._sample = secret, content, sample
        self._waiting: deque[_Noted] = deque()
        self._is_failing = False
        self.lock = threading.Lock()
        self.recorded = self.lost = 0
        self.is_full = False

    def note(self, noted: _Noted) -> None:
        """Let it wait."""
        if len(self._waiting) < _MOST_WAITING:
            self._waiting.append(noted)
        else:
            self.lost += 1

    def forget(self) -> None:
        self._waiting.clear()
        self.recorded = self.lost = 0

    def flush(self) -> None:
        """Write all that waits; faults are logged, once while they last."""
        with self.lock:
            noted = [self._waiting.popleft() for _ in range(len(self._waiting))]
            if self._file is None or not noted:
                return
            lines = [line for one in noted if (line := self._line(one))]
            try:
                self._append(self._file, lines)
            except OSError as error:
                if not self._is_failing:
                    _log.warning("%s lacks requests: %s", self._name, error.strerror)
                self._is_failing = True
            else:
                self._is_failing = False

    def close(self) -> None:
        self.flush()
        with self.lock:
            if self._file is not None:
                os.close(self._file)
            self._file = None

    def _append(self, file: int, lines: list[bytes]) -> None:
        """Append lines at once, which other processes' do not cut, or count them as lost."""
        size = os.fstat(file).st_size
        head = b"\n" if size and os.pread(file, 1, size - 1) != b"\n" else b""  # a cut line
        fitting, room = 0, self._max_bytes - size - len(head)
        while fitting < len(lines) and len(lines[fitting]) <= room:
            room -= len(lines[fitting])
            fitting += 1
        whole = 0
        try:
            if fitting:
                data = head + b"".join(lines[:fitting])
                written = os.write(file, data)
                whole = data[len(head) : written].count(b"\n")
        finally:
            self.recorded += whole
            self.lost += fitting - whole
        if fitting < len(lines) and not self.is_full:
            self.is_full = True
            _log.info("%s is full: nothing more is recorded", self._name)

    def _line(self, noted: _Noted) -> bytes | None:
        """Return the line of a request; None for one that is not sampled or has none."""
        try:
            key = query_key(noted.query, self._secret)
            if self._sample < 1 and int.from_bytes(key[:8], "big") >= self._sample * _DIGESTS:
                return None
            query = noted.query if self._content else None
            arguments = dict(_plain(noted.arguments, content=self._content))
            return encode_line(
                Asked(noted.at, query, key, arguments, noted.ids, noted.seconds, noted.error)
            )
        except Exception:  # noqa: BLE001 - whatever it is made of, it is not worth a request
            self.lost += 1
            return None


def _plain(arguments: Mapping[str, Any], *, content: bool) -> Iterable[tuple[str, Any]]:
    """Yield what a file can hold of arguments."""
    for name, value in arguments.items():
        if not content and not isinstance(value, (bool, int, float)):
            continue
        try:
            yield name, msgspec.json.decode(msgspec.json.encode(value))
        except (TypeError, ValueError, RecursionError):
            continue


def _secret(path: Path) -> bytes:
    """Return the secret of a file's digests, made once for all processes."""
    fresh = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    if not path.exists():
        fresh.touch(mode=0o600)
        fresh.write_bytes(secrets.token_bytes(_SECRET_BYTES))
        try:
            os.link(fresh, path)
        except FileExistsError:
            pass
        finally:
            fresh.unlink()
    return path.read_bytes()[:_SECRET_BYTES]
