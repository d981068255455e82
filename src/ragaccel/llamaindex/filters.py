"""LlamaIndex's metadata filters as our expression tree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from llama_index.core.vector_stores.types import FilterCondition, FilterOperator, MetadataFilters

from ragaccel.errors import FilterError
from ragaccel.vectors import And, DocumentId, Documents, Field, Filter, Ids, Not, Or, PayloadHead

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llama_index.core.vector_stores.types import MetadataFilter

    from ragaccel.vectors.filters import Key, Operator

_OPERATORS: Final[dict[FilterOperator, Operator]] = {
    FilterOperator.EQ: "eq",
    FilterOperator.NE: "ne",
    FilterOperator.GT: "gt",
    FilterOperator.GTE: "ge",
    FilterOperator.LT: "lt",
    FilterOperator.LTE: "le",
    FilterOperator.IN: "in",
    FilterOperator.NIN: "nin",
    FilterOperator.ANY: "any",
    FilterOperator.ALL: "all",
    FilterOperator.CONTAINS: "contains",
    FilterOperator.TEXT_MATCH: "text_match",
    FilterOperator.TEXT_MATCH_INSENSITIVE: "text_match_insensitive",
    FilterOperator.IS_EMPTY: "is_empty",
}
#: Keys under which LlamaIndex lets a node's document be filtered; "None" stands for no document.
_DOCUMENT_KEYS: Final = frozenset(("doc_id", "document_id", "ref_doc_id"))
_DOCUMENT: Final = DocumentId(absent="None")
_NODE_TYPE_KEY: Final = "_node_type"
_NODE_TYPE: Final = PayloadHead(absent="TextNode")


def to_filter(
    filters: MetadataFilters | None,
    node_ids: Sequence[str] | None = None,
    doc_ids: Sequence[str] | None = None,
) -> Filter | None:
    """Return the rows that pass all three restrictions; None if there are none.

    Raises:
        FilterError: An operator or a value cannot be understood, or ids are a single string.
    """
    parts: list[Filter] = []
    if filters is not None and filters.filters:
        parts.append(_group(filters))
    if node_ids is not None:
        parts.append(Ids(_listed("node_ids", node_ids)))
    if doc_ids is not None:
        parts.append(Documents(_listed("doc_ids", doc_ids)))
    if not parts:
        return None
    return parts[0] if len(parts) == 1 else And(tuple(parts))


def _listed(name: str, ids: Sequence[str]) -> tuple[str, ...]:
    if isinstance(ids, str):
        raise FilterError(f"{name} must be a list of ids, got the string {ids!r}; write [{ids!r}].")
    return tuple(ids)


def _group(filters: MetadataFilters) -> Filter:
    parts = tuple(
        _group(one) if isinstance(one, MetadataFilters) else _field(one) for one in filters.filters
    )
    condition = filters.condition or FilterCondition.AND
    if condition == FilterCondition.AND:
        return And(parts)
    if condition == FilterCondition.OR:
        return Or(parts)
    if condition == FilterCondition.NOT:
        return Not(Or(parts))
    raise FilterError(f"the filter condition {condition!r} is unknown; use and, or, not.")


def _field(filter_: MetadataFilter) -> Filter:
    operator = _OPERATORS.get(filter_.operator)
    if operator is None:
        raise FilterError(f"the filter operator {filter_.operator!r} is unknown.")
    key: Key = filter_.key
    if key in _DOCUMENT_KEYS:
        key = _DOCUMENT
    elif key == _NODE_TYPE_KEY:
        key = _NODE_TYPE
    if operator != "is_empty" and filter_.value is None:
        raise FilterError(
            f"the filter on {filter_.key!r} compares with None; use the operator is_empty."
        )
    return Field(key, operator, filter_.value)
