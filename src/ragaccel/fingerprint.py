"""Telling two components apart by their configuration, without their secrets."""

from __future__ import annotations

import re
from typing import Any, Final

from ragaccel.cache import Uncacheable, digest

#: Settings that decide only how, not what, a component answers.
_HOW: Final = frozenset(
    (
        "callback_manager", "callbacks", "embed_batch_size", "embeddings_cache", "max_retries",
        "metadata", "name", "num_workers", "rate_limiter", "request_timeout", "reuse_client",
        "show_progress", "show_progress_bar", "tags", "timeout", "verbose",
    )
)  # fmt: skip
_SECRET: Final = re.compile(
    r"(^|_)(api_?key|key|secret|password|token|credentials?|auth\w*|headers?)$", re.IGNORECASE
)


def fingerprint(component: object) -> tuple[str, bytes]:
    """Return a component's class and a digest of its live configuration.

    Of a pydantic object that is its fields, of another one all its attributes.

    Raises:
        Uncacheable: An attribute has no canonical form, so that two components that differ in it
            could not be told apart.
    """
    try:
        return class_name(type(component)), bytes(digest("", "config", _settings(component)))
    except Uncacheable as error:
        raise Uncacheable("component") from error


def visible(component: object) -> dict[str, bytes]:
    """Return digests of those settings that have a canonical form, by name."""
    found = {}
    for name, value in _settings(component).items():
        try:
            found[name] = bytes(digest("", "setting", value))
        except Uncacheable:
            continue
    return found


def class_name(cls: type) -> str:
    """Return a class's full name."""
    return f"{cls.__module__}.{cls.__qualname__}"


def _settings(component: object) -> dict[str, Any]:
    fields = getattr(type(component), "__pydantic_fields__", None)
    if fields is not None:
        names = [name for name, field in fields.items() if field.exclude is not True]
    else:
        names = list(getattr(component, "__dict__", ()))
    return {
        name: getattr(component, name)
        for name in names
        if name not in _HOW and not _SECRET.search(name)
    }
