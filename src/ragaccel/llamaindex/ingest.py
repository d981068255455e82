"""LlamaIndex's nodes and transformations, as `ragaccel.ingest` needs them."""

from __future__ import annotations

import contextlib
import logging
import pickle
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
from llama_index.core import Settings
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import (
    BaseNode,
    MetadataMode,
    NodeRelationship,
    RelatedNodeInfo,
    TextNode,
    TransformComponent,
)
from llama_index.core.utils import get_tokenizer

from ragaccel.errors import ConfigurationError, InvalidRecordError
from ragaccel.ingest.adapter import (
    Adapter,
    chunks_of,
    embedding_of,
    identifier,
    not_a_transformation,
)
from ragaccel.ingest.chunks import Chunk, chunk_ids
from ragaccel.ingest.described import describe
from ragaccel.llamaindex.nodes import decode_node, encode_node

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ragaccel.ingest.adapter import Key
    from ragaccel.ingest.chunks import Task
    from ragaccel.llamaindex.vector_store import CompressedVectorStore
    from ragaccel.vectors import Record


def adapter(into: CompressedVectorStore, embed: Any, transform: Any, key: Key) -> Adapter:
    """Return the adapter of a store.

    Raises:
        ConfigurationError: An argument does not fit it.
    """
    steps = tuple(transform) if isinstance(transform, (list, tuple)) else (transform,)
    for step in steps if transform is not None else ():
        if isinstance(step, BaseEmbedding):
            raise ConfigurationError("an embedding model is no transformation here; pass embed=.")
        if not callable(step):
            raise not_a_transformation(step, "a TransformComponent or a function of a document")
    model = Settings.embed_model if embed is None else embed
    return Adapter(
        into.collection, model, embedding_of(model),
        identifier(key, lambda node: node.node_id, lambda node: node.metadata),
        _content, _Split(steps), transform, _embedded,
    )  # fmt: skip


def _content(node: Any) -> bytes:
    if not isinstance(node, BaseNode):
        raise InvalidRecordError(
            f"a document is a LlamaIndex Document or node, got {type(node).__name__}."
        )
    text = node.get_content(metadata_mode=MetadataMode.NONE)
    fields = encode_node(node) or node.to_json().encode()
    return msgspec.json.encode((text, node.metadata), enc_hook=repr, order="deterministic") + fields


def _embedded(row: Record) -> str:
    return _prompt(decode_node(row.payload, row.id, row.text, row.metadata))


def _prompt(node: BaseNode) -> str:
    return node.get_content(metadata_mode=MetadataMode.EMBED)


@dataclass(frozen=True)
class _Split:
    """Makes chunks of a document by one transformation after the other."""

    steps: tuple[Any, ...]

    def __call__(self, task: Task) -> list[Chunk]:
        if task.mark is None:
            return [_chunk(one, one.ref_doc_id) for one in _with_text([task.document])]
        document = task.document.model_copy(update={"id_": task.id})
        nodes: list[BaseNode] = [document]
        for step in self.steps:
            nodes = _stepped(step, nodes)
        nodes = _with_text(nodes)
        renamed = _renamed(nodes, chunk_ids(task.mark, len(nodes)), document)
        return [_chunk(one, task.id) for one in renamed]

    def __getstate__(self) -> dict[str, Any]:
        """Refuse a component that would come out of a pickle without functions it was given."""
        with _no_warnings():
            for step in self.steps:
                if isinstance(step, TransformComponent):
                    twin = pickle.loads(pickle.dumps(step))  # noqa: S301 - made here
                    if repr(describe(twin)) != repr(describe(step)):
                        raise pickle.PicklingError(
                            f"{type(step).__name__} forgets functions that it was given"
                        )
            return {"steps": pickle.dumps(self.steps)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if b"tiktoken" in state["steps"]:
            get_tokenizer()  # LlamaIndex brings the vocabulary, which tiktoken would download
        object.__setattr__(self, "steps", pickle.loads(state["steps"]))  # noqa: S301


def _stepped(step: Any, nodes: list[BaseNode]) -> list[BaseNode]:
    """Return what a component makes of nodes, or a function of each of them."""
    if isinstance(step, TransformComponent):
        return list(step(nodes))
    return [
        TextNode(text=one, metadata=node.metadata) if isinstance(one, str) else one
        for node in nodes
        for one in chunks_of(step(node))
    ]


def _with_text(nodes: Sequence[BaseNode]) -> list[BaseNode]:
    return [one for one in nodes if one.get_content(metadata_mode=MetadataMode.NONE).strip()]


def _renamed(nodes: Sequence[BaseNode], ids: Sequence[str], document: BaseNode) -> list[BaseNode]:
    """Return copies of nodes with other ids, by which they name each other, too."""
    new = {node.node_id: id_ for node, id_ in zip(nodes, ids, strict=True)}
    copies = []
    for node, id_ in zip(nodes, ids, strict=True):
        relations: dict[Any, Any] = {NodeRelationship.SOURCE: document.as_related_node_info()}
        for relation, other in node.relationships.items():
            if isinstance(other, list):
                relations[relation] = [_related(one, new) for one in other]
            elif relation == NodeRelationship.SOURCE:
                relations[relation] = other
            else:
                relations[relation] = _related(other, new)
        copies.append(node.model_copy(update={"id_": id_, "relationships": relations}))
    return copies


def _related(other: RelatedNodeInfo, new: dict[str, str]) -> RelatedNodeInfo:
    return other.model_copy(update={"node_id": new.get(other.node_id, other.node_id)})


def _chunk(node: BaseNode, document_id: str | None) -> Chunk:
    text, prompt = node.get_content(metadata_mode=MetadataMode.NONE), _prompt(node)
    return Chunk(
        node.node_id, text, node.metadata, document_id, encode_node(node),
        None if prompt == text else prompt,
    )  # fmt: skip


@contextlib.contextmanager
def _no_warnings() -> Iterator[None]:
    """Keep LlamaIndex from warning of lambdas that a component makes anew where it is unpickled."""

    def accepts(record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith("Removing unpickleable")

    handler = logging.NullHandler()  # without one, its warning would set up logging for all
    logging.root.addFilter(accepts)
    logging.root.addHandler(handler)
    try:
        yield
    finally:
        logging.root.removeHandler(handler)
        logging.root.removeFilter(accepts)
