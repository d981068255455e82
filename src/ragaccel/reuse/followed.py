"""Vector stores of other houses that keep a change log beside them; what their adapters share.

A followed store is a transparent clone of the user's. Its writes are noted in the log, and its
searches are told to whoever caches what comes of them.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
import threading
import uuid
import weakref
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import numpy as np

from ragaccel import telemetry
from ragaccel.errors import ConfigurationError
from ragaccel.io import run
from ragaccel.reuse.changes import EVERYTHING, ChangeLog, MemoryChanges
from ragaccel.reuse.changes_file import FileChanges
from ragaccel.reuse.reads import Read, are_alike, reads, scores
from ragaccel.telemetry import attributes
from ragaccel.wrapping.fingerprint import class_name
from ragaccel.wrapping.seam import is_serving, serving, stage_of
from ragaccel.wrapping.transparent import options_of, plain_class, state_of, unwrap, wrap

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sized

    from numpy.typing import NDArray

    from ragaccel.reuse.changes import Change, Position
    from ragaccel.reuse.reads import Metric
    from ragaccel.wrapping.seam import Options

R = TypeVar("R")
T = TypeVar("T")

#: Names of methods that may write, of those that a store has beside its framework's.
_WRITES: Final = re.compile(
    r"(a|async_)?(add|append|apply|bulk|clear|commit|create|delete|drop|empty|import|index|ingest"
    r"|init|insert|load|merge|move|patch|prune|purge|put|recreate|refresh|reindex|remove|rename"
    r"|replace|reset|restore|rollback|save|set|store|sync|truncate|update|upsert|write)(_|$)"
)
_RECENT: Final = 256


class _Known(Generic[T]):
    """What is known of objects, by what they are and not by what they equal, while they live."""

    def __init__(self) -> None:
        self._values: dict[int, T] = {}

    def get(self, obj: object) -> T | None:
        return self._values.get(id(obj))

    def put(self, obj: object, value: T) -> T:
        end = weakref.finalize(obj, self._values.pop, id(obj), None)
        end.atexit = False
        self._values[id(obj)] = value
        return value


_clones: _Known[Callable[[], Any]] = _Known()
_copies: _Known[str] = _Known()
_lock = threading.RLock()


class Following:
    """What a followed store and its copies share.

    Args:
        log: Where its writes are noted.
        clone: The store; its copies may hold other rows.
        metric: What the user or its class says of its scores; None for nothing.
        is_known: Whether that is certain.
    """

    def __init__(
        self, log: ChangeLog, clone: Any, metric: Metric | None, *, is_known: bool
    ) -> None:
        self.log = log
        self.clone = weakref.ref(clone)
        self.metric = metric
        self._is_known = is_known
        self._is_confirmed = False
        self._recent: dict[str, NDArray[np.float32]] = {}

    def told(self, change: Change) -> None:
        """Remember vectors that were written, by which a declared metric can be checked."""
        if self._is_known or self.metric is None or not change.vectors:
            return
        rows = np.frombuffer(change.vectors, np.float32).reshape(len(change.ids), -1)
        with _lock:
            recent = self._recent | dict(zip(change.ids, rows, strict=True))
            self._recent = dict(list(recent.items())[-_RECENT:])

    def believed(
        self, rows: Iterable[str], found: Iterable[float], query: NDArray[np.float32]
    ) -> Metric | None:
        """Return the metric, once a search has shown that the store's scores are those."""
        if self._is_known or self.metric is None:
            return self.metric
        recent = self._recent
        for row, score in zip(rows, found, strict=False):
            vector = recent.get(row)
            if vector is not None and len(vector) == len(query):
                if not are_alike(float(scores(query, vector, self.metric)[0]), score):
                    self.metric = None
                    return None
                self._is_confirmed = True
        return self.metric if self._is_confirmed else None


def follow_store(store: Any, mixin: type, options: Options, *, is_private: bool) -> Any:
    """Return a store's clone whose writes are noted; the same one to who asks again.

    Args:
        store: The store.
        mixin: The seam methods.
        options: See `ragaccel.accelerate`.
        is_private: Whether its rows, or their texts, are in this process only.

    Raises:
        ConfigurationError: The options are not those that it is followed by, or do not suit it.
    """
    if options.changes is not None and is_private:
        raise ConfigurationError(
            f"{type(store).__name__} keeps its rows, or their texts, in this process, so a file of "
            "changes would say of another process's store what was done to this one; leave "
            "changes= out."
        )
    plain = unwrap(store)
    with _lock:
        found = _clones.get(plain)
        clone = store if state_of(store) is not None else None if found is None else found()
        if clone is not None:
            if _terms(options_of(clone)) == _terms(options):
                return clone
            raise ConfigurationError(
                f"this {type(store).__name__} is accelerated already, with other changes= or "
                "metric=; use that object: two logs would not know of each other's writes."
            )
        clone = wrap(plain, mixin, options, lambda: None)
        _clones.put(plain, weakref.ref(clone))
        return clone


