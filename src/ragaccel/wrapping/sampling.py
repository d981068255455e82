"""Models that sample: the same question has many answers, and one of them is not the answer."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Final

from ragaccel.cache import Uncacheable
from ragaccel.errors import RagaccelWarning

if TYPE_CHECKING:
    from ragaccel.wrapping.seam import Options

_MISSING: Final = object()


def check_sampling(model: Any, options: Options, kwargs: dict[str, Any]) -> None:
    """Refuse to keep a sample, unless the user wants the same one again.

    Raises:
        Uncacheable: The model samples.
    """
    if not options.cache_sampled and _samples(kwargs.get("temperature", _MISSING), model):
        raise Uncacheable("sampled")


def warn_of_sampling(model: Any, options: Options) -> None:
    """Say that answers will not be kept, where that is so."""
    if options.cache is not None and not options.cache_sampled and _samples(_MISSING, model):
        warnings.warn(
            f"{type(model).__name__} samples (temperature={model.temperature}), so its answers are "
            "not kept; set temperature=0, or pass cache_sampled=True to get the same sample again.",
            RagaccelWarning,
            stacklevel=4,
        )


def _samples(asked: Any, model: Any) -> bool:
    """Tell whether a temperature above 0 is set, or none, so that the provider's own holds."""
    temperature = getattr(model, "temperature", _MISSING) if asked is _MISSING else asked
    return temperature is not _MISSING and temperature != 0
