"""Indexes on metadata fields: their values in a table of their own, kept in step with the rows.

A filter on an indexed field is answered by look-ups in it, with the same result as without one: the
values are taken out of the metadata by the SQL that filters use, and compared by SQLite as there.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any, Final

from ragaccel.errors import FilterError
from ragaccel.vectors import filters
from ragaccel.vectors.filters import And, Field, Not, Or

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ragaccel.vectors.filters import Filter, Sql

#: `item` and `key` are what lists and dicts hold.
TABLES: Final = """
CREATE TABLE IF NOT EXISTS field (id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS attribute (
  field_id INTEGER NOT NULL,
  kind TEXT NOT NULL CHECK (kind IN ('number', 'text', 'item', 'key')),
  value NOT NULL,
  slot INTEGER NOT NULL,
  PRIMARY KEY (field_id, kind, value, slot)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS attribute_slot ON attribute (slot);
"""
_LISTED: Final = "(SELECT value FROM json_each(?))"


def indexed(db: sqlite3.Connection) -> dict[str, int]:
    """Return the indexed fields and their numbers; none in a file of before there were any."""
    try:
        return dict(db.execute("SELECT key, id FROM field ORDER BY key"))
    except sqlite3.OperationalError as error:
        if "no such table" in str(error):
            return {}
        raise


def create(db: sqlite3.Connection, key: Any) -> None:
    """Index a field of all rows, unless it is indexed.

    Raises:
        FilterError: It is no name of a field.
    """
    if not isinstance(key, str):
        raise FilterError(f"an index is on a field, which is a string, got {key!r}.")
    filters.reference(key)
    added = db.execute("INSERT OR IGNORE INTO field (key) VALUES (?)", (key,))
    if added.rowcount:
        _fill(db, key, indexed(db)[key], "1", [])


def drop(db: sqlite3.Connection, key: str) -> None:
    """Forget the index of a field, if there is one."""
    db.execute(
        "DELETE FROM attribute WHERE field_id = (SELECT id FROM field WHERE key = ?)", (key,)
    )
    db.execute("DELETE FROM field WHERE key = ?", (key,))


def add(db: sqlite3.Connection, slots: Sequence[int]) -> None:
    """Index new rows."""
    for key, number in indexed(db).items():
        _fill(db, key, number, f"slot IN {_LISTED}", [filters.as_json(slots)])


def remove(db: sqlite3.Connection, slots: Sequence[int]) -> None:
    """Forget rows."""
    if slots and indexed(db):
        db.execute(f"DELETE FROM attribute WHERE slot IN {_LISTED}", (filters.as_json(slots),))


def _fill(
    db: sqlite3.Connection, key: str, number: int, condition: str, given: Sequence[str]
) -> None:
    """Index a field of the rows that a condition is true of."""
    value, type_, name = filters.reference(key)
    rows = f"(SELECT slot, {value} AS value, {type_} AS type FROM doc WHERE {condition}) AS held"
    parameters = (number, name, name, *given)
    db.execute(
        "INSERT INTO attribute SELECT ?, iif(type = 'text', 'text', 'number'), value, slot "
        f"FROM {rows} WHERE type {filters.SCALAR}",
        parameters,
    )
    # Only lists and dicts may be given to json_each: a text need not be JSON.
    db.execute(
        "INSERT OR IGNORE INTO attribute SELECT ?, iif(held.type = 'array', 'item', 'key'), "
        "iif(held.type = 'array', item.value, item.key), slot "
        f"FROM {rows}, json_each(iif(held.type IN ('array', 'object'), held.value, '[]')) AS item "
        f"WHERE held.type = 'object' OR item.type {filters.SCALAR}",
        parameters,
    )


# -- look-ups --------------------------------------------------------------------------------------


def with_lookups(where: Filter, known: Mapping[str, int]) -> Filter:
    """Return a filter that passes the same rows, with look-ups in place of tests where it can."""
    if isinstance(where, And):
        return And(tuple(with_lookups(part, known) for part in where.parts))
    if isinstance(where, Or):
        return Or(tuple(with_lookups(part, known) for part in where.parts))
    if isinstance(where, Not):
        return Not(with_lookups(where.part, known))
    if not isinstance(where, Field) or not isinstance(where.key, str) or where.key not in known:
        return where
    return _looked_up(where, known[where.key])


def _looked_up(field: Field, number: int) -> Filter:
    operator, value = field.operator, field.value
    if operator in {"ne", "nin"}:
        positive = Field(field.key, "eq" if operator == "ne" else "in", value)
        return Not(_looked_up(positive, number))
    if operator == "all":
        listed = [item for item in value if isinstance(item, filters.Scalar)]
        if not listed:
            return field
        return And((_Lookup(field.key, "any", listed[:1], number), field))
    if operator == "contains":
        return _Lookup(field.key, "any", [value], number)
    is_list = isinstance(value, (list, tuple))
    if operator in {"any", "in"} or (operator in _SIGNS and not is_list):
        return _Lookup(field.key, operator, value, number)
    return field


_SIGNS: Final = {"eq": "=", "gt": ">", "ge": ">=", "lt": "<", "le": "<="}


class _Lookup(Field, frozen=True):
    """A test of an indexed field: eq, gt, ge, lt, le, in or any.

    Attributes:
        number: The number of the field.
    """

    number: int = 0

    def sql(self) -> Sql:
        """Return the condition and its parameters."""
        tests, parameters = self._tests()
        selects = (f"SELECT slot FROM attribute WHERE field_id = ? AND {test}" for test in tests)
        given = [one for parameter in parameters for one in (self.number, parameter)]
        return f"slot IN ({' UNION ALL '.join(selects)})", given

    def _tests(self) -> tuple[list[str], list[Any]]:
        """Return tests of an attribute, any of which passes its row, with a parameter each."""
        if self.operator in _SIGNS:
            kind = "text" if isinstance(self.value, str) else "number"
            _, operand = filters.operand_of(self.value, self.operator)
            return [f"kind = '{kind}' AND value {_SIGNS[self.operator]} ?"], [operand]
        wanted = filters.wanted_of(self)
        scalars = f"(SELECT value FROM json_each(?) WHERE type {filters.SCALAR})"
        if self.operator == "in":
            return [f"kind IN ('number', 'text') AND value IN {scalars}"], [wanted]
        part_of_text = (
            "EXISTS (SELECT 1 FROM json_each(?) AS wanted "
            "WHERE wanted.type = 'text' AND instr(attribute.value, wanted.value) > 0)"
        )
        held = f"kind IN ('item', 'key') AND value IN {scalars}"
        return [held, f"kind = 'text' AND {part_of_text}"], [wanted, wanted]
