"""Filters: one expression tree for both frameworks, compiled to parametrised SQL.

A missing value and a null fail every comparison except `ne`, `nin` and `is_empty`. Values of
different types are unequal and unordered: a text is never greater than a number.
"""

from __future__ import annotations

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
SCALAR: Final = "NOT IN ('array', 'object', 'null')"
_INT64: Final = 2**63
Sql = tuple[str, list[Any]]


class _Form(msgspec.Struct, array_like=True, frozen=True):
    """What can be written down with an answer, and asked of other rows later."""


class DocumentId(_Form, frozen=True, tag="document"):
    """Stands for a metadata key: the document that a row is a part of.

    Attributes:
        absent: What rows of no document are compared as.
    """

    absent: str


class PayloadHead(_Form, frozen=True, tag="payload"):
    """Stands for a metadata key: the first line of a row's payload.

    Attributes:
        absent: What rows without a payload are compared as.
    """

    absent: str


Key = str | DocumentId | PayloadHead


class Field(_Form, frozen=True, tag="field"):
    """A test of one metadata field; `value` is a list for in, nin, any and all."""

    key: Key
    operator: Operator
    value: Any = None

    def sql(self) -> Sql:
        """Return the condition and its parameters."""
        if self.operator not in _COMPILERS:
            raise FilterError(
                f"the filter operator {self.operator!r} is unknown; use one of "
                f"{', '.join(_COMPILERS)}."
            )
        return _COMPILERS[self.operator](self)


class Ids(_Form, frozen=True, tag="ids"):
    """Rows with one of the ids."""

    ids: tuple[str, ...]

    def sql(self) -> Sql:
        """Return the condition and its parameters."""
        listed = [_check_text(one) for one in self.ids]
        return "id IN (SELECT value FROM json_each(?))", [as_json(listed)]


class Documents(_Form, frozen=True, tag="documents"):
    """Rows that are part of one of the documents; None stands for rows of no document."""

    document_ids: tuple[str | None, ...]

    def sql(self) -> Sql:
        """Return the condition and its parameters."""
        listed = [_check_text(one) for one in self.document_ids if one is not None]
        sql = "document_id IN (SELECT value FROM json_each(?))"
        if len(listed) < len(self.document_ids):
            sql = f"(document_id IS NULL OR {sql})"
        return sql, [as_json(listed)]


class And(_Form, frozen=True, tag="and"):
    """Rows that pass every part; of no parts, all rows."""

    parts: tuple[Filter, ...]

    def sql(self) -> Sql:
        """Return the condition and its parameters."""
        return _join(self.parts, " AND ", "1")


class Or(_Form, frozen=True, tag="or"):
    """Rows that pass any part; of no parts, none."""

    parts: tuple[Filter, ...]

    def sql(self) -> Sql:
        """Return the condition and its parameters."""
        return _join(self.parts, " OR ", "0")


class Not(_Form, frozen=True, tag="not"):
    """Rows that do not pass the part."""

    part: Filter

    def sql(self) -> Sql:
        """Return the condition and its parameters."""
        sql, parameters = compile_filter(self.part)
        return f"NOT coalesce({sql}, 0)", parameters


Filter = Field | Ids | Documents | And | Or | Not


def compile_filter(where: Any) -> Sql:
    """Return a filter's condition and its parameters.

    Raises:
        FilterError: It is no filter, or cannot be understood.
    """
    if not isinstance(where, (Field, Ids, Documents, And, Or, Not)):
        raise FilterError(f"a filter is made of Field, And, Or, Not ..., got {where!r}.")
    return where.sql()


def _join(parts: tuple[Filter, ...], word: str, empty: str) -> Sql:
    """Join conditions as a balanced tree: SQLite bounds the depth of an expression.

    Parts may be NULL, which is no better than false where it comes to the whole: `Not` says so.
    """
    if not parts:
        return empty, []
    if len(parts) == 1:
        return compile_filter(parts[0])
    middle = len(parts) // 2
    left, first = _join(parts[:middle], word, empty)
    right, second = _join(parts[middle:], word, empty)
    return f"({left}{word}{right})", first + second


