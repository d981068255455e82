"""A digest of a transformation, by which a changed one is noticed: its settings and its code."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Mapping
from enum import Enum
from functools import partial
from pathlib import PurePath
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType
from typing import Any, Final

from ragaccel.cache import Uncacheable
from ragaccel.wrapping.fingerprint import class_name, fingerprint

_DEPTH: Final = 8
_MANY: Final = 1000  # of larger containers, such as vocabularies, only the size is taken in
_SCALARS: Final = frozenset((str, bytes, int, float, bool, type(None)))
#: Settings that decide only how, not what, a transformation gives.
_HOW: Final = frozenset(("callback_manager", "callbacks", "num_workers", "show_progress"))


def digest_of(transformation: object) -> bytes:
    """Return a digest that another code or other settings change.

    Taken in are attributes, closures and the code of functions, but not the functions that these
    call, and of objects in C only their class.
    """
    plain = [describe(transformation), _code_of_class(type(transformation), _DEPTH)]
    return hashlib.blake2b(repr(plain).encode(errors="surrogatepass"), digest_size=20).digest()


def describe(value: Any, depth: int = _DEPTH) -> Any:
    """Return a value as lists of scalars that are the same in every process."""
    if type(value) in _SCALARS:
        return value
    if depth == 0:
        return class_name(type(value))
    for kinds, describer in _DESCRIBERS:
        if isinstance(value, kinds):
            return describer(value, depth - 1)
    return _object(value, depth - 1)


def _list(values: Any, depth: int) -> Any:
    return [describe(one, depth) for one in values] if len(values) < _MANY else len(values)


def _set(values: Any, depth: int) -> Any:
    return sorted(_list(values, depth), key=repr) if len(values) < _MANY else len(values)


def _mapping(values: Any, depth: int) -> Any:
    return _set(values.items(), depth)


def _function(function: Any, depth: int) -> Any:
    cells = [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]
    parts = (function.__code__, function.__defaults__, function.__kwdefaults__, cells)
    return [function.__module__, function.__qualname__, describe(parts, depth)]


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018 - an empty one raises
    except ValueError:
        return False
    return True


def _code(code: CodeType, depth: int) -> Any:
    return [code.co_code, list(code.co_names), describe(code.co_consts, depth)]


def _object(value: object, depth: int) -> Any:
    """Describe by what tells components apart, or else by all attributes."""
    if hasattr(value, "__pydantic_fields__"):
        with contextlib.suppress(Uncacheable):
            return list(fingerprint(value))
    attributes = {
        **getattr(value, "__dict__", {}),
        **(getattr(value, "__pydantic_private__", None) or {}),
    }
    told = {name: one for name, one in attributes.items() if name not in _HOW}
    return [class_name(type(value)), describe(told, depth)]


def _code_of_class(cls: type, depth: int) -> Any:
    functions = {name: one for name, one in vars(cls).items() if isinstance(one, FunctionType)}
    return describe({name: one.__code__ for name, one in functions.items()}, depth)


_DESCRIBERS: Final[Any] = (
    ((list, tuple), _list),
    ((set, frozenset), _set),
    (Mapping, _mapping),
    (CodeType, _code),
    (FunctionType, _function),
    (MethodType, lambda one, depth: describe((one.__self__, one.__func__), depth)),
    (partial, lambda one, depth: describe((one.func, one.args, one.keywords), depth)),
    (BuiltinFunctionType, lambda one, _: one.__qualname__),
    (type, lambda one, _: class_name(one)),
    (Enum, lambda one, _: [class_name(type(one)), one.name]),
    (re.Pattern, lambda one, _: [one.pattern, one.flags]),
    (PurePath, lambda one, _: str(one)),
)
