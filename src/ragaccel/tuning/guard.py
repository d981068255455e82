"""`Guard`: a changed setting, tried on a share of the live traffic and taken back if it is bad."""

from __future__ import annotations

import hashlib
import logging
import math
import random
import threading
import time
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

from ragaccel import telemetry
from ragaccel.errors import ConfigurationError
from ragaccel.resources import Forkable
from ragaccel.telemetry import attributes
from ragaccel.tuning.callbacks import Callbacks, Hooks, Trial
from ragaccel.tuning.canary import Canary, Limit, Terms
from ragaccel.tuning.change import Change
from ragaccel.tuning.journal import Journal
from ragaccel.tuning.shadow import Shadow

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from typing_extensions import Self

    from ragaccel.knobs import Knob
    from ragaccel.tuning.callbacks import Callback
    from ragaccel.tuning.goals import Goal
    from ragaccel.tuning.journal import State

_REQUESTS: Final = frozenset(("query", "retrieve", "search"))
_SHARES: Final = {"latency_p50": 0.5, "latency_p95": 0.05, "latency_p99": 0.01}
#: Only a request that failed takes longer: a limit of this many seconds is one of failures.
_FOR_EVER: Final = 1e300
_LEAST_ERRORS: Final = 1e-3
_HASHES: Final = 2**64
_PATIENCE: Final = 0.1
_log = logging.getLogger("ragaccel.tuning")


class _Request:
    """A request under way."""

    __slots__ = ("before", "began", "heard", "is_canary", "is_over", "stage")

    def __init__(self, stage: object, *, is_canary: bool, heard: int) -> None:
        self.stage, self.is_canary, self.heard = stage, is_canary, heard
        self.began = time.perf_counter()
        self.is_over = False
        self.before: dict[str, Any] | None = None


#: What a context is in while knobs are turned.
_TURNING: Final = _Request(None, is_canary=False, heard=0)


