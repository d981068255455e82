"""Vector collections: SQLite truth, a slab of raw vectors, compressed codes derived from them."""

from ragaccel.vectors.choice import Choice, choose
from ragaccel.vectors.collection import VectorCollection, find_open
from ragaccel.vectors.filters import (
    And,
    DocumentId,
    Documents,
    Field,
    Filter,
    Ids,
    Not,
    Or,
    PayloadHead,
)
from ragaccel.vectors.handle import CollectionHandle
from ragaccel.vectors.records import Changes, CollectionStats, Hit, Record
from ragaccel.vectors.spec import CompressionSpec
from ragaccel.vectors.trials import Trial
from ragaccel.vectors.watch import SearchTrace, watch

__all__ = [
    "And",
    "Changes",
    "Choice",
    "CollectionHandle",
    "CollectionStats",
    "CompressionSpec",
    "DocumentId",
    "Documents",
    "Field",
    "Filter",
    "Hit",
    "Ids",
    "Not",
    "Or",
    "PayloadHead",
    "Record",
    "SearchTrace",
    "Trial",
    "VectorCollection",
    "choose",
    "find_open",
    "watch",
]