def reference(key: Key) -> tuple[str, str, str]:
    """Return SQL for a field's value and its JSON type, and the one parameter that each takes.

    A JSON path can name any key that needs no escaping inside JSON; `json_each` names the rest.
    """
    if isinstance(key, DocumentId):
        return "coalesce(document_id, ?)", "iif(? IS NULL, 'null', 'text')", key.absent
    if isinstance(key, PayloadHead):
        head = "CAST(substr(payload, 1, instr(payload, x'0A') - 1) AS TEXT)"
        return f"coalesce({head}, ?)", "iif(? IS NULL, 'null', 'text')", key.absent
    if not isinstance(key, str):
        raise FilterError(f"a filter names a field by a string, got {key!r}.")
    _check_text(key)
    if key and not any(char < " " or char in '"\\' for char in key):
        return "json_extract(metadata, ?)", "json_type(metadata, ?)", f'$."{key}"'
    rest = "FROM json_each(metadata) WHERE key = ?)"
    return f"(SELECT value {rest}", f"(SELECT type {rest}", key


def operand_of(value: Any, operator: str) -> tuple[str, Any]:
    """Return the JSON types that a scalar is compared with, and the SQL parameter."""
    if isinstance(value, str):
        return "('text')", _check_text(value)
    if isinstance(value, bool):
        return _NUMBERS, value
    if isinstance(value, int):
        return _NUMBERS, value if -_INT64 <= value < _INT64 else _float(value)
    if isinstance(value, float) and value == value:  # noqa: PLR0124 - NaN is unequal to itself
        return _NUMBERS, value
    raise FilterError(
        f"the filter operator {operator!r} needs a string or a number, got {value!r}."
    )


def _compare(field: Field) -> Sql:
    value, type_, key = reference(field.key)
    sign = _ORDER.get(field.operator, "=")
    if isinstance(field.value, (list, tuple)) and sign == "=":
        return _equal_lists(value, type_, key, field)
    types, operand = operand_of(field.value, field.operator)
    return f"({type_} IN {types} AND {value} {sign} ?)", [key, key, operand]


def _equal_lists(value: str, type_: str, key: str, field: Field) -> Sql:
    unequal = (
        f"SELECT 1 FROM json_each({value}) AS item JOIN json_each(?) AS wanted "
        "ON item.key = wanted.key WHERE item.value IS NOT wanted.value "
        "OR (item.type = 'text') != (wanted.type = 'text')"
    )
    sql = (
        f"CASE {type_} WHEN 'array' THEN json_array_length({value}) = ? "
        f"AND NOT EXISTS ({unequal}) ELSE 0 END"
    )
    wanted = wanted_of(field)
    return sql, [key, key, len(field.value), key, wanted]


def _not_equal(field: Field) -> Sql:
    sql, parameters = _compare(field)
    return f"NOT coalesce({sql}, 0)", parameters


def _one_of(field: Field) -> Sql:
    value, type_, key = reference(field.key)
    among = f"{value} IN (SELECT value FROM json_each(?) WHERE type {SCALAR})"
    sql = f"({type_} {SCALAR} AND {among})"
    return sql, [key, key, wanted_of(field)]


def _none_of(field: Field) -> Sql:
    sql, parameters = _one_of(field)
    return f"NOT coalesce({sql}, 0)", parameters


def _contains(field: Field) -> Sql:
    """Test for an element of a list, a key of a dict or a part of a text."""
    operand_of(field.value, field.operator)
    return _any(Field(field.key, field.operator, [field.value]))


def _any(field: Field) -> Sql:
    sql, parameters = _held(field)
    return f"EXISTS (SELECT 1 FROM json_each(?) AS wanted WHERE {sql})", parameters