class Guard(Forkable):
    """Tries a change on a share of the live traffic; `Guard.attach` makes one.

    It hears of requests as the stages of accelerated components, so that both frameworks, threads
    and tasks are one to it; what is wrapped by nothing says `with guard.request():` itself.

    A knob of a `ContextVar` is turned for a canary's own request and what happens inside; requests
    beside it never see it. Any other knob is one setting of a shared object, and no request can be
    given one of its own. Such a change is tried in turns: a judged request begins while no other
    one is judged, the knob is turned for as long as a canary takes, and requests that come
    meanwhile go unjudged, under whatever is set. In a process that serves one request at a time
    that is every request for itself. Source: Bojinov, Simchi-Levi and Zhao, "Design and analysis of
    switchback experiments", Management Science, 2023.

    Attributes:
        callbacks: Those that wait to be called.
        unwatched: The goals that cannot be seen in live traffic, such as recall where the pipeline
            holds no collection.
    """

    unwatched: Sequence[Goal]

    def __init__(
        self,
        change: Change,
        canary: Canary,
        journal: Journal,
        hooks: Hooks,
        *,
        components: frozenset[str] = frozenset(),
        timeout: float = 30.0,
        session: Callable[[], str | None] | None = None,
    ) -> None:
        self._change, self._canary, self._journal, self._hooks = change, canary, journal, hooks
        self._components, self._timeout, self._session = components, timeout, session
        self._state: State = "trying"
        self._reason: str | None = None
        self._is_local = False
        self._current: ContextVar[_Request | None] = ContextVar("ragaccel_guarded", default=None)
        self._judged: dict[int, _Request] = {}
        self._lock = threading.Lock()
        self._shadow: Shadow | None = None
        self.callbacks: Final = Callbacks()
        self.unwatched = ()
        self.follow_forks()

    @classmethod
    def attach(
        cls,
        pipeline: Any,
        changes: Iterable[tuple[Knob, Any]],
        goals: Iterable[Goal] = (),
        *,
        terms: Terms | None = None,
        journal: str | os.PathLike[str] | None = None,
        timeout: float = 30.0,
        session: Callable[[], str | None] | None = None,
        on_trial: Callback | None = None,
        on_improvement: Callback | None = None,
        on_apply: Callback | None = None,
        on_rollback: Callback | None = None,
    ) -> Self:
        """Try a change from now on, until it is applied or rolled back.

        With a journal, a process that begins again, also after SIGKILL, first sets what was before
        the trial. What was applied is applied again, and what was rolled back, or ended a process,
        is not tried again; delete the file to try anew.

        Args:
            pipeline: An accelerated component, or several: the requests are their outermost calls.
            changes: Knobs and their new values, tried together.
            goals: Bounds from above on latency_p50, latency_p95, latency_p99 and error_rate are
                watched, and bounds from below on recall where the pipeline holds a collection: one
                in `Terms.one_in` answers of canaries is compared with exact search for that, on a
                thread of its own. Others are `unwatched`.
            terms: How it is tried.
            journal: The path of the journal; None to remember nothing.
            timeout: Seconds after which a canary counts as failed, though it may go on.
            session: Gives a name for whoever is asking now, who then sees the change each time or
                never; None for anybody at any time.
            on_trial: See `Hooks`; so are the others.
            on_improvement: As above.
            on_apply: As above.
            on_rollback: As above.

        Raises:
            ConfigurationError: Changes that change nothing, or a journal that cannot be written.
        """
        if not timeout > 0:
            raise ConfigurationError(f"timeout must be over zero seconds, got {timeout!r}.")
        change = Change(changes)
        kept = Journal() if journal is None else Journal.open(journal)
        parts = pipeline if isinstance(pipeline, (list, tuple)) else [pipeline]
        wanted = list(goals)
        limits = {one: limit for one in wanted if (limit := _limit(one)) is not None}
        terms = terms or Terms()
        shadow = Shadow(parts, terms.one_in)
        recalls = [one for one in wanted if shadow.collections and _is_of_recall(one)]
        recall = max((one.bound or 0.0 for one in recalls), default=None)
        guard = cls(
            change, Canary(terms, list(limits.values()), recall), kept,
            Hooks(on_trial, on_improvement, on_apply, on_rollback),
            components=frozenset(type(one).__name__ for one in parts),
            timeout=timeout, session=session,
        )  # fmt: skip
        guard.unwatched = [one for one in wanted if one not in limits and one not in recalls]
        guard._shadow = shadow if recalls else None
        try:
            guard._begin()
        except BaseException:
            kept.close()
            raise
        return guard

    @property
    def trial(self) -> Trial:
        """How it stands."""
        canary = self._canary
        share = canary.share if self._state == "trying" else float(self._state == "applied")
        return Trial(
            self._state,
            settings=dict(self._change.settings),
            was=dict(self._change.was),
            share=share,
            canaries=canary.canaries,
            controls=canary.controls,
            reason=self._reason,
        )

    def detach(self) -> None:
        """End it: what is on trial is taken back, and may be tried again; what is applied stays."""
        with self._lock:
            if self._state == "trying":
                self._settle("stopped", "the guard was detached")
            elif not self._is_local:
                telemetry.unlisten(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exit_: object) -> None:
        self.detach()

    def request(self, who: str | None = None) -> _Guarded:
        """Return a context manager around one request, for what no accelerated component serves.

        Args:
            who: Whoever asks, or the query; see `session` of `attach`.
        """
        return _Guarded(self, who)

    def started(self, stage: telemetry.Stage) -> None:
        """Hear that a stage begins; see `telemetry.Listener`."""
        if stage.name in _REQUESTS:
            component = stage.attributes.get(attributes.COMPONENT)
            if component is None or component in self._components:
                self.begin(stage)

    def ended(self, stage: telemetry.Stage) -> None:
        """Hear that a stage is over; see `telemetry.Listener`."""
        self.end(stage, failed=stage.error is not None)

    def begin(self, stage: object, who: str | None = None) -> None:
        """Begin a request in this context, unless it is inside of one.

        Args:
            stage: What `end` will name.
            who: See `request`.
        """
        outer = self._current.get()
        if outer is not None and not outer.is_over:
            return
        is_chosen = self._canary.share > 0 and self._chosen(who)
        if not (self._lock.acquire(blocking=False) or self._lock.acquire(timeout=_PATIENCE)):
            return  # knobs are being turned, which may take long
        try:
            if self._judged:
                self._look_for_overdue()
            request = _Request(stage, is_canary=False, heard=self._canary.canaries)
            if self._state == "trying" and (self._is_local or not self._judged):
                request.is_canary = is_chosen
                self._judged[id(request)] = request
                if is_chosen and not self._is_local and not self._turn(self._change.settings):
                    self._settle("rolled back", "it could not be set")
            elif self._state == "applied":
                request.is_canary = True
        finally:
            self._lock.release()
        self._current.set(request)
        if request.is_canary and self._is_local:
            request.before = self._change.now()
            self._turn(self._change.settings)
        request.began = time.perf_counter()

    def end(self, stage: object, *, failed: bool) -> None:
        """End the request that began with a stage; any other stage ends none.

        Args:
            stage: What `begin` was told.
            failed: Whether an exception ended it.
        """
        request = self._current.get()
        if request is None or request.stage is not stage or request.is_over:
            return
        seconds = math.inf if failed else time.perf_counter() - request.began
        request.is_over = True
        self._current.set(None)
        if request.before is not None:
            self._turn(request.before)
        with self._lock:
            self._judge(request, seconds)

    def _is_in_canary(self) -> bool:
        """Tell whether this context is in a request that sees the change on trial."""
        request = self._current.get()
        is_canary = request is not None and request.is_canary and not request.is_over
        return is_canary and self._state == "trying"

    def _hear_recall(self, recall: float) -> None:
        with self._lock:
            if self._state == "trying":
                step = self._canary.step
                self._canary.hear_recall(recall)
                self._conclude(step)

    def _judge(self, request: _Request, seconds: float) -> None:
        """Hear of a judged request, once; the lock is held."""
        if self._judged.pop(id(request), None) is None:
            return
        if self._state != "trying":
            self._hear_no_more()
            return
        if not request.is_canary:
            self._canary.hear_control(seconds)
            return
        if not self._is_local:
            self._turn(self._change.was)
        step = self._canary.step
        self._canary.hear_canary(seconds)
        self._conclude(step)

    def _conclude(self, step: int) -> None:
        """Do what follows from what a canary has shown, at a step; the lock is held."""
        if self._canary.is_bad:
            self._settle("rolled back", self._canary.fault)
        elif self._canary.is_through:
            self._settle("applied")
        elif self._canary.step > step:
            self.callbacks.tell(self._hooks.on_improvement, self.trial)

    def _look_for_overdue(self) -> None:
        """Count what does not end as failed; where no canary is heard of at all, roll back."""
        while self._judged:
            oldest = next(iter(self._judged.values()))
            if time.perf_counter() - oldest.began < self._timeout:
                return
            is_silent = oldest.is_canary and oldest.heard == self._canary.canaries
            self._judge(oldest, math.inf)
            if is_silent and self._state == "trying":
                self._settle("rolled back", f"nothing was heard of it for {self._timeout:g} s")

    def _chosen(self, who: str | None) -> bool:
        share = self._canary.share
        if who is None and self._session is not None:
            who = self._asked_who(self._session)
        if who is None:
            return random.random() < share  # noqa: S311 - no secret depends on it
        named = f"{','.join(self._change.settings)}\0{who}".encode(errors="replace")
        digest = hashlib.blake2b(named, digest_size=8).digest()
        return int.from_bytes(digest, "big") < share * _HASHES

    @staticmethod
    def _asked_who(session: Callable[[], str | None]) -> str | None:
        try:
            return session()
        except Exception as error:  # noqa: BLE001 - it is the user's, and no request hears of it
            _log.warning("session failed: %s", type(error).__name__)
            return None

    def _turn(self, values: Mapping[str, Any]) -> bool:
        """Turn the knobs; requests that they make for that are none of the traffic."""
        token = self._current.set(_TURNING)
        try:
            return self._change.turn(values)
        finally:
            self._current.reset(token)

    def _begin(self) -> None:
        last = self._change.recover(self._journal)
        if last is None:
            self._try()
        elif last.state == "trying":
            self._settle("rolled back", "the process ended while it was tried")
        else:
            self._state, self._reason = last.state, last.reason
            self._journal.close()
            if last.state == "applied":
                self._is_local = self._change.is_local()
                if self._is_local:
                    telemetry.listen(self, _REQUESTS, brief=True)

    def _try(self) -> None:
        change = self._change
        if change.is_none:
            raise ConfigurationError(
                f"nothing is to be changed: {change.settings!r} is set already."
            )
        try:
            self._journal.write("trying", change.settings, change.was)
        except (OSError, TypeError) as error:
            raise ConfigurationError(
                f"the trial of {', '.join(change.settings)} cannot be written to the journal "
                f"({type(error).__name__}: {error}); leave out journal=, or give JSON values."
            ) from error
        self._is_local = change.is_local()
        telemetry.listen(self, _REQUESTS, brief=True)
        if self._shadow is not None:
            self._shadow.begin(self._is_in_canary, self._hear_recall)
        self.callbacks.tell(self._hooks.on_trial, self.trial)

    def _settle(self, state: State, reason: str | None = None) -> None:
        """End the trial; what is to hold is set before anything else is done. The lock is held."""
        self._state, self._reason = state, reason
        if self._shadow is not None:
            self._shadow.end()
        if not self._is_local:
            self._turn(self._change.settings if state == "applied" else self._change.was)
        self._hear_no_more()
        try:
            self._journal.write(state, self._change.settings, self._change.was, reason)
        except OSError as error:
            _log.warning("The journal lacks the end of a trial: %s", error.strerror)
        self._journal.close()
        is_applied = state == "applied"
        told = self._hooks.on_apply if is_applied else self._hooks.on_rollback
        self.callbacks.tell(told, self.trial)

    def _hear_no_more(self) -> None:
        """Stop listening, unless a request must still be told when it ends, or how to begin."""
        if not self._is_local or (self._state != "applied" and not self._judged):
            telemetry.unlisten(self)

    def before_fork(self) -> None:
        """Let no other thread hold the lock while the process is copied."""
        self._lock.acquire()

    def after_fork_in_parent(self) -> None:
        """Go on."""
        self._lock.release()

    def after_fork_in_child(self) -> None:
        """Leave the trial to the parent."""
        self._journal.close()
        if self._state == "trying":
            self._state, self._reason = "stopped", "the process was forked"
            self._turn(self._change.was)
            telemetry.unlisten(self)
        self._lock.release()


class _Guarded:
    """One request; see `Guard.request`."""

    def __init__(self, guard: Guard, who: str | None) -> None:
        self._guard, self._who = guard, who

    def __enter__(self) -> None:
        self._guard.begin(self, self._who)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._guard.end(self, failed=kind is not None and issubclass(kind, Exception))


def _is_of_recall(goal: Goal) -> bool:
    return goal.kind == "at_least" and goal.metric.startswith("recall@")


def _limit(goal: Goal) -> Limit | None:
    """Return what a goal wants of live requests; None for what they cannot tell."""
    if goal.kind != "at_most" or goal.bound is None:
        return None
    if goal.metric == "error_rate":
        return Limit(goal.metric, _FOR_EVER, min(max(goal.bound, _LEAST_ERRORS), 0.99))
    share = _SHARES.get(goal.metric)
    return None if share is None else Limit(goal.metric, goal.bound, share)
