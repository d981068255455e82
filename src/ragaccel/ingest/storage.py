"""Writing: the chunks of whole documents in one transaction, and then what they replace goes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ragaccel import telemetry
from ragaccel.telemetry import attributes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ragaccel.ingest.adapter import Adapter
    from ragaccel.ingest.chunks import Chunk
    from ragaccel.ingest.embedding import Embedder, Vector
    from ragaccel.vectors import Record


@dataclass(frozen=True)
class Change:
    """What a document makes of the store.

    Attributes:
        id: Of the document.
        chunks: Those that are not stored as they are.
        kept: Ids of those that are.
        replaced: Rows that were stored of the document and are no chunks of it any more.
    """

    id: str
    chunks: list[Chunk]
    kept: list[str]
    replaced: list[Record]


@dataclass
class Stored:
    """What came of some changes.

    Attributes:
        done: Those that were made.
        failed: Those that were not, each with the error.
        chunks: How many rows were written.
        deleted: How many were deleted.
    """

    done: list[Change] = field(default_factory=list)
    failed: list[tuple[Change, Exception]] = field(default_factory=list)
    chunks: int = 0
    deleted: int = 0


class Storage:
    """Embeds and writes.

    Args:
        adapter: Of the store.
        embedder: Gives vectors.
        model: The mark of the model, if it has one; vectors of stored rows that have it are used
            again where their texts are.

    Attributes:
        lanes: How many calls to the model are made at a time.
    """

    def __init__(self, adapter: Adapter, embedder: Embedder, model: str | None) -> None:
        self._adapter, self._embedder, self._model = adapter, embedder, model
        self.lanes = embedder.lanes

    def store(self, changes: Sequence[Change]) -> Stored:
        """Make changes: all of them that can be embedded, in one transaction.

        What is replaced is deleted afterwards. Should the process end in between, the next
        ingestion finds the documents complete, and rows too many.

        Raises:
            Stopped: It was stopped; nothing is changed.
            CollectionError: The rows cannot be stored.
        """
        stored = Stored()
        chunks = [chunk for change in changes for chunk in change.chunks]
        told = {attributes.DOCUMENTS: len(changes), attributes.ITEMS: len(chunks)}
        sent = self._embedder.sent
        with telemetry.stage("ingest", told) as span:
            texts = (chunk.embedded for chunk in chunks)
            vectors = self._embedder.vectors(texts, self._known(changes))
            span.set({attributes.SENT: self._embedder.sent - sent})
            for change in changes:
                found = (vectors[chunk.embedded] for chunk in change.chunks)
                error = next((one for one in found if isinstance(one, Exception)), None)
                if error is None:
                    stored.done.append(change)
                else:
                    stored.failed.append((change, error))
            self._write(stored, vectors)
        return stored

    def _write(self, stored: Stored, vectors: dict[str, Vector | Exception]) -> None:
        collection = self._adapter.collection
        chunks = [chunk for change in stored.done for chunk in change.chunks]
        if chunks:
            collection.upsert(
                [chunk.id for chunk in chunks],
                _together([vectors[chunk.embedded] for chunk in chunks]),
                [chunk.text for chunk in chunks],
                [chunk.metadata for chunk in chunks],
                document_ids=[chunk.document_id for chunk in chunks],
                payloads=[chunk.payload for chunk in chunks],
            )
        replaced = [row.id for change in stored.done for row in change.replaced]
        stored.chunks = len(chunks)
        stored.deleted = collection.delete(replaced) if replaced else 0

    def _known(self, changes: Sequence[Change]) -> dict[str, Vector]:
        """Return vectors of texts that the same model has embedded for what is replaced."""
        if self._model is None:
            return {}
        wanted = {chunk.embedded for change in changes for chunk in change.chunks}
        texts = {
            row.id: self._adapter.embedded(row)
            for change in changes
            for row in change.replaced
            if row.id.startswith(self._model)
        }
        again = [id_ for id_, text in texts.items() if text in wanted]
        rows = self._adapter.collection.get(again, vectors=True) if again else []
        return {texts[row.id]: row.vector for row in rows if row.vector is not None}


def _together(vectors: Sequence[Vector | Exception]) -> Any:
    """Return vectors as one array; what has no common dimension as it is, for the collection."""
    same = len({one.shape for one in vectors if isinstance(one, np.ndarray)}) == 1
    return np.array(vectors) if same else vectors
