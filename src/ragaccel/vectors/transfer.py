"""Copying one collection into another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from ragaccel.vectors.collection import VectorCollection
from ragaccel.vectors.filters import Ids

if TYPE_CHECKING:
    from pathlib import Path

_BATCH_ROWS: Final = 2048


def copy_to(source: VectorCollection, folder: Path) -> None:
    """Copy every row of a collection into the collection at a folder, emptied first."""
    with VectorCollection.open(folder, metric=source.metric) as target:
        target.clear()
        ids = [record.id for record in source.scan()]
        for start in range(0, len(ids), _BATCH_ROWS):
            rows = source.select(Ids(tuple(ids[start : start + _BATCH_ROWS])), vectors=True)
            target.upsert(
                [row.id for row in rows],
                np.stack([row.vector for row in rows if row.vector is not None]),
                texts=[row.text for row in rows],
                metadata=[row.metadata for row in rows],
                document_ids=[row.document_id for row in rows],
                payloads=[row.payload for row in rows],
            )
        if ids:
            target.flush()