def _terms(options: Options) -> tuple[Any, ...]:
    return options.changes, options.metric


def attach(clone: Any, known: Metric | None) -> None:
    """Give a clone its log; for the `finish_clone` of mixins.

    Args:
        clone: The clone.
        known: The metric that its class is known to score by.
    """
    options = options_of(clone)
    log = MemoryChanges() if options.changes is None else FileChanges(options.changes)
    state: Any = state_of(clone)
    state.known[Following] = Following(
        log, clone, known or options.metric, is_known=known is not None
    )


def following_of(store: Any) -> Any:
    """Return the `Following` of a followed store, or None."""
    state = state_of(store)
    return None if state is None else state.known.get(Following)


def source_of(store: Any) -> Any:
    """Return what tells apart the rows that a followed store holds, or None for another store.

    A copy may hold others than what it was copied from. Its names are told too, lest two stores be
    given one file.
    """
    following = following_of(store)
    if following is None:
        return None
    copy = None
    if following.clone() is not store:
        copy = _copies.get(store) or _copies.put(store, uuid.uuid4().hex)
    attributes_ = {**vars(store), **(getattr(store, "__pydantic_private__", None) or {})}
    names = {
        name: value
        for name, value in attributes_.items()
        if isinstance(value, str) and name.endswith(("name", "namespace", "collection", "table"))
    }
    return following.log.id, copy, class_name(plain_class(type(store))), names


async def write(
    store: Any,
    change: Change,
    call: Callable[[], Awaitable[R]],
    exactly: Callable[[R], Change] | None = None,
) -> R:
    """Make a write, noted before and after.

    Args:
        store: The followed store.
        change: What it does at most.
        call: The store's own write.
        exactly: Gives what it did, from what it returned.

    Raises:
        InvalidationError: It could not be noted, and was not made.
    """
    following = following_of(store)
    if following is None:
        return await call()
    with following.log.writing(change) as writing:
        result = await call()
        if exactly is not None:
            with contextlib.suppress(Exception):  # it did at most what was noted
                writing.change = exactly(result)
    following.told(writing.change)
    return result


def write_now(
    store: Any,
    change: Change,
    method: Callable[[], R],
    exactly: Callable[[R], Change] | None = None,
) -> R:
    """Do what `write` does, around a write that is not awaited."""
    return run(write(store, change, _awaited(method), exactly))


async def read(
    store: Any,
    call: Callable[[], Awaitable[R]],
    told: Callable[[Read, R], Read],
    found: Callable[[R], Sized],
) -> R:
    """Make a search, and tell whoever keeps what comes of it.

    Args:
        store: The followed store.
        call: The store's own search.
        told: Completes what is told of it: where the log stood, and what was found.
        found: Gives the rows of a result.
    """
    following = following_of(store)
    if following is None or is_serving(store):
        return await call()
    listening = reads()
    place: Position | None = None if listening is None else following.log.position()
    with stage_of("search", store) as span, serving(store):
        result = await call()
        if span is not telemetry.OFF:
            span.set({attributes.DOCUMENTS: len(found(result))})
    if listening is not None and place is not None:
        known = Read(following.log.id, place.seq, place.mark)
        try:
            listening.append(told(known, result))
        except Exception:  # noqa: BLE001 - a result of no known form: any change may change it
            listening.append(known)
    return result


def read_now(
    store: Any,
    method: Callable[[], R],
    told: Callable[[Read, R], Read],
    found: Callable[[R], Sized],
) -> R:
    """Do what `read` does, around a search that is not awaited."""
    return run(read(store, _awaited(method), told, found))


def _awaited(method: Callable[[], R]) -> Callable[[], Awaitable[R]]:
    async def call() -> R:
        return method()

    return call


def note_other_writes(made: Any, base: type, root: type) -> None:
    """Let methods of a store's own that may write, by their names, note a change of everything.

    Args:
        made: The transparent class.
        base: The store's class.
        root: The framework's, whose methods have adapters.
    """
    for name in dir(base):
        method = inspect.getattr_static(base, name)
        if hasattr(root, name) or not _WRITES.match(name) or not inspect.isfunction(method):
            continue
        setattr(made, name, _noted(method))


def _noted(method: Any) -> Any:
    def log(store: Any) -> Any:
        following = following_of(store)
        return contextlib.nullcontext() if following is None else following.log.writing(EVERYTHING)

    if inspect.iscoroutinefunction(method):

        @functools.wraps(method)
        async def noted_async(self: Any, *args: Any, **kwargs: Any) -> Any:
            with log(self):
                return await method(self, *args, **kwargs)

        return noted_async

    @functools.wraps(method)
    def noted(self: Any, *args: Any, **kwargs: Any) -> Any:
        with log(self):
            return method(self, *args, **kwargs)

    return noted
