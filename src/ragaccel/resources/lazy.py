"""`Lazy`: what is expensive to load is there while it is used."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import threading
import time
import weakref
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, cast

from ragaccel.errors import ConfigurationError
from ragaccel.resources.forks import Forkable
from ragaccel.resources.heap import give_back
from ragaccel.resources.relief import Relief

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

_log = logging.getLogger("ragaccel.resources")

_NOTHING: Final = object()


class Lazy(Forkable, Generic[T]):
    """Holds something that is loaded at its first use, and unloaded when it is not used any more.

    `with lazy as value:`, or `async with`, is a lease: while one is held the value stays. Leases
    may be held by any number of threads and tasks at once and within each other; all get the same
    value. It is loaded once for all, on a thread of its own, so that no event loop is blocked. If
    that fails all who wait for it get the error, and the next one tries again.

    A `MemoryGuard` that watches it unloads it when memory is short and nobody has held a lease for
    as long as loading took: so reloading never takes more than half of the time.

    After a fork the child loads for itself, as the threads of models do not cross one. What is held
    at the fork is never unloaded in the child.

    Args:
        load: Gives the value.
        unload: Is given the value to close it, once nobody uses it; a new value is loaded only
            after that.
        idle: Seconds without a lease after which the value is unloaded; None for never.
        clock: Seconds by a clock that never goes back.

    Example:
        An embedding model of LlamaIndex:

        >>> from llama_index.core import MockEmbedding
        >>> model = Lazy(lambda: MockEmbedding(embed_dim=3), idle=300)
        >>> with model as embed_model:
        ...     embed_model.get_query_embedding("What is new?")
        [0.5, 0.5, 0.5]

        One of LangChain, for a store that keeps its embeddings object for good:

        >>> from langchain_core.embeddings import DeterministicFakeEmbedding, Embeddings
        >>> model = Lazy(lambda: DeterministicFakeEmbedding(size=3), idle=300)
        >>> class LazyEmbeddings(Embeddings):
        ...     def embed_documents(self, texts):
        ...         with model as embeddings:
        ...             return embeddings.embed_documents(texts)
        ...
        ...     def embed_query(self, text):
        ...         with model as embeddings:
        ...             return embeddings.embed_query(text)
        >>> len(LazyEmbeddings().embed_query("What is new?"))
        3
    """

    relief = Relief.LOADED

    def __init__(
        self,
        load: Callable[[], T],
        unload: Callable[[T], object] | None = None,
        *,
        idle: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Keep how to load; nothing is loaded yet.

        Raises:
            ConfigurationError: `idle` is negative or has no end.
        """
        if idle is not None and not 0 <= idle < math.inf:
            raise ConfigurationError(f"idle must be None or seconds from 0 on, got {idle}.")
        self._load, self._unload, self._idle, self._clock = load, unload, idle, clock
        self._lock = threading.Lock()
        self._value: Any = _NOTHING
        self._inherited: Any = None
        self._leases = 0
        self._used = self._load_seconds = 0.0
        self._loading: _Loading | None = None
        self._unloading: threading.Event | None = None
        self.follow_forks()

    @property
    def is_loaded(self) -> bool:
        """Whether the value is there now."""
        return self._value is not _NOTHING

    def __enter__(self) -> T:
        loading = self._lease()
        if not self.is_loaded:
            try:
                loading.wait()
            except BaseException:
                self._release()
                raise
        return cast("T", self._value)

    def __exit__(self, *_: object) -> None:
        self._release()

    async def __aenter__(self) -> T:
        loading = self._lease()
        if not self.is_loaded:
            try:
                await loading.wait_async()
            except BaseException:
                self._release()
                raise
        return cast("T", self._value)

    async def __aexit__(self, *_: object) -> None:
        self._release()

    def unload(self) -> bool:
        """Unload the value unless it is in use; return whether it was unloaded."""
        return self._unload_after(0)

    def relieve(self, needed_bytes: int) -> int:  # noqa: ARG002 - it is all or nothing
        """Unload the value if it has not been used for as long as loading it took.

        Returns:
            0, as nobody knows how many bytes that freed.
        """
        self._unload_after(self._load_seconds)
        return 0

    def restore(self) -> None:
        """Do nothing: who needs the value loads it."""

    def after_fork_in_child(self) -> None:
        """Have nothing loaded, and leave alone what the parent has."""
        self._lock = threading.Lock()
        # It is kept: a model that is freed may wait for threads of its own, which are not here.
        self._inherited, self._value = self._value, _NOTHING
        self._loading = self._unloading = None

    def _lease(self) -> _Loading:
        """Keep the value from being unloaded; return its loading, which may be under way."""
        with self._lock:
            if self._loading is None:
                self._loading = self._begun()
            self._leases += 1
            return self._loading

    def _release(self) -> None:
        with self._lock:
            self._leases -= 1
            self._used = self._clock()

    def _begun(self) -> _Loading:
        loading = _Loading()
        this = weakref.ref(self, lambda _: loading.over.set())
        threading.Thread(
            target=_keep, args=(this, loading), name="ragaccel-lazy", daemon=True
        ).start()
        return loading

    def _fill(self, loading: _Loading) -> bool:
        """Load the value, once the one before is unloaded; return whether that was done."""
        unloading, started = self._unloading, self._clock()
        error, value = None, _NOTHING
        try:
            if unloading is not None:
                unloading.wait()
            value = self._load()
        except BaseException as raised:  # noqa: BLE001 - it goes to those who wait
            error = raised
        with self._lock:
            self._value, self._used = value, self._clock()
            self._load_seconds = self._used - started
            if error is not None:
                self._loading = None
        loading.end(error)
        has_failed, error = error is not None, None  # else it would refer to itself, by its frame
        return not has_failed

    def _unload_after(self, seconds: float) -> bool:
        """Unload the value if nobody has used it for so long; return whether that was done."""
        with self._lock:
            loading = self._loading
            if loading is None or self._leases or not self.is_loaded:
                return False
            if self._clock() < self._used + seconds:
                return False
            value, self._value = self._value, _NOTHING
            self._loading, self._unloading = None, threading.Event()
            unloaded = self._unloading
        try:
            if self._unload is not None:
                self._unload(value)
        except Exception as error:  # noqa: BLE001 - nobody waits for it
            _log.exception("unloading failed (%s); the value is let go", type(error).__name__)
        finally:
            remains = _weakly(value)
            del value
            if remains() is not None:  # it refers to itself
                gc.collect()
            give_back()
            loading.over.set()
            unloaded.set()
        return True

    def _seconds_left(self, loading: _Loading) -> float | None:
        """Unload the value if it is time; return the seconds until then, None for never."""
        if self._idle is None or self._loading is not loading or self._unload_after(self._idle):
            return None
        with self._lock:
            return self._idle if self._leases else self._used + self._idle - self._clock()