def _all(field: Field) -> Sql:
    sql, parameters = _held(field)
    _, type_, key = reference(field.key)
    missing = f"NOT EXISTS (SELECT 1 FROM json_each(?) AS wanted WHERE NOT coalesce({sql}, 0))"
    present = f"coalesce({type_}, 'null') != 'null'"
    return f"({present} AND {missing})", [key, *parameters]


def _held(field: Field) -> Sql:
    """Return SQL that tells whether the field holds `wanted.value`; the first parameter is JSON."""
    value, type_, key = reference(field.key)
    scalar = f"item.type {SCALAR} AND wanted.type {SCALAR}"
    alike = "(item.type = 'text') = (wanted.type = 'text')"
    sql = (
        f"CASE {type_} WHEN 'array' THEN EXISTS (SELECT 1 FROM json_each({value}) AS item "
        f"WHERE {scalar} AND {alike} AND item.value = wanted.value) "
        f"WHEN 'text' THEN wanted.type = 'text' AND instr({value}, wanted.value) > 0 "
        f"WHEN 'object' THEN wanted.type = 'text' AND EXISTS (SELECT 1 FROM json_each({value}) "
        "AS item WHERE item.key = wanted.value) ELSE 0 END"
    )
    return sql, [wanted_of(field), key, key, key, key]


def _text_match(field: Field) -> Sql:
    text = _text(field)
    value, type_, key = reference(field.key)
    return f"({type_} = 'text' AND instr({value}, ?) > 0)", [key, key, text]


def _text_match_insensitive(field: Field) -> Sql:
    text = _text(field)
    value, type_, key = reference(field.key)
    sql = f"({type_} = 'text' AND instr(unicode_lower({value}), ?) > 0)"
    return sql, [key, key, text.lower()]


def _is_empty(field: Field) -> Sql:
    value, type_, key = reference(field.key)
    sql = (
        f"CASE coalesce({type_}, 'null') WHEN 'null' THEN 1 WHEN 'text' THEN {value} = '' "
        f"WHEN 'array' THEN json_array_length({value}) = 0 ELSE 0 END"
    )
    return sql, [key, key, key]


def _is_missing(field: Field) -> Sql:
    _, type_, key = reference(field.key)
    return f"coalesce({type_}, 'null') = 'null'", [key]


def wanted_of(field: Field) -> str:
    """Return a list of scalars as JSON."""
    if not isinstance(field.value, (list, tuple)):
        raise FilterError(
            f"the filter operator {field.operator!r} needs a list of values, got {field.value!r}; "
            "write [value]."
        )
    return as_json(
        [
            item
            if item is None or isinstance(item, (list, tuple))
            else operand_of(item, field.operator)[1]
            for item in field.value
        ]
    )


def _text(field: Field) -> str:
    if not isinstance(field.value, str):
        raise FilterError(
            f"the filter operator {field.operator!r} needs a string, got {field.value!r}."
        )
    return _check_text(field.value)


def _check_text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise FilterError(f"a filter's text is not valid Unicode: {error.reason}.") from error
    if "\0" in text:
        raise FilterError("a filter's text holds a null character, which no metadata can.")
    return text


def _float(value: int) -> float:
    try:
        return float(value)
    except OverflowError as error:
        raise FilterError("a filter's number is too large to compare with.") from error


def as_json(value: Any) -> str:
    """Return a value as JSON."""
    try:
        return msgspec.json.encode(value).decode()
    except (TypeError, ValueError, RecursionError) as error:
        raise FilterError(f"a filter's value cannot be written as JSON: {error}") from error


_COMPILERS: Final = {
    "eq": _compare, "gt": _compare, "ge": _compare, "lt": _compare, "le": _compare,
    "ne": _not_equal, "in": _one_of, "nin": _none_of, "any": _any, "all": _all,
    "contains": _contains, "text_match": _text_match,
    "text_match_insensitive": _text_match_insensitive, "is_empty": _is_empty,
    "is_missing": _is_missing,
}  # fmt: skip
