"""What decides a model's answer: its settings, and what it is asked with."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, Final

from langchain_core.messages import BaseMessage
from pydantic import BaseModel

from ragaccel.fingerprint import class_name, fingerprint, visible
from ragaccel.sampling import check_sampling, warn_of_sampling
from ragaccel.transparent import plain_class

if TYPE_CHECKING:
    from ragaccel.seam import Options

__all__ = ["canonical", "check_sampling", "identity", "takes", "warn_of_sampling"]

#: What a message carries besides what it says.
_ASIDE: Final = frozenset(("id", "usage_metadata", "response_metadata"))


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
        fields = {
            name: value if type(value) is str else canonical(value)
            for name, value in part.__dict__.items()
            if name not in _ASIDE
        }
        return class_name(type(part)), fields, canonical(part.__pydantic_extra__)
    if isinstance(part, BaseModel):
        return class_name(type(part)), canonical(part.model_dump())
    if isinstance(part, type) and issubclass(part, BaseModel):
        return class_name(part), part.model_json_schema()
    return part  # a scalar, or something that no key can be made of


@functools.cache
def takes(function: Any, name: str) -> bool:
    """Tell whether a function has a parameter of that name, or takes any."""
    parameters = inspect.signature(function).parameters.values()
    return any(one.name == name or one.kind is one.VAR_KEYWORD for one in parameters)