class _Loading:
    """One loading of the value, for all who wait for it.

    Attributes:
        over: Set when the value is unloaded, or its holder is no more.
    """

    def __init__(self) -> None:
        self.over = threading.Event()
        # The error is its result: asyncio hands on results of every kind, but not all exceptions.
        self._error: Future[BaseException | None] = Future()
        self._error.set_running_or_notify_cancel()  # so no waiter's cancellation reaches the others

    def end(self, error: BaseException | None) -> None:
        """Wake all who wait."""
        self._error.set_result(error)

    def wait(self) -> None:
        """Wait for the value in this thread; raise why there is none."""
        error = self._error.result()
        if error is not None:
            raise error

    async def wait_async(self) -> None:
        """Do what `wait` does, without blocking the event loop."""
        if not self._error.done():
            await asyncio.wrap_future(self._error)
        self.wait()


def _keep(this: weakref.ref[Lazy[Any]], loading: _Loading) -> None:
    """Load the value, and unload it when it has been idle; keep nobody alive meanwhile."""
    lazy = this()
    if lazy is None or not lazy._fill(loading):
        return
    seconds = lazy._seconds_left(loading)
    while seconds is not None:
        del lazy
        loading.over.wait(seconds)
        lazy = this()
        seconds = None if lazy is None else lazy._seconds_left(loading)


def _weakly(value: object) -> Callable[[], object]:
    """Return what tells whether a value is still there; of some kinds that cannot be told."""
    try:
        return weakref.ref(value)
    except TypeError:
        return lambda: None
