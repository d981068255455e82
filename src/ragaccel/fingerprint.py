"""Telling two components apart by their configuration, without their secrets."""

from __future__ import annotations

import re
from typing import Any, Final

from ragaccel.cache import Uncacheable, digest

#: Attributes that hold secrets or decide only how, not what, a component answers.
_LEFT_OUT: Final = re.compile(
    r"key|token|secret|password|credential|auth|header|callback|batch_size|num_workers|"
    r"rate_limiter|cache|verbose|timeout|retries|progress",
    re.IGNORECASE,
)


def fingerprint(component: object) -> tuple[str, bytes]:
    """Return a component's class and a digest of its live configuration.

    Of a pydantic object that is its fields, of another one all its attributes.

    Raises:
        Uncacheable: An attribute has no canonical form, so that two components that differ
            in it could not be told apart.
    """
    cls = type(component)
    fields = getattr(cls, "__pydantic_fields__", None)
    if fields is not None:
        names = [name for name, field in fields.items() if field.exclude is not True]
    else:
        names = list(getattr(component, "__dict__", ()))
    config: dict[str, Any] = {
        name: getattr(component, name) for name in names if not _LEFT_OUT.search(name)
    }
    try:
        return f"{cls.__module__}.{cls.__qualname__}", bytes(digest("", "config", config))
    except Uncacheable as error:
        raise Uncacheable("component") from error
