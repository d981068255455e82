"""LangChain's documents and text splitters, as `ragaccel.ingest` needs them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
from langchain_core.documents import BaseDocumentTransformer, Document

from ragaccel.errors import InvalidRecordError
from ragaccel.ingest.adapter import (
    Adapter,
    chunks_of,
    embedding_of,
    identifier,
    not_a_transformation,
)
from ragaccel.ingest.chunks import Chunk, chunk_ids

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ragaccel.ingest.adapter import Key
    from ragaccel.ingest.chunks import Task
    from ragaccel.langchain.vector_store import CompressedVectorStore


def adapter(into: CompressedVectorStore, embed: Any, transform: Any, key: Key) -> Adapter:
    """Return the adapter of a store.

    Raises:
        ConfigurationError: An argument does not fit it.
    """
    if transform is not None and not (
        isinstance(transform, BaseDocumentTransformer) or callable(transform)
    ):
        raise not_a_transformation(transform, "a text splitter or a function of a document")
    model = into.embeddings if embed is None else embed
    return Adapter(
        into.collection, model, embedding_of(model),
        identifier(key, lambda document: document.id, lambda document: document.metadata),
        _content, _Split(transform), transform, lambda row: row.text or "",
    )  # fmt: skip


def _content(document: Any) -> bytes:
    if not isinstance(document, Document):
        raise InvalidRecordError(
            f"a document is a LangChain Document, got {type(document).__name__}."
        )
    parts = (document.page_content, document.metadata)
    return msgspec.json.encode(parts, enc_hook=repr, order="deterministic")


@dataclass(frozen=True)
class _Split:
    """Makes chunks of a document."""

    transformation: Any

    def __call__(self, task: Task) -> list[Chunk]:
        document: Document = task.document
        if task.mark is None:
            return [_chunk(task.id, document, None)] if document.page_content.strip() else []
        made: Iterable[Any]
        if isinstance(self.transformation, BaseDocumentTransformer):
            made = self.transformation.transform_documents([document])
        else:
            made = chunks_of(self.transformation(document))
        documents = [
            Document(one, metadata=document.metadata) if isinstance(one, str) else one
            for one in made
        ]
        kept = [one for one in documents if one.page_content.strip()]
        ids = chunk_ids(task.mark, len(kept))
        return [_chunk(id_, one, task.id) for id_, one in zip(ids, kept, strict=True)]


def _chunk(id_: str, document: Document, document_id: str | None) -> Chunk:
    return Chunk(id_, document.page_content, document.metadata, document_id)
