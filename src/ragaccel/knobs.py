"""`Knob`: something of a live component that can be turned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ragaccel.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@dataclass(frozen=True)
class Knob:
    """A setting of a live object, with the values worth trying.

    Attributes:
        name: What it is called in reports, such as "top_k".
        values: What it may be turned to, in order where there is one.
        get: Gives what it is at.
        set: Turns it; it takes effect with the next request.
        monotone: Whether a later value never lowers the quality and never costs less time, as with
            more candidates or probes. A search then leaves out what it can tell from neighbours.
        rebuild: Whether turning it takes long, as where codes are made anew. It is turned before
            others, which may be of what is made.
        bytes_at: Gives the bytes of memory that a value takes, without turning to it; None where
            that is not known.

    Example:
        >>> options = {"top_k": 3}
        >>> knob = Knob("top_k", [3, 5, 10], lambda: options["top_k"],
        ...             lambda value: options.update(top_k=value))
        >>> knob.set(5)
        >>> knob.get()
        5
    """

    name: str
    values: Sequence[Any]
    get: Callable[[], Any]
    set: Callable[[Any], object]
    monotone: bool = False
    rebuild: bool = False
    bytes_at: Callable[[Any], int] | None = None

    def __post_init__(self) -> None:
        values = tuple(self.values)
        if not self.name:
            raise ConfigurationError('a knob needs a name, such as "top_k".')
        if not values or isinstance(self.values, str):
            raise ConfigurationError(
                f"the knob {self.name!r} needs values to try, such as [3, 5, 10], "
                f"got {self.values!r}."
            )
        if any(one == other for at, one in enumerate(values) for other in values[:at]):
            raise ConfigurationError(f"the knob {self.name!r} has a value twice: {values!r}.")
        object.__setattr__(self, "values", values)
