"""LangChain's dictionary filters as our expression tree.

`{"topic": "a", "year": {"$gte": 2020}, "$or": [{...}, {...}]}`: fields of one dictionary must all
pass; a list stands for `$in`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from ragaccel.errors import FilterError
from ragaccel.vectors import And, Field, Filter, Not, Or

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ragaccel.vectors.filters import Operator

_OPERATORS: Final[dict[str, Operator]] = {
    "$eq": "eq",
    "$ne": "ne",
    "$gt": "gt",
    "$gte": "ge",
    "$lt": "lt",
    "$lte": "le",
    "$in": "in",
    "$nin": "nin",
    "$contains": "contains",
    "$any": "any",
    "$all": "all",
    "$like": "text_match",
    "$ilike": "text_match_insensitive",
}


def to_filter(where: Mapping[str, Any]) -> Filter:
    """Return the expression tree of a dictionary filter.

    Raises:
        FilterError: An operator or a value cannot be understood.
    """
    parts: list[Filter] = []
    for key, value in where.items():
        if key in ("$and", "$or"):
            group = tuple(to_filter(one) for one in _dicts(key, value))
            parts.append(And(group) if key == "$and" else Or(group))
        elif key == "$not":
            parts.append(Not(And(tuple(to_filter(one) for one in _dicts(key, value)))))
        elif not isinstance(key, str):
            raise FilterError(f"a filter names a field by a string, got {key!r}.")
        elif key.startswith("$"):
            raise FilterError(
                f"the filter operator {key!r} is unknown; use $and, $or, $not or a field's name."
            )
        else:
            parts.extend(_field(key, value))
    return parts[0] if len(parts) == 1 else And(tuple(parts))


def _field(key: str, value: Any) -> list[Filter]:
    if isinstance(value, dict):
        if not value:
            raise FilterError(f"the filter on {key!r} names no operator; write a value or $eq.")
        return [_condition(key, operator, operand) for operator, operand in value.items()]
    if isinstance(value, (list, tuple)):
        return [Field(key, "in", list(value))]
    if value is None:
        return [Field(key, "is_missing")]
    return [Field(key, "eq", value)]


def _condition(key: str, operator: str, operand: Any) -> Filter:
    if operator == "$not" and isinstance(operand, dict):
        return Not(And(tuple(_field(key, operand))))
    if operator == "$exists":
        missing = Field(key, "is_missing")
        return Not(missing) if operand else missing
    name = _OPERATORS.get(operator)
    if name is None:
        raise FilterError(
            f"the filter operator {operator!r} on {key!r} is unknown; use one of "
            f"{', '.join(_OPERATORS)}, $exists, $not."
        )
    if operand is None and name in ("eq", "ne"):
        missing = Field(key, "is_missing")
        return missing if name == "eq" else Not(missing)
    return Field(key, name, operand)


def _dicts(key: str, value: Any) -> list[Mapping[str, Any]]:
    found = [value] if isinstance(value, dict) and key == "$not" else value
    if not isinstance(found, (list, tuple)) or not all(isinstance(one, dict) for one in found):
        raise FilterError(f"{key} takes a list of filters, got {value!r}.")
    return list(found)
