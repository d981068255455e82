"""`MultiLevelCache`: levels in order, fastest first, behind one face."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypedDict, TypeVar

from ragaccel import telemetry
from ragaccel.cache import bulk, flow, lookup, tunables
from ragaccel.cache.figures import figures
from ragaccel.cache.flight import Flights
from ragaccel.cache.keys import Digest, Uncacheable, digest, namespace_mark
from ragaccel.cache.ledger import EVERYTHING, ProcessLedger
from ragaccel.cache.levels import Usage
from ragaccel.cache.levels.disk import DiskLevel
from ragaccel.cache.levels.memory import MemoryLevel
from ragaccel.cache.stats import CacheStats, Recorder
from ragaccel.cache.terms import Policy, Terms, checked, marks, named
from ragaccel.cache.ttl import TTL, Seconds, seconds
from ragaccel.cache.values import MAX_MARKS, PLAIN, Kind
from ragaccel.errors import CacheClosedError, ConfigurationError, InvalidationError, RagaccelError
from ragaccel.io import run

if TYPE_CHECKING:
    import os
    from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence

    from typing_extensions import Self, Unpack

    from ragaccel.cache.ledger import Position
    from ragaccel.cache.levels import Level
    from ragaccel.cache.values import Body
    from ragaccel.cache.warming import WarmReport
    from ragaccel.knobs import Knob

T = TypeVar("T")

_FLIGHT_TIMEOUT: Final = 60.0
_MOST_TERMS: Final = 1000


class _Missing:
    """The type of `MISSING`."""

    def __repr__(self) -> str:
        return "MISSING"

    def __bool__(self) -> bool:
        return False

    def __reduce__(self) -> str:
        return "MISSING"


#: What `get` returns where nothing is stored (None is a value like any other).
MISSING: Final = _Missing()


class CacheOptions(TypedDict, total=False):
    """Options of a cache; see `MultiLevelCache`."""

    namespace: str
    ttl: TTL
    negative_ttl: Seconds | None
    stale_while_revalidate: Seconds | None
    early_refresh: float
    single_flight_across_processes: bool


class MultiLevelCache:
    """A cache of several levels: a hit is written back to the faster ones, a miss is computed once.

    A fault of a level is counted and logged once; it is never raised into a look-up.

    Args:
        levels: Fastest first, such as `[MemoryLevel(), DiskLevel("cache.sqlite")]`.
        namespace: The tenant or application. Nothing is shared between two namespaces.
        ttl: Seconds (or a timedelta) that an entry is served for unless it says otherwise; None
            for no limit; or a function of query and result that gives them, such as
            `adaptive_ttl()`.
        negative_ttl: The longest that an empty result (None, [], "") is served; None for no
            difference.
        stale_while_revalidate: Seconds after its lifetime in which an entry is still served by
            `get_or_compute` and by wrapped components, while it is computed anew in the background.
            What was invalidated is not served.
        early_refresh: How eagerly entries are computed anew in the background before their lifetime
            ends, so that many callers do not miss at once: 0 never, 1 as in the paper (see
            `Policy.is_due`), more is earlier.
        single_flight_across_processes: Whether of several processes that miss a key together one
            computes and the others wait for it; needs a disk or Redis level.

    Example:
        >>> cache = MultiLevelCache.open()
        >>> cache.get_or_compute("answer", lambda: 42)
        42
        >>> cache.get("answer")
        42
    """

    def __init__(
        self,
        levels: Sequence[Level],
        *,
        namespace: str = "default",
        ttl: TTL = 3600,
        negative_ttl: Seconds | None = 60,
        stale_while_revalidate: Seconds | None = None,
        early_refresh: float = 0.0,
        single_flight_across_processes: bool = True,
    ) -> None:
        _check_levels(levels)
        if early_refresh < 0:
            raise ConfigurationError(f"early_refresh must not be negative, got {early_refresh}.")
        self.levels = tuple(levels)
        self.namespace = namespace
        self._options: CacheOptions = {
            "namespace": namespace,
            "ttl": ttl,
            "negative_ttl": negative_ttl,
            "stale_while_revalidate": stale_while_revalidate,
            "early_refresh": early_refresh,
            "single_flight_across_processes": single_flight_across_processes,
        }
        self._policy = Policy(
            checked(ttl),
            None if negative_ttl is None else seconds(negative_ttl),
            0.0 if stale_while_revalidate is None else seconds(stale_while_revalidate),
            early_refresh,
        )
        self._known_terms: dict[tuple[int, str | None], Terms[Any]] = {}
        shared = self.levels[-1]
        leases = getattr(shared, "leases", None) if single_flight_across_processes else None
        self._store = lookup.Store(
            self.levels,
            getattr(shared, "ledger", None) or ProcessLedger(),
            leases,
            Flights(),
            Recorder(),
            _FLIGHT_TIMEOUT,
        )
        _follow(self.levels)
        self._closed = False
        telemetry.measure(self, self._store.recorder.figures)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str] | None = None,
        *,
        redis: str | None = None,
        memory_bytes: int = 256 * 1024 * 1024,
        disk_bytes: int = 4 * 1024**3,
        namespace_bytes: int | None = None,
        **options: Unpack[CacheOptions],
    ) -> Self:
        """Make the usual cache: memory, then a file, then a Redis or Valkey server.

        Args:
            path: A folder for the disk level; None for no disk level.
            redis: The URL of a server, such as `redis://localhost:6379`; None for no Redis level.
            memory_bytes: Size bound of the memory level.
            disk_bytes: Size bound of the disk level.
            namespace_bytes: The most that one namespace may take of memory and of disk; None for
                no limit but the levels' own.
            options: See the class.

        Raises:
            MissingExtraError: `redis` is given and redis-py is not installed.
        """
        levels: list[Level] = [MemoryLevel(memory_bytes, namespace_bytes=namespace_bytes)]
        if path is not None:
            file = Path(path) / "cache.sqlite"
            levels.append(DiskLevel(file, disk_bytes, namespace_bytes=namespace_bytes))
        if redis is not None:
            from ragaccel.cache.levels.redis import RedisLevel

            levels.append(RedisLevel(redis))
        return cls(levels, **options)

    def get(self, key: Any, *, kind: Kind[Any] = PLAIN, namespace: str | None = None) -> Any:
        """Return a fresh copy of the value under the key, or `MISSING`.

        Args:
            key: See `set`.
            kind: How the value was stored; plain values by default. Kinds never meet.
            namespace: Whose it is; the cache's own by default.
        """
        store, terms = self._open_store(), self._terms(kind, namespace)
        known = self._key(key, kind, namespace)
        near = store.levels[0]
        if type(near) is MemoryLevel:
            if not store.ledger.is_prepared:
                store.ledger.prepare()
            found = lookup.glance(store, near, known, terms, fresh=True)
            if found is not None:
                return found.value
            rest = flow.find_slower(flow.SYNC, store, known, terms, again=False, fresh=True)
            return _value(store, terms, run(rest))
        return run(self._get(flow.SYNC, known, terms))

    async def aget(self, key: Any, *, kind: Kind[Any] = PLAIN, namespace: str | None = None) -> Any:
        """Return what `get` does, without blocking the event loop."""
        found_key = self._key(key, kind, namespace)
        return await self._get(flow.ASYNC, found_key, self._terms(kind, namespace))

    def get_many(
        self, keys: Sequence[Any], *, kind: Kind[Any] = PLAIN, namespace: str | None = None
    ) -> list[Any]:
        """Return the values under several keys in their order, `MISSING` where there is none.

        Each level is asked once for all keys that the faster ones do not have; see `get`.
        """
        return run(self.find_many(flow.SYNC, keys, kind=kind, namespace=namespace))

    async def aget_many(
        self, keys: Sequence[Any], *, kind: Kind[Any] = PLAIN, namespace: str | None = None
    ) -> list[Any]:
        """Return what `get_many` does, without blocking the event loop."""
        return await self.find_many(flow.ASYNC, keys, kind=kind, namespace=namespace)

    def set(
        self,
        key: Any,
        value: Any,
        *,
        ttl: TTL = None,
        tags: Iterable[str] = (),
        documents: Iterable[str] = (),
        kind: Kind[Any] = PLAIN,
        namespace: str | None = None,
    ) -> None:
        """Store a value on every level; one that is replaced is not served anywhere any more.

        Args:
            key: Numbers, strings, bytes, None, and lists, tuples and dicts of them.
            value: Strings, bytes, numbers, None, lists, dicts with string keys, numpy arrays.
            ttl: Seconds (or a timedelta) to serve it for; the cache's own by default, and
                `math.inf` for no limit.
            tags: What it is invalidated by; see `invalidate`.
            documents: Ids of the documents it was made of; see `invalidate`.
            kind: How the value is stored; plain values by default. Kinds never meet.
            namespace: Whose it is; the cache's own by default.

        Raises:
            ConfigurationError: The key or the value cannot be stored faithfully.
            InvalidationError: An older value was replaced, and that could not be written down.
        """
        with _telling():
            run(self._set(flow.SYNC, [(key, value)], ttl, tags, documents, kind, namespace))

    async def aset(
        self,
        key: Any,
        value: Any,
        *,
        ttl: TTL = None,
        tags: Iterable[str] = (),
        documents: Iterable[str] = (),
        kind: Kind[Any] = PLAIN,
        namespace: str | None = None,
    ) -> None:
        """Do what `set` does, without blocking the event loop."""
        with _telling():
            await self._set(flow.ASYNC, [(key, value)], ttl, tags, documents, kind, namespace)

    def set_many(
        self,
        items: Iterable[tuple[Any, Any]],
        *,
        ttl: TTL = None,
        tags: Iterable[str] = (),
        kind: Kind[Any] = PLAIN,
        namespace: str | None = None,
    ) -> None:
        """Store pairs of key and value, with one call of each level; see `set`."""
        with _telling():
            run(self._set(flow.SYNC, list(items), ttl, tags, (), kind, namespace))

    async def aset_many(
        self,
        items: Iterable[tuple[Any, Any]],
        *,
        ttl: TTL = None,
        tags: Iterable[str] = (),
        kind: Kind[Any] = PLAIN,
        namespace: str | None = None,
    ) -> None:
        """Do what `set_many` does, without blocking the event loop."""
        with _telling():
            await self._set(flow.ASYNC, list(items), ttl, tags, (), kind, namespace)

    def delete(self, *keys: Any, kind: Kind[Any] = PLAIN, namespace: str | None = None) -> None:
        """Forget keys on every level and in every process.

        Args:
            keys: See `set`.
            kind: How the values were stored; plain values by default.
            namespace: Whose they are; the cache's own by default.

        Raises:
            InvalidationError: It could not be written down; call it again.
        """
        store, digests = self._open_store(), self._keys(keys, kind, namespace)
        with _telling():
            run(bulk.remove(flow.SYNC, store, digests, self._terms(kind, namespace)))

    async def adelete(
        self, *keys: Any, kind: Kind[Any] = PLAIN, namespace: str | None = None
    ) -> None:
        """Do what `delete` does, without blocking the event loop."""
        store, digests = self._open_store(), self._keys(keys, kind, namespace)
        with _telling():
            await bulk.remove(flow.ASYNC, store, digests, self._terms(kind, namespace))

    def get_or_compute(
        self,
        key: Any,
        compute: Callable[[], T],
        *,
        ttl: TTL = None,
        tags: Iterable[str] = (),
        documents: Iterable[str] = (),
        kind: Kind[T] = PLAIN,
    ) -> T:
        """Return the value under the key, computing it where no level has it.

        Of all threads and tasks, and with a disk or Redis level of all processes, that miss the key
        at the same time one computes and the others get its result. Within a process they also get
        its error; another process computes for itself then.

        Args:
            key: See `set`; or a digest of `cache.keys`.
            compute: Called without arguments on a miss.
            ttl: See `set`; or a function of key and value.
            tags: See `set`.
            documents: See `set`.
            kind: How the value is stored; plain values by default.

        Raises:
            ConfigurationError: The key cannot be stored faithfully.
        """

        async def compute_now() -> T:
            return compute()

        return run(
            self.find_or_compute(
                flow.SYNC, key, compute_now, ttl=ttl, tags=tags, documents=documents, kind=kind
            )
        )

    async def aget_or_compute(
        self,
        key: Any,
        compute: Callable[[], Awaitable[T]],
        *,
        ttl: TTL = None,
        tags: Iterable[str] = (),
        documents: Iterable[str] = (),
        kind: Kind[T] = PLAIN,
    ) -> T:
        """Return what `get_or_compute` does; `compute` is awaited."""
        return await self.find_or_compute(
            flow.ASYNC, key, compute, ttl=ttl, tags=tags, documents=documents, kind=kind
        )

    def find_or_compute(
        self,
        io: flow.IO,
        key: Any,
        compute: Callable[[], Awaitable[T]],
        *,
        ttl: TTL = None,
        kind: Kind[T] = PLAIN,
        tags: Iterable[str] = (),
        documents: Iterable[str] = (),
        namespace: str | None = None,
        query: Any = MISSING,
    ) -> Coroutine[Any, Any, T]:
        """Return the flow behind `get_or_compute`, for adapters that are flows themselves.

        Args:
            io: How to wait.
            key: See `get_or_compute`.
            compute: Awaited on a miss.
            ttl: See `get_or_compute`.
            kind: See `get_or_compute`.
            tags: See `set`.
            documents: See `set`.
            namespace: Whose the entry is; the cache's own by default.
            query: What a ttl function is shown; the key by default.
        """
        store = self._open_store()
        terms = Terms(
            kind,
            self.namespace if namespace is None else namespace,
            self._policy,
            self._policy.ttl if ttl is None else checked(ttl),
            key if query is MISSING else query,
            named(tags),
            named(documents),
        )
        known = self._key(key, kind, namespace)
        return flow.find_or_compute(io, store, known, terms, compute)

    async def find_many(
        self, io: flow.IO, keys: Sequence[Any], *, kind: Kind[Any], namespace: str | None = None
    ) -> list[Any]:
        """Return what `get_many` does; see `find_or_compute`."""
        store, digests = self._open_store(), self._keys(keys, kind, namespace)
        if not store.ledger.is_prepared:
            await io.prepare(store.ledger)
        found = await bulk.find(io, store, digests, self._terms(kind, namespace))
        return [found.get(key, MISSING) for key in digests]

    async def look(
        self,
        io: flow.IO,
        key: bytes,
        *,
        kind: Kind[Any],
        namespace: str | None = None,
        counted: bool = True,
    ) -> Any:
        """Return a value or `MISSING`, which is counted as no miss; see `find_or_compute`.

        Args:
            io: How to wait.
            key: A finished key.
            kind: See `get_or_compute`.
            namespace: Whose the entry is; the cache's own by default.
            counted: Whether the statistics hear of a hit.
        """
        store = self._open_store()
        if not store.ledger.is_prepared:
            await io.prepare(store.ledger)
        found = await lookup.find(io, store, key, self._terms(kind, namespace), counted=counted)
        return MISSING if found is None else found.value

    @property
    def position(self) -> Position:
        """Where invalidations stand now, for `keep_computed`."""
        return self._open_store().ledger.position()

    def keep_computed(
        self,
        io: flow.IO,
        items: Sequence[tuple[Digest, Any, Any]],
        *,
        since: Position,
        cost: float,
        kind: Kind[Any],
        ttl: TTL = None,
        namespace: str | None = None,
    ) -> Coroutine[Any, Any, None]:
        """Return a flow that keeps values which were computed without `find_or_compute`.

        Args:
            io: How to wait.
            items: Keys, what a ttl function is shown of the question, and values.
            since: The `position` before they were computed; what was invalidated since is not kept.
            cost: Seconds that each took.
            kind: See `get_or_compute`.
            ttl: See `get_or_compute`.
            namespace: Whose the entries are; the cache's own by default.
        """
        whose = self.namespace if namespace is None else namespace
        lifetime = self._policy.ttl if ttl is None else checked(ttl)
        kept = [
            (key, Terms(kind, whose, self._policy, lifetime, query), value)
            for key, query, value in items
        ]
        return bulk.keep_computed(io, self._open_store(), kept, since, cost)

    def invalidate(
        self,
        tags: Iterable[str] = (),
        documents: Iterable[str] = (),
        namespace: str | None = None,
        *,
        everything: bool = False,
    ) -> None:
        """Serve no entry of these any more, in this process and in all that share the last level.

        It costs the same however many entries there are. Entries that are being computed now do
        not stand either. Other processes hear of it at once through the disk, and within
        milliseconds through Redis.

        Args:
            tags: Entries with one of these tags.
            documents: Entries made of one of these documents, which wrapped retrievers note down
                by themselves.
            namespace: Of which namespace; the cache's own by default. Without tags and documents:
                all its entries.
            everything: All entries of all namespaces.

        Raises:
            ConfigurationError: Nothing was named.
            InvalidationError: It could not be written down; call it again.
        """
        struck = self._struck(tags, documents, namespace, everything=everything)
        with _telling():
            self._open_store().ledger.strike(*struck)

    async def ainvalidate(
        self,
        tags: Iterable[str] = (),
        documents: Iterable[str] = (),
        namespace: str | None = None,
        *,
        everything: bool = False,
    ) -> None:
        """Do what `invalidate` does, without blocking the event loop."""
        struck = self._struck(tags, documents, namespace, everything=everything)
        with _telling():
            await self._open_store().ledger.astrike(*struck)

    def warm(
        self,
        queries: Iterable[Any] | str | os.PathLike[str],
        through: Any,
        *,
        concurrency: int = 4,
        rate: float | None = None,
        progress: bool = True,
    ) -> WarmReport:
        """Ask every query once, so that the answers are cached; see `ragaccel.cache.warm`."""
        from ragaccel.cache.warming import warm

        self._open_store()
        return warm(queries, through, concurrency=concurrency, rate=rate, progress=progress)

    async def awarm(
        self,
        queries: Iterable[Any] | str | os.PathLike[str],
        through: Any,
        *,
        concurrency: int = 4,
        rate: float | None = None,
        progress: bool = True,
    ) -> WarmReport:
        """Do what `warm` does, without blocking the event loop."""
        from ragaccel.cache.warming import awarm

        self._open_store()
        return await awarm(queries, through, concurrency=concurrency, rate=rate, progress=progress)

    def scan(self, *, kind: Kind[Any] = PLAIN, namespace: str | None = None) -> Iterator[Any]:
        """Yield the values of a namespace; it reads all entries of a level.

        For stores that list their keys; a level that fails is passed over.

        Args:
            kind: How the values were stored; those of other kinds are passed over.
            namespace: Whose they are; the cache's own by default.
        """
        store = self._open_store()
        run(flow.SYNC.prepare(store.ledger))
        return bulk.scan(store, self._terms(kind, namespace))

    def relieve(self, needed_bytes: int) -> int:
        """Let entries of the levels in memory go, for a `MemoryGuard`; see `MemoryLevel.relieve`.

        Returns:
            How many bytes went.
        """
        freed = 0
        for level in self.levels:
            if freed < needed_bytes and hasattr(level, "relieve"):
                freed += level.relieve(needed_bytes - freed)
        return freed

    def restore(self) -> None:
        """Let the levels in memory grow again."""
        for level in self.levels:
            if hasattr(level, "restore"):
                level.restore()

    @property
    def ttl(self) -> TTL:
        """How long entries are served that do not say otherwise; it can be changed.

        Entries that are stored already keep theirs.
        """
        return self._policy.ttl

    @ttl.setter
    def ttl(self, ttl: TTL) -> None:
        self._policy = replace(self._policy, ttl=checked(ttl))
        self._options["ttl"] = ttl
        self._known_terms = {}

    def tunables(self) -> tuple[Knob, ...]:
        """Return what can be turned while it is used: bytes of its memory level, and the TTL."""
        return tunables.knobs(self)

    def bypass(self, reason: str) -> None:
        """Count a call that had to go past the cache, under a reason."""
        self._store.recorder.bypass(reason)

    def clear(self) -> None:
        """Forget everything in all namespaces, and erase it on every level.

        Raises:
            InvalidationError: It could not be written down; call it again.
            Exception: Whatever a level raises: that something is still there must be known.
        """
        store, failed = self._open_store(), []
        for level in self.levels:
            try:
                level.clear()
            except Exception as error:  # noqa: BLE001 - the other levels are cleared first
                failed.append(error)
        with _telling():
            store.ledger.strike(EVERYTHING, (EVERYTHING,))
        if failed:
            raise failed[0]

    async def aclear(self) -> None:
        """Do what `clear` does, without blocking the event loop."""
        store, failed = self._open_store(), []
        for level in self.levels:
            try:
                await level.aclear()
            except Exception as error:  # noqa: BLE001 - the other levels are cleared first
                failed.append(error)
        with _telling():
            await store.ledger.astrike(EVERYTHING, (EVERYTHING,))
        if failed:
            raise failed[0]

    def stats(self) -> CacheStats:
        """Return what the cache did since it was made, and what its levels hold.

        Once it is closed its levels are not asked any more.
        """
        levels = () if self._closed else self.levels
        return self._store.recorder.snapshot({level.name: _usage(level) for level in levels})

    def figures(self) -> list[telemetry.Figure]:
        """Return the statistics as metrics; a namespace is told by its name."""
        return figures(self.stats())

    def close(self) -> None:
        """Close every level; the cache cannot be used afterwards."""
        self._closed = True
        for level in self.levels:
            level.close()

    async def aclose(self) -> None:
        """Do what `close` does, and close the running event loop's connections too."""
        self._closed = True
        for level in self.levels:
            await level.aclose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.levels, self._options)

    def _open_store(self) -> lookup.Store:
        if self._closed:
            raise CacheClosedError("the cache is closed; open a new one.")
        return self._store

    async def _get(self, io: flow.IO, key: bytes, terms: Terms[Any]) -> Any:
        store = self._open_store()
        if not store.ledger.is_prepared:
            await io.prepare(store.ledger)
        return _value(store, terms, await lookup.find(io, store, key, terms, fresh=True))

    async def _set(
        self,
        io: flow.IO,
        items: list[tuple[Any, Any]],
        ttl: TTL,
        tags: Iterable[str],
        documents: Iterable[str],
        kind: Kind[Any],
        namespace: str | None,
    ) -> None:
        store, whose = self._open_store(), self.namespace if namespace is None else namespace
        lifetime = self._policy.ttl if ttl is None else checked(ttl)
        tags, documents = named(tags), named(documents)
        kept = []
        for key, value in items:
            terms = Terms(kind, whose, self._policy, lifetime, key, tags, documents)
            kept.append((self._key(key, kind, namespace), terms, value, _packed(kind, value)))
        try:
            await bulk.keep(io, store, kept)
        except Uncacheable as error:
            raise ConfigurationError(
                f"an entry can carry {MAX_MARKS:,} tags and documents, and not more."
            ) from error

    def _terms(self, kind: Kind[Any], namespace: str | None) -> Terms[Any]:
        """Return the terms of a look-up, which are made once: they do not change."""
        known = self._known_terms.get((id(kind), namespace))
        if known is None:
            if len(self._known_terms) > _MOST_TERMS:
                self._known_terms = {}
            whose = self.namespace if namespace is None else namespace
            known = self._known_terms[id(kind), namespace] = Terms(kind, whose, self._policy)
        return known

    def _keys(self, keys: Iterable[Any], kind: Kind[Any], namespace: str | None) -> list[bytes]:
        return [self._key(key, kind, namespace) for key in keys]

    def _key(self, key: Any, kind: Kind[Any] = PLAIN, namespace: str | None = None) -> bytes:
        if type(key) is Digest:
            return key
        try:
            return digest(self.namespace if namespace is None else namespace, kind.name, key)
        except Uncacheable as error:
            raise ConfigurationError(
                "a key is made of numbers, strings, bytes, None, lists and dicts: "
                f"{error.__cause__}"
            ) from error

    def _struck(
        self,
        tags: Iterable[str],
        documents: Iterable[str],
        namespace: str | None,
        *,
        everything: bool,
    ) -> tuple[bytes, list[bytes]]:
        """Return the namespace and the marks to strike."""
        if everything:
            return EVERYTHING, [EVERYTHING]
        whose = self.namespace if namespace is None else namespace
        struck = marks(whose, named(tags), named(documents))
        if not struck and namespace is None:
            raise ConfigurationError(
                "name tags, documents or a namespace to invalidate, or everything=True."
            )
        return namespace_mark(whose), struck or [namespace_mark(whose)]


