"""What a filter means, in plain Python: written after the docstrings of `ragaccel.vectors.filters`.

A missing value and a null fail every comparison except `ne`, `nin` and `is_empty`. Values of
different types are unequal and unordered; booleans are numbers, as in Python.
"""

from __future__ import annotations

import operator

from ragaccel.vectors import And, DocumentId, Field, Ids, Not, Or

_ORDER = {"gt": operator.gt, "ge": operator.ge, "lt": operator.lt, "le": operator.le}


def passes(row, where):
    """Tell whether a row (`id`, `metadata`, `document_id`) passes a filter."""
    match where:
        case And(parts):
            return all(passes(row, part) for part in parts)
        case Or(parts):
            return any(passes(row, part) for part in parts)
        case Not(part):
            return not passes(row, part)
        case Field():
            return _tests(_value(row, where.key), where.operator, where.value)
    return row.id in where.ids if isinstance(where, Ids) else row.document_id in where.document_ids


def _value(row, key):
    if isinstance(key, DocumentId):
        return key.absent if row.document_id is None else row.document_id
    return row.metadata.get(key)


def _tests(value, name, wanted):
    if name in _ORDER:
        return _comparable(value, wanted) and _ORDER[name](value, wanted)
    return {
        "eq": lambda: _equal(value, wanted),
        "ne": lambda: not _equal(value, wanted),
        "in": lambda: any(_equal(value, one) for one in wanted),
        "nin": lambda: not any(_equal(value, one) for one in wanted),
        "contains": lambda: _contains(value, wanted),
        "any": lambda: any(_contains(value, one) for one in wanted),
        "all": lambda: value is not None and all(_contains(value, one) for one in wanted),
        "text_match": lambda: isinstance(value, str) and wanted in value,
        "text_match_insensitive": lambda: (
            isinstance(value, str) and wanted.lower() in value.lower()
        ),
        "is_empty": lambda: value is None or value in ("", []),
        "is_missing": lambda: value is None,
    }[name]()


def _comparable(value, wanted):
    return (isinstance(value, str) and isinstance(wanted, str)) or (
        isinstance(value, (int, float)) and isinstance(wanted, (int, float))
    )


def _equal(value, wanted):
    return _comparable(value, wanted) and value == wanted


def _contains(value, item):
    """Look for an element of a list, a key of a dict or a part of a text."""
    if isinstance(value, list):
        return any(_equal(one, item) for one in value)
    return isinstance(value, (str, dict)) and isinstance(item, str) and item in value
