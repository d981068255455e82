"""What a LlamaIndex language model is asked with, as parts of a key."""

from __future__ import annotations

from typing import Any

from llama_index.core.base.llms.types import ChatMessage
from pydantic import BaseModel
from pydantic.networks import AnyUrl

from ragaccel.wrapping.fingerprint import class_name


def canonical(part: Any) -> Any:
    """Return messages and arguments of a call as parts of a key."""
    if isinstance(part, dict):
        return {key: canonical(value) for key, value in part.items()}
    if isinstance(part, (list, tuple)):
        return [canonical(one) for one in part]
    if isinstance(part, ChatMessage):
        return part.role.value, canonical(part.blocks), canonical(part.additional_kwargs)
    if isinstance(part, BaseModel):
        return class_name(type(part)), canonical(part.model_dump())
    if isinstance(part, type) and issubclass(part, BaseModel):
        return class_name(part), part.model_json_schema()
    # A scalar, or something that no key can be made of, such as a file's path.
    return str(part) if isinstance(part, AnyUrl) else part
