"""The study of a search: what was measured of which settings, kept by Optuna."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ragaccel.errors import ConfigurationError, MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray
    from optuna.distributions import BaseDistribution

    from ragaccel.tuning.goals import Goal

#: The place of each knob in its values.
Setting = tuple[int, ...]
#: Values for each request by the name of a series.
Samples = dict[str, "NDArray[np.float64]"]

_NAME: Final = "ragaccel"
_MOST_ASKED: Final = 20
_JOURNAL: Final = (".log", ".jsonl")


@dataclass(frozen=True)
class Space:
    """All settings there are.

    Attributes:
        names: Of the knobs.
        sizes: How many values each has.
        monotone: Whether each is; see `Knob`.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    monotone: tuple[bool, ...]

    def __len__(self) -> int:
        return int(np.prod(self.sizes, dtype=object))

    def __iter__(self) -> Iterator[Setting]:
        yield from map(tuple, np.ndindex(*self.sizes))

    def family(self, setting: Setting) -> Setting:
        """Return what of a setting is not monotone: those of equal ones can be compared."""
        return tuple(-1 if up else at for at, up in zip(setting, self.monotone, strict=True))


class Study:
    """Measurements of settings as trials of Optuna, which can be stored and gone on with.

    Args:
        space: The settings.
        seed: Of the sampler.
        storage: A file, ".log" or ".jsonl" for Optuna's journal, else SQLite; or any storage of
            Optuna; None for memory.
        problem: What the measurements hold for, such as a digest of goals and traffic; trials of
            another one are not taken over.

    Raises:
        MissingExtraError: Optuna is not installed.
    """

    def __init__(
        self, space: Space, *, seed: int = 0, storage: Any = None, problem: str = ""
    ) -> None:
        try:
            import optuna
        except ImportError as error:
            raise MissingExtraError("tune", "optuna") from error
        self._optuna, self._space, self._problem = optuna, space, problem
        self._random = np.random.default_rng(seed)
        was = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            self.optuna = optuna.create_study(
                storage=_storage(optuna, storage),
                study_name=f"{_NAME}-{problem}",
                load_if_exists=True,
                sampler=optuna.samplers.TPESampler(seed=seed),
            )
        except ValueError as error:  # a journal's lines are JSON
            raise ConfigurationError(
                f"the study in {str(storage)!r} cannot be read: {error}; move the file away to "
                "begin anew."
            ) from error
        finally:
            optuna.logging.set_verbosity(was)
        self._distributions: dict[str, BaseDistribution] = {
            name: optuna.distributions.IntDistribution(0, size - 1)
            for name, size in zip(space.names, space.sizes, strict=True)
        }

    def add(
        self,
        setting: Setting,
        queries: Sequence[int],
        samples: Samples,
        objective: float,
        excesses: Mapping[Goal, float],
        *,
        is_dropped: bool,
    ) -> None:
        """Keep what was measured of a setting on some queries, all of them so far.

        Args:
            setting: The setting.
            queries: The places of the newest ones in the traffic.
            samples: What was measured of them.
            objective: What is to be as low as can be, of all queries of the setting so far.
            excesses: By how much each bound is missed.
            is_dropped: Whether it cannot keep a bound, and no more queries are spent on it.
        """
        states = self._optuna.trial.TrialState
        kept = {name: values.tolist() for name, values in samples.items()}
        self.optuna.add_trial(
            self._optuna.create_trial(
                state=states.PRUNED if is_dropped else states.COMPLETE,
                value=None if is_dropped else objective,
                params=dict(zip(self._space.names, setting, strict=True)),
                distributions=self._distributions,
                constraints={str(goal): excess for goal, excess in excesses.items()},
                user_attrs={"queries": list(map(int, queries)), "samples": kept},
                intermediate_values={len(queries): objective},
            )
        )

    def stored(self) -> Iterator[tuple[Setting, list[int], Samples]]:
        """Yield what an earlier run of the same problem has measured."""
        for trial in self.optuna.get_trials(deepcopy=False):
            found = trial.user_attrs
            if "queries" in found and set(trial.params) == set(self._space.names):
                samples = {
                    name: np.array(values, np.float64) for name, values in found["samples"].items()
                }
                setting = tuple(int(trial.params[name]) for name in self._space.names)
                yield setting, found["queries"], samples

    def ask(self, seen: Mapping[Setting, object]) -> Setting | None:
        """Return a setting that is worth trying next, one that is not seen yet; None if all are.

        What Optuna proposes again is replaced by an unseen one that differs in one knob.
        """
        if len(seen) >= len(self._space):
            return None
        trial = self.optuna.ask(self._distributions)
        setting = tuple(int(trial.params[name]) for name in self._space.names)
        self.optuna.tell(trial, state=self._optuna.trial.TrialState.FAIL)
        return setting if setting not in seen else self._near(setting, seen)

    def importances(self) -> dict[str, float]:
        """Return by how much of its spread each knob moves what is to be best, most first."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found: dict[str, float] = self._optuna.importance.get_param_importances(self.optuna)
        except (ValueError, RuntimeError, ZeroDivisionError):  # too few trials, or no spread
            return {}
        return found

    def _near(self, setting: Setting, seen: Mapping[Setting, object]) -> Setting:
        for _ in range(_MOST_ASKED):
            at = int(self._random.integers(len(setting)))
            value = int(self._random.integers(self._space.sizes[at]))
            near = (*setting[:at], value, *setting[at + 1 :])
            if near not in seen:
                return near
        while setting in seen:
            setting = tuple(int(self._random.integers(size)) for size in self._space.sizes)
        return setting


def _storage(optuna: Any, storage: Any) -> Any:
    if not isinstance(storage, str) and not hasattr(storage, "__fspath__"):
        return storage
    name = str(storage)
    if name.endswith(_JOURNAL):
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        return JournalStorage(JournalFileBackend(name))
    try:
        return optuna.storages.get_storage(name if "://" in name else f"sqlite:///{name}")
    except Exception as error:
        raise ConfigurationError(f"the study cannot be stored in {name!r}: {error}.") from error
