"""A change of settings: knobs that are turned together, to new values and back."""

from __future__ import annotations

import contextvars
import logging
from typing import TYPE_CHECKING, Any

import msgspec

from ragaccel.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ragaccel.knobs import Knob
    from ragaccel.tuning.journal import Entry, Journal

_log = logging.getLogger("ragaccel.tuning")


class Change:
    """Knobs and their new values.

    Attributes:
        settings: The new values, by the names of the knobs.
        was: The values before.

    Args:
        changes: Pairs of a knob and its new value.

    Raises:
        ConfigurationError: There is none, or two of the same name.
    """

    def __init__(self, changes: Iterable[tuple[Knob, Any]]) -> None:
        found = list(changes)
        self.settings = {knob.name: value for knob, value in found}
        if not found or len(self.settings) < len(found):
            raise ConfigurationError(
                "changes must be one or more pairs of a Knob and a value, each knob once, got "
                f"{[knob.name for knob, _ in found]}."
            )
        self._knobs = [knob for knob, _ in found]
        self.was = self.now()

    @property
    def is_none(self) -> bool:
        """Whether all is set already."""
        return self.was == self.settings

    def now(self) -> dict[str, Any]:
        """Return what the knobs are at, in this context."""
        return {knob.name: knob.get() for knob in self._knobs}

    def turn(self, values: Mapping[str, Any]) -> bool:
        """Turn all knobs to values by their names, and tell whether that went well.

        A knob that raises is logged and left; the others are turned.
        """
        is_well = True
        for knob in self._knobs:
            try:
                knob.set(values[knob.name])
            except Exception as error:  # noqa: BLE001 - it is the user's, and no request hears of it
                _log.warning("%s could not be set: %s", knob.name, type(error).__name__)
                is_well = False
        return is_well

    def is_local(self) -> bool:
        """Tell whether what one context sets is not seen in another, by setting it for a moment."""
        before = self.now()
        contextvars.copy_context().run(self.turn, self.settings)
        is_unseen = self.now() == before
        if not is_unseen:
            self.turn(before)
        return is_unseen and before != self.settings

    def recover(self, journal: Journal) -> Entry | None:
        """Turn the knobs to what a journal says they were, before a trial or by one.

        Returns:
            The end of a trial of this very change, or its unfinished beginning, if that is the last
            that was heard of the knobs; None if it may be tried.
        """
        for knob in self._knobs:
            settled = journal.settled(knob.name)
            if settled is not None:
                knob.set(_of_knob(knob, settled))
        self.was = self.now()
        entries = [journal.last(knob.name) for knob in self._knobs]
        last = entries[0]
        if last is None or last.state == "stopped" or any(one is not last for one in entries):
            return None
        if msgspec.to_builtins(self.settings) != last.settings:
            return None
        self.was = {knob.name: _of_knob(knob, last.was[knob.name]) for knob in self._knobs}
        return last


def _of_knob(knob: Knob, written: Any) -> Any:
    """Return the value of a knob that a file holds as a JSON value."""
    return next((one for one in knob.values if msgspec.to_builtins(one) == written), written)
