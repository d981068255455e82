"""What decides a model's answer: its settings, and what it is asked with."""

from __future__ import annotations

import functools
import inspect
import warnings
from typing import TYPE_CHECKING, Any, Final

from langchain_core.messages import BaseMessage
from pydantic import BaseModel

from ragaccel.cache import Uncacheable
from ragaccel.errors import RagaccelWarning
from ragaccel.fingerprint import class_name, fingerprint, visible
from ragaccel.transparent import plain_class

if TYPE_CHECKING:
    from ragaccel.seam import Options

#: What a message carries besides what it says.
_ASIDE: Final = frozenset(("id", "usage_metadata", "response_metadata"))
_MISSING: Final = object()


def identity(component: Any, options: Options) -> Any:
    """Tell a component apart from others: by its live settings, or by the user's name for it.

    Raises:
        Uncacheable: It has settings that have no canonical form, and no name.
    """
    name = class_name(plain_class(type(component)))
    if options.identity is None:
        return name, fingerprint(component)[1]
    return name, options.identity, visible(component)


def canonical(part: Any) -> Any:
    """Return messages and arguments of a call as parts of a key."""
    if isinstance(part, dict):
        return {key: canonical(value) for key, value in part.items()}
    if isinstance(part, (list, tuple)):
        return [canonical(one) for one in part]
    if isinstance(part, BaseMessage):
        fields = {name: value for name, value in part.__dict__.items() if name not in _ASIDE}
        return class_name(type(part)), canonical(fields), canonical(part.__pydantic_extra__)
    if isinstance(part, BaseModel):
        return class_name(type(part)), canonical(part.model_dump())
    if isinstance(part, type) and issubclass(part, BaseModel):
        return class_name(part), part.model_json_schema()
    return part  # a scalar, or something that no key can be made of


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


@functools.cache
def takes(function: Any, name: str) -> bool:
    """Tell whether a function has a parameter of that name, or takes any."""
    parameters = inspect.signature(function).parameters.values()
    return any(one.name == name or one.kind is one.VAR_KEYWORD for one in parameters)
