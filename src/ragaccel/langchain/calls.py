"""What a component is asked with, as parts of a key."""

from __future__ import annotations

import functools
import inspect
from typing import Any, Final

from langchain_core.messages import BaseMessage
from pydantic import BaseModel

from ragaccel.cache import Uncacheable
from ragaccel.wrapping.fingerprint import class_name

#: What a message carries besides what it says to a model.
_ASIDE: Final = frozenset(("artifact", "id", "response_metadata", "usage_metadata"))


def canonical(part: Any) -> Any:
    """Return messages and arguments of a call as parts of a key.

    Raises:
        Uncacheable: It is too deep, an object or a class that pydantic has no words for, or a
            message of a class that LangChain does not know.
    """
    try:
        return _canonical(part)
    except (RuntimeError, ValueError) as error:
        raise Uncacheable("key") from error


def _canonical(part: Any) -> Any:
    if isinstance(part, dict):
        return {key: _canonical(value) for key, value in part.items()}
    if isinstance(part, (list, tuple)):
        return [_canonical(one) for one in part]
    if isinstance(part, BaseMessage):
        name = class_name(type(part))
        if not name.startswith("langchain_core."):
            raise Uncacheable("key")
        fields = {
            name: value if type(value) is str else _canonical(value)
            for name, value in part.__dict__.items()
            if name not in _ASIDE
        }
        return name, fields, _canonical(part.__pydantic_extra__)
    if isinstance(part, BaseModel):
        return class_name(type(part)), _canonical(part.model_dump())
    if isinstance(part, type) and issubclass(part, BaseModel):
        return class_name(part), part.model_json_schema()
    return part  # a scalar, or something that no key can be made of


@functools.cache
def takes(function: Any, name: str) -> bool:
    """Tell whether a function has a parameter of that name, as LangChain asks."""
    return name in inspect.signature(function).parameters


def check_one_answer(model: Any, kwargs: dict[str, Any]) -> None:
    """Refuse to keep a stream of a model that is asked for several answers: it gives one of them.

    Raises:
        Uncacheable: It is asked for several.
    """
    if kwargs.get("n", getattr(model, "n", None)) not in (None, 1):
        raise Uncacheable("key")