def _check_levels(levels: object) -> None:
    if not isinstance(levels, (list, tuple)) or not levels:
        raise ConfigurationError(f"a cache needs a list of levels, got {levels!r}.")
    for level in levels:
        if not hasattr(level, "aget_many"):
            raise ConfigurationError(f"{level!r} is no level, such as MemoryLevel() is.")


def _follow(levels: Sequence[Level]) -> None:
    """Let the levels of this machine hear what others write to a level that they share."""
    for at, level in enumerate(levels):
        follow = getattr(level, "follow", None)
        if follow is not None:
            for faster in levels[:at]:
                if hasattr(faster, "forget"):
                    follow(faster)


def _rebuild(
    cls: type[MultiLevelCache], levels: Sequence[Level], options: CacheOptions
) -> MultiLevelCache:
    return cls(levels, **options)


def _packed(kind: Kind[Any], value: Any) -> Body:
    try:
        return kind.pack(value)
    except Uncacheable as error:
        raise ConfigurationError(
            f"{type(value).__name__} cannot be stored faithfully; store strings, bytes, "
            "numbers, None, lists, dicts with string keys, or numpy arrays."
        ) from error


def _value(store: lookup.Store, terms: Terms[Any], found: lookup.Found[Any] | None) -> Any:
    """Return what was found, or count a miss."""
    if found is None:
        store.recorder.count(terms.namespace, "misses")
        return MISSING
    return found.value


def _usage(level: Level) -> Usage:
    try:
        return level.usage()
    except Exception:  # noqa: BLE001 - statistics of the others are still wanted
        return Usage(-1, -1, -1)


@contextlib.contextmanager
def _telling() -> Iterator[None]:
    """Turn a failed strike into an error that says what it means."""
    try:
        yield
    except RagaccelError:
        raise
    except Exception as error:
        raise InvalidationError(
            "the invalidation could not be written down, so that old values may still be served; "
            f"call it again when the cache's last level can be reached ({type(error).__name__})."
        ) from error
