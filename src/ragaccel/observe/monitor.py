"""A running application, watched: what its stages do, what it takes, and what is unusual."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter, deque
from typing import TYPE_CHECKING, Any, Final

import msgspec

from ragaccel import telemetry
from ragaccel.errors import ConfigurationError
from ragaccel.observe.alerts import Alarm
from ragaccel.observe.live import Server
from ragaccel.observe.snapshot import (
    CollectionFigures,
    MonitorReport,
    Resources,
    Snapshot,
    figures_of,
    hits_of,
)
from ragaccel.observe.windows import SLOTS, Windows
from ragaccel.resources import (
    Forkable,
    ProcessTree,
    cpu_limit,
    memory_limit_bytes,
    memory_used_bytes,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from typing_extensions import Self

    from ragaccel.cache import MultiLevelCache
    from ragaccel.observe.alerts import Alert, Rule
    from ragaccel.telemetry import Stage
    from ragaccel.vectors import CollectionStats, VectorCollection

    Callback = Callable[[Alert], object]

_HISTORY: Final = 720  # ticks: an hour of them, with the usual interval
_CLOSE_SECONDS: Final = 5.0  # for callbacks that hang
_NOTHING: Final = Resources(0.0, 1.0, 0.0, 0, 0, 0, 0, 0, 0, 0, 0)
_log = logging.getLogger("ragaccel.observe")


class Monitor(Forkable):
    """Hears of every stage of this process, and shows the last window of time.

    `with Monitor() as monitor:` watches until the block ends. Rules are judged once for each window
    that ends, one after the other; figures that are asked for are of the last seconds. A window in
    which nothing tells a metric leaves its rules as they are. A child process that is forked
    inherits a monitor that hears nothing: workers have monitors of their own.

    Args:
        cache: Whose hit rates to tell; without one they are told from the look-ups' stages, which
            those of several keys at once have none of.
        collections: Vector collections to tell the sizes of.
        window: Seconds.
        interval: Seconds between two ticks of a thread; None for no thread, whoever made it then
            calls `tick`.
        rules: `Threshold`s and `Change`s.
        on_alert: Called with each `Alert`, one or several, in the thread that ticks. What they
            raise is logged.
        clock: Seconds by a clock that never goes back.

    Raises:
        ConfigurationError: A window or an interval that makes no sense.
    """

    def __init__(
        self,
        *,
        cache: MultiLevelCache | None = None,
        collections: Iterable[VectorCollection] = (),
        window: float = 60.0,
        interval: float | None = 5.0,
        rules: Iterable[Rule] = (),
        on_alert: Callback | Iterable[Callback] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not window > 0:
            raise ConfigurationError(f"window must be over zero seconds, got {window!r}.")
        if interval is not None and not 0 < interval <= window:
            raise ConfigurationError(
                f"interval must be over zero and at most the window's {window:g} seconds, got "
                f"{interval!r}."
            )
        self._cache, self._collections = cache, tuple(collections)
        self._window, self._interval, self._clock = window, interval, clock
        self._rules = tuple(rules)
        self._callbacks = (on_alert,) if callable(on_alert) else tuple(on_alert)
        self._failing: set[int] = set()
        self._begin()

    def _begin(self) -> None:
        """Begin with nothing seen and nothing running."""
        self._is_running = False
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._server: Server | None = None
        self._ticking = threading.Lock()
        self._start = self._looked_at = self._clock()
        self._epoch = time.time() - self._start
        self._ended_at: float | None = None
        self._windows = Windows(self._window, self._start)
        self._tree = ProcessTree(clock=self._clock)
        self._history: deque[Snapshot] = deque(maxlen=_HISTORY)
        self._alarms = [Alarm(rule) for rule in self._rules]
        self._judged = 0
        self._counted: Counter[str | None] | None = None
        self._used = _NOTHING
        self._sizes: tuple[CollectionFigures, ...] = ()

    def start(self) -> Self:
        """Begin to watch; a monitor that was closed begins anew."""
        if self._is_running:
            return self
        self._begin()
        self._is_running = True
        self._look(self._start)
        self.follow_forks()
        telemetry.listen(self)
        if self._interval is not None:
            self._thread = threading.Thread(
                target=self._work, args=(self._interval, self._stopping), name="ragaccel-monitor",
                daemon=True,
            )  # fmt: skip
            self._thread.start()
        return self

    def close(self) -> None:
        """Tick once more and watch no longer; what was seen can still be reported."""
        if not self._is_running:
            return
        telemetry.unlisten(self)
        self._stopping.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(_CLOSE_SECONDS)
        if self._server is not None:
            self._server.close()
        self._try_to_tick()
        self._ended_at, self._is_running = self._clock(), False

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def started(self, stage: Stage) -> None:
        """Hear that a stage begins, which tells nothing yet."""

    def ended(self, stage: Stage) -> None:
        """Count a stage that is over; one inside one of its own name is no other."""
        if not stage.is_inner:
            self._windows.add(stage, self._clock())

    def tick(self) -> None:
        """Look at the cache, the process and the collections, judge the rules, tell who asked."""
        if not self._is_running:
            return
        with self._ticking:
            now = self._clock()
            self._look(now)
            told = self._judge(now)
            self._history.append(self._recent(now))
        for alert in told:
            for callback in self._callbacks:
                try:
                    callback(alert)
                except Exception:  # noqa: BLE001 - it disturbs nobody
                    _log.exception("A callback for alerts failed")

    def report(self) -> MonitorReport:
        """Return what was seen: the last window and those before."""
        with self._ticking:
            if self._ended_at is None:
                self._look(self._clock())
            return MonitorReport(self._recent(self._now()), tuple(self._history))

    def serve(self, path: str | os.PathLike[str] | None = None) -> Path:
        """Show what is seen to `ragaccel top` and others of this user, until the monitor closes.

        Args:
            path: Of the Unix domain socket; None for one that `ragaccel top` finds by the number
                of this process.

        Returns:
            Where the socket is.

        Raises:
            ConfigurationError: The monitor is not running or serves already, or there can be no
                socket.
        """
        if not self._is_running or self._server is not None:
            state = "serves already" if self._is_running else "is not running; start() it first"
            raise ConfigurationError(f"this monitor {state}.")
        server = Server(path, lambda: msgspec.json.encode(self._recent(self._now())))
        server.open()
        self._server = server
        return server.path

    def _now(self) -> float:
        return self._clock() if self._ended_at is None else self._ended_at

    def _work(self, interval: float, stopping: threading.Event) -> None:
        while not stopping.wait(interval):
            self._try_to_tick()

    def _try_to_tick(self) -> None:
        try:
            self.tick()
        except Exception:  # noqa: BLE001 - watching breaks nothing
            _log.exception("A monitor could not look")

    def _look(self, now: float) -> None:
        """Look at what is not told by stages."""
        stats = None if self._cache is None else self._stats(self._cache)
        if stats is not None:
            counted = Counter[str | None](stats.hits)
            counted[None] = stats.misses + stats.coalesced
            if self._counted is not None:
                self._windows.add_lookups(counted - self._counted, self._looked_at)
            self._counted = counted
        self._looked_at = now
        self._used = self._resources(now)
        told = ((one, self._stats(one)) for one in self._collections)
        self._sizes = tuple(_sizes(one, stats) for one, stats in told if stats is not None)

    def _stats(self, of: Any) -> Any | None:
        """Return the statistics of something, or None if it has none, as when it is closed."""
        try:
            found = of.stats()
        except Exception as error:  # noqa: BLE001 - logged once per change of state
            if id(of) not in self._failing:
                _log.warning("%s cannot be looked at: %s", type(of).__name__, error)
            self._failing.add(id(of))
            return None
        self._failing.discard(id(of))
        return found

    def _resources(self, now: float) -> Resources:
        read = self._tree.read()
        return Resources(
            cpu=self._busy_cores(now, read.cpu_seconds),
            cpu_limit=cpu_limit(),
            cpu_seconds=read.cpu_seconds,
            rss_bytes=read.rss_bytes,
            memory_used_bytes=memory_used_bytes(),
            memory_limit_bytes=memory_limit_bytes(),
            processes=read.processes,
            threads=read.threads,
            open_files=read.open_files,
            disk_read_bytes=read.disk_read_bytes,
            disk_written_bytes=read.disk_written_bytes,
        )

    def _busy_cores(self, now: float, cpu_seconds: float) -> float:
        """Return the cores that were busy since a window ago, or since the first tick."""
        at = self._epoch + now
        before = None
        for before in reversed(self._history):
            if before.at <= at - self._window:
                break
        if before is None or at <= before.at:
            return 0.0
        return max(0.0, (cpu_seconds - before.resources.cpu_seconds) / (at - before.at))

    def _judge(self, now: float) -> list[Alert]:
        """Let the rules hear of the window that has ended since the last time, if one has."""
        ended = self._windows.number(now) // SLOTS
        if ended <= self._judged:
            return []
        self._judged = ended
        seen = self._seen(ended * SLOTS, self._windows.begins(ended * SLOTS))
        told = []
        for alarm in self._alarms:
            value = seen.metric(alarm.rule.metric, alarm.rule.stage)
            if value is not None:
                told.append(alarm.hear(value, self._epoch + now))
        return [alert for alert in told if alert is not None]

    def _recent(self, now: float) -> Snapshot:
        """Return the last seconds, a window of them at most."""
        return self._seen(self._windows.number(now) + 1, now)

    def _seen(self, end: int, until: float) -> Snapshot:
        """Return the window that ends before a slot; `until` is when that is, or was so far."""
        slot = self._windows.window(end)
        seconds = until - max(self._start, self._windows.begins(end - SLOTS))
        told = slot.stages.get("cache.lookup")
        lookups = slot.lookups if self._cache is not None or told is None else told.lookups
        return Snapshot(
            pid=os.getpid(),
            at=self._epoch + until,
            seconds=seconds,
            stages=figures_of(slot, seconds),
            lookups=lookups.total(),
            hits=hits_of(lookups),
            resources=self._used,
            collections=self._sizes,
            alerts=tuple(alarm.firing for alarm in self._alarms if alarm.firing is not None),
        )

    def after_fork_in_child(self) -> None:
        """Hear nothing in the child, and let go of the parent's socket."""
        telemetry.unlisten(self)
        if self._server is not None:
            self._server.leave()
        self._begin()


def _sizes(collection: VectorCollection, stats: CollectionStats) -> CollectionFigures:
    name = "memory" if collection.path is None else collection.path.absolute().name
    return CollectionFigures(
        name, stats.rows, stats.bytes_in_memory, stats.bytes_on_disk, stats.recall
    )
