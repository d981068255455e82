"""What reuse costs beside the searches that it saves, measured as they go."""

from __future__ import annotations

from collections import deque
from statistics import median
from typing import Final

_SAMPLES: Final = 32
_FIRST: Final = 8
_ONE_IN: Final = 16
_ASIDE: Final = 1000


class Pace:
    """Medians of the newest times, and whether reuse stands aside because a search is cheaper.

    Searches that keep a list look for more rows than were asked for, so some are made as they were
    asked, for their time. Who stands aside tries again after 1,000 searches.

    Args:
        min_gain: The share of a search's time that reuse has to save; None for any, or none.
    """

    def __init__(self, min_gain: float | None) -> None:
        self._min_gain = min_gain
        self._tries: deque[float] = deque(maxlen=_SAMPLES)
        self._plain: deque[float] = deque(maxlen=_SAMPLES)
        self._long: deque[float] = deque(maxlen=_SAMPLES)
        self._aside = self._missed = 0
        self.saved = 0.0

    def stands_aside(self) -> bool:
        """Tell of the next search whether it is to be made without a look at others."""
        if not self._aside:
            return False
        self._aside -= 1
        return True

    def is_sample(self) -> bool:
        """Tell of the next search that is made whether it is to be one as it was asked."""
        self._missed += 1
        return self._missed % (2 if len(self._plain) < _FIRST else _ONE_IN) == 0

    def tried(self, seconds: float, *, served: bool) -> None:
        """Hear how long an answer took to be found among neighbours' rows, served or not."""
        self._tries.append(seconds)
        search = median(self._plain) if self._plain else 0.0
        self.saved += (search if served else 0.0) - seconds
        if self._min_gain is None or len(self._tries) < _SAMPLES or len(self._plain) < _FIRST:
            return
        if median(self._tries) >= (1 - self._min_gain) * search:
            self._aside = _ASIDE
            self._tries.clear()

    def searched(self, seconds: float, *, plain: bool) -> None:
        """Hear how long a search took, as it was asked or for a whole list."""
        (self._plain if plain else self._long).append(seconds)
        if not plain and self._plain:
            self.saved -= max(0.0, median(self._long) - median(self._plain))
