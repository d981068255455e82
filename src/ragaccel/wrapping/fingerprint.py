"""Telling two components apart by their configuration, without their secrets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum
from functools import lru_cache, partial
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any, Final

from ragaccel.cache import Uncacheable, digest

if TYPE_CHECKING:
    from ragaccel.wrapping.seam import Options

#: Settings that decide only how, not what, a component answers.
_HOW: Final = frozenset(
    (
        "callback_manager", "callbacks", "embed_batch_size", "embeddings_cache", "max_retries",
        "num_workers", "ragaccel_state_", "rate_limiter", "request_timeout", "reuse_client",
        "show_progress", "show_progress_bar", "timeout", "verbose",
    )
)  # fmt: skip
#: Settings by which LangChain's tracing calls a runnable; of any other object they may decide.
_LABELS: Final = frozenset(("metadata", "name", "tags"))
_LABELLED: Final = "langchain_core.runnables.base.Runnable"
#: Fields that LlamaIndex leaves out of dumps, though they decide what a model is asked.
_UNDUMPED: Final = frozenset(
    ("completion_to_prompt", "messages_to_prompt", "output_parser", "query_wrapper_prompt")
)
#: Plain objects within components that are what their attributes say, by a base of theirs.
_PLAIN: Final = frozenset(("llama_index.core.types.BaseOutputParser",))
#: What a private attribute decides with; others are clients, weights, counters and logs.
_DECIDING: Final = (str, bool, Enum, type, FunctionType, MethodType, partial)
_SCALARS: Final = frozenset((str, int, float, bool, type(None)))
#: A key that opens nothing, such as a `date_key`, names what is looked at, and decides.
_SECRET: Final = re.compile(
    r"^key$|(^|_)((access|account|admin|api|client|encryption|function|license|master|private"
    r"|secret|service|shared|signing|subscription)_?key|secret|password|token|credentials?|auth\w*"
    r"|cookies?)$",
    re.IGNORECASE,
)


def fingerprint(component: object) -> tuple[str, bytes]:
    """Return a component's class and a digest of its live configuration.

    Of a pydantic object that is its fields, and those private attributes that hold text, a switch,
    a function, a class or a component; of another one all its attributes.

    Raises:
        Uncacheable: An attribute has no canonical form, so that two components that differ in it
            could not be told apart.
    """
    try:
        return class_name(type(component)), bytes(digest("", "config", _settings(component)))
    except (Uncacheable, RecursionError) as error:
        raise Uncacheable("component") from error


def identity(component: object, options: Options) -> Any:
    """Tell a component apart from others: by its live settings, or by the user's name for it.

    Raises:
        Uncacheable: It has settings that have no canonical form, and no name.
    """
    if options.identity is None:
        return fingerprint(component)
    return class_name(type(component)), options.identity, visible(component)


def visible(component: object) -> dict[str, bytes]:
    """Return digests of those settings that have a canonical form, by name."""
    found = {}
    for name, value in _raw_settings(component).items():
        try:
            found[name] = bytes(digest("", "setting", _canonical(value)))
        except (Uncacheable, RecursionError):
            continue
    return found


def class_name(cls: type) -> str:
    """Return a class's full name."""
    return f"{cls.__module__}.{cls.__qualname__}"


def _settings(component: object) -> dict[str, Any]:
    return {
        name: value if type(value) in _SCALARS else _canonical(value)
        for name, value in (_raw_settings(component) | _private_settings(component)).items()
    }


def _raw_settings(component: object) -> dict[str, Any]:
    cls: Any = type(component)
    names = _fields(cls)
    if names is None:
        names = _told(cls, tuple(getattr(component, "__dict__", ())))
    return {name: _without_secrets(name, getattr(component, name)) for name in names}


def _without_secrets(name: str, value: Any) -> Any:
    """Leave secrets out of headers; by the others, gateways choose models and versions."""
    if not isinstance(value, Mapping) or not name.endswith("headers"):
        return value
    told = {one: value[one] for one in value if not _SECRET.search(str(one).replace("-", "_"))}
    return told or None


def _private_settings(component: object) -> dict[str, Any]:
    cls: Any = type(component)
    if not hasattr(cls, "__pydantic_fields__"):
        return {}
    attributes = getattr(component, "__dict__", {})
    private = {name: value for name, value in attributes.items() if name.startswith("_")}
    private |= getattr(component, "__pydantic_private__", None) or {}
    return {
        name: private[name]
        for name in _told(cls, tuple(private))
        if isinstance(private[name], _DECIDING) or hasattr(private[name], "__pydantic_fields__")
    }


@lru_cache(maxsize=1024)
def _fields(cls: type) -> tuple[str, ...] | None:
    """Return the names of a pydantic class's settings, or None for another class."""
    fields = getattr(cls, "__pydantic_fields__", None)
    if fields is None:
        return None
    dumped = (
        name for name, field in fields.items() if field.exclude is not True or name in _UNDUMPED
    )
    return _told(cls, tuple(dumped))


@lru_cache(maxsize=1024)
def _told(cls: type, names: tuple[str, ...]) -> tuple[str, ...]:
    """Return those names of a class's settings that decide what is answered, and are no secrets."""
    aside = _HOW | _LABELS if _LABELLED in map(class_name, cls.__mro__) else _HOW
    return tuple(name for name in names if name not in aside and not _SECRET.search(name))


def _canonical(value: Any) -> Any:
    """Return a setting as parts of a key: of a component within, its own class and settings."""
    if isinstance(value, dict):
        return {key: _canonical(one) for key, one in value.items()}
    if isinstance(value, (set, frozenset)):
        value = ("\0set", *sorted(value, key=repr))
    if isinstance(value, (list, tuple)):
        return [_canonical(one) for one in value]
    if isinstance(value, Enum):
        return class_name(type(value)), value.value
    cls: Any = type(value)
    if _has_settings(cls):
        return class_name(cls), _settings(value)
    if isinstance(value, (FunctionType, type)):
        return function_name(value), _schema(value)
    return value


@lru_cache(maxsize=1024)
def _has_settings(cls: type) -> bool:
    return hasattr(cls, "__pydantic_fields__") or not _PLAIN.isdisjoint(
        map(class_name, cls.__mro__)
    )


@lru_cache(maxsize=256)
def _schema(value: Any) -> Any:
    """Return the schema that a pydantic class has, by which a model is told what to answer."""
    schema = getattr(value, "model_json_schema", None)
    try:
        return schema and schema()
    except Exception as error:
        raise Uncacheable("component") from error


def function_name(function: Any) -> str:
    """Return the full name of a function or a class, which tells it apart from others.

    Raises:
        Uncacheable: It has none: it is a lambda, made within another function, or a bound method.
    """
    name = getattr(function, "__qualname__", "<")
    if "<" in name or getattr(function, "__self__", None) is not None:
        raise Uncacheable("component")
    return f"{function.__module__}.{name}"
