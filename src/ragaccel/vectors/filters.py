"""Filters: one expression tree for both frameworks, compiled to parametrised SQL.

A missing value and a null fail every comparison except `ne`, `nin` and `is_empty`. Values of
different types are unequal and unordered: a text is never greater than a number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

import msgspec

from ragaccel.errors import FilterError

Scalar = str | int | float | bool
Operator = Literal[
    "eq", "ne", "gt", "ge", "lt", "le",
    "in", "nin", "any", "all", "contains",
    "text_match", "text_match_insensitive", "is_empty", "is_missing",
]  # fmt: skip

_ORDER: Final = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
_NUMBERS: Final = "('integer', 'real', 'true', 'false')"
Sql = tuple[str, list[Any]]


@dataclass(frozen=True)
class DocumentId:
    """Stands for a metadata key: the document that a row is a part of.

    Attributes:
        absent: What rows of no document are compared as.
    """

    absent: str


@dataclass(frozen=True)
class Field:
    """A test of one metadata field; `value` is a list for in, nin, any and all."""

    key: str | DocumentId
    operator: Operator
    value: Any = None

    def sql(self) -> Sql:
        """Return the condition and its parameters."""
        return _COMPILERS[self.operator](self)


@dataclass(frozen=True)
class Ids:
    """Rows with one of the ids."""

    ids: tuple[str, ...]

    def sql(self) -> Sql:
        """Return the condition and its parameters."""
        return "id IN (SELECT value FROM json_each(?))", [_json(list(self.ids))]


@dataclass(frozen=True)
class Documents:
    """Rows that are part of one of the documents; None stands for rows of no document."""

    document_ids: tuple[str | None, ...]

    def sql(self) -> Sql:
        """Return the condition and its parameters."""
        listed = [one for one in self.document_ids if one is not None]
        sql = "document_id IN (SELECT value FROM json_each(?))"
        if len(listed) < len(self.document_ids):
            sql = f"(document_id IS NULL OR {sql})"
        return sql, [_json(listed)]


@dataclass(frozen=True)
class And:
    """Rows that pass every part; of no parts, all rows."""

    parts: tuple[Filter, ...]

    def sql(self) -> Sql:
        """Return the condition and its parameters."""
        return _join(self.parts, " AND ", "1")


@dataclass(frozen=True)
class Or:
    """Rows that pass any part; of no parts, none."""

    parts: tuple[Filter, ...]

    def sql(self) -> Sql:
        """Return the condition and its parameters."""
        return _join(self.parts, " OR ", "0")


@dataclass(frozen=True)
class Not:
    """Rows that do not pass the part."""

    part: Filter

    def sql(self) -> Sql:
        """Return the condition and its parameters."""
        sql, parameters = self.part.sql()
        return f"NOT coalesce({sql}, 0)", parameters


Filter = Field | Ids | Documents | And | Or | Not


def _join(parts: tuple[Filter, ...], word: str, empty: str) -> Sql:
    if not parts:
        return empty, []
    compiled = [part.sql() for part in parts]
    sql = word.join(f"coalesce({sql}, 0)" for sql, _ in compiled)
    return f"({sql})", [parameter for _, parameters in compiled for parameter in parameters]


def _reference(key: str | DocumentId) -> tuple[str, str, str]:
    """Return SQL for a field's value and its JSON type, and the one parameter both take.

    A JSON path can name any key that needs no escaping inside JSON; `json_each` names the rest.
    """
    if isinstance(key, DocumentId):
        return "coalesce(document_id, ?)", "iif(? IS NULL, 'null', 'text')", key.absent
    if key and not any(char < " " or char in '"\\' for char in key):
        return "json_extract(metadata, ?)", "json_type(metadata, ?)", f'$."{key}"'
    rest = "FROM json_each(metadata) WHERE key = ?)"
    return f"(SELECT value {rest}", f"(SELECT type {rest}", key


def _types_of(value: Any, operator: str) -> str:
    if isinstance(value, str):
        return "('text')"
    if isinstance(value, (bool, int, float)):
        return _NUMBERS
    raise FilterError(
        f"the filter operator {operator!r} needs a string or a number, got {value!r}."
    )


def _compare(field: Field) -> Sql:
    value, type_, key = _reference(field.key)
    sign = _ORDER.get(field.operator, "=")
    if isinstance(field.value, (list, tuple)) and sign == "=":
        return f"({type_} = 'array' AND {value} = json(?))", [key, key, _json(field.value)]
    types = _types_of(field.value, field.operator)
    return f"({type_} IN {types} AND {value} {sign} ?)", [key, key, field.value]


def _not_equal(field: Field) -> Sql:
    sql, parameters = _compare(field)
    return f"NOT coalesce({sql}, 0)", parameters


def _one_of(field: Field) -> Sql:
    value, type_, key = _reference(field.key)
    listed = _json(_listed(field))
    among = f"{value} IN (SELECT value FROM json_each(?))"
    return f"({type_} NOT IN ('array', 'object', 'null') AND {among})", [key, key, listed]


def _none_of(field: Field) -> Sql:
    sql, parameters = _one_of(field)
    return f"NOT coalesce({sql}, 0)", parameters


def _contains(field: Field) -> Sql:
    return _holds(field.key, field.value, field.operator)


def _holds(key: str | DocumentId, item: Any, operator: str) -> Sql:
    """Test for an element of a list, a key of a dict or a part of a text."""
    value, type_, name = _reference(key)
    types = _types_of(item, operator)
    sql = (
        f"CASE {type_} WHEN 'array' THEN EXISTS (SELECT 1 FROM json_each({value}) AS item "
        f"WHERE item.type IN {types} AND item.value = ?)"
    )
    parameters = [name, name, item]
    if isinstance(item, str):
        sql += (
            f" WHEN 'text' THEN instr({value}, ?) > 0"
            f" WHEN 'object' THEN EXISTS (SELECT 1 FROM json_each({value}) AS item "
            "WHERE item.key = ?)"
        )
        parameters += [name, item, name, item]
    return f"{sql} ELSE 0 END", parameters


def _any(field: Field) -> Sql:
    return Or(tuple(Field(field.key, "contains", item) for item in _listed(field))).sql()


def _all(field: Field) -> Sql:
    present = Not(Field(field.key, "is_missing"))
    parts = tuple(Field(field.key, "contains", item) for item in _listed(field))
    return And((present, *parts)).sql()


def _text_match(field: Field) -> Sql:
    text = _text(field)
    value, type_, key = _reference(field.key)
    return f"({type_} = 'text' AND instr({value}, ?) > 0)", [key, key, text]


def _text_match_insensitive(field: Field) -> Sql:
    text = _text(field)
    value, type_, key = _reference(field.key)
    sql = f"({type_} = 'text' AND instr(unicode_lower({value}), ?) > 0)"
    return sql, [key, key, text.lower()]


def _is_empty(field: Field) -> Sql:
    value, type_, key = _reference(field.key)
    sql = f"(coalesce({type_}, 'null') = 'null' OR {value} IN ('', '[]') AND {type_} != 'object')"
    return sql, [key, key, key]


def _is_missing(field: Field) -> Sql:
    _, type_, key = _reference(field.key)
    return f"coalesce({type_}, 'null') = 'null'", [key]


def _listed(field: Field) -> list[Any]:
    if not isinstance(field.value, (list, tuple)):
        raise FilterError(
            f"the filter operator {field.operator!r} needs a list of values, got {field.value!r}; "
            "write [value]."
        )
    return list(field.value)


def _text(field: Field) -> str:
    if not isinstance(field.value, str):
        raise FilterError(
            f"the filter operator {field.operator!r} needs a string, got {field.value!r}."
        )
    return field.value


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


_COMPILERS: Final = {
    "eq": _compare, "gt": _compare, "ge": _compare, "lt": _compare, "le": _compare,
    "ne": _not_equal, "in": _one_of, "nin": _none_of, "any": _any, "all": _all,
    "contains": _contains, "text_match": _text_match,
    "text_match_insensitive": _text_match_insensitive, "is_empty": _is_empty,
    "is_missing": _is_missing,
}  # fmt: skip
