"""Nodes as plain data and back, with nothing lost: what cannot come back equal is refused."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any, Final

import msgspec
from llama_index.core.schema import (
    BaseNode,
    Document,
    ImageDocument,
    ImageNode,
    IndexNode,
    Node,
    TextNode,
)
from pydantic import AnyUrl

from ragaccel.cache import Uncacheable
from ragaccel.cache.values import check_plain
from ragaccel.errors import InvalidRecordError

_CLASSES: Final = {
    cls.class_name(): cls for cls in (TextNode, Document, IndexNode, ImageNode, ImageDocument, Node)
}


_RESOURCES: Final = ("text_resource", "image_resource", "audio_resource", "video_resource")


class PackedNode(msgspec.Struct, array_like=True, frozen=True):
    """A node's class name and its fields."""

    class_name: str
    fields: dict[str, Any]


def pack_node(node: BaseNode) -> PackedNode:
    """Return a node as plain data.

    Raises:
        Uncacheable: The node would not come back equal (a class of the user's own, an object behind
            an index node, binary content).
    """
    name = node.class_name()
    if type(node) is not _CLASSES.get(name):
        raise Uncacheable("value")
    check_plain(node.metadata)
    packed = PackedNode(name, _fields(node))
    try:
        back = unpack_node(_decoder.decode(_encoder.encode(packed)))
    except (TypeError, ValueError, OverflowError) as error:
        raise Uncacheable("value") from error
    if back != node or getattr(node, "obj", None) is not None:
        raise Uncacheable("value")
    return packed


def unpack_node(packed: PackedNode) -> BaseNode:
    """Return a fresh node."""
    return _CLASSES[packed.class_name].from_dict(packed.fields)


def encode_node(node: BaseNode) -> bytes | None:
    """Return a node for the store, without its text, metadata and embedding.

    The first line is the class, so that filters can ask for it.

    Returns:
        None for a node of a class that cannot be stored as it is; its text and metadata still are.

    Raises:
        InvalidRecordError: A field of the node cannot be stored.
    """
    name = node.class_name()
    if name not in _CLASSES:
        return None
    fields = _fields(node)
    for stored_elsewhere in ("text", "metadata", "embedding"):
        fields.pop(stored_elsewhere, None)
    try:
        return name.encode() + b"\n" + _encoder.encode(fields)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidRecordError(f"node {node.node_id} cannot be stored: {error}") from error


def decode_node(
    payload: bytes | None, id_: str, text: str | None, metadata: dict[str, Any]
) -> BaseNode:
    """Return a stored node; a row that another framework wrote becomes a `TextNode`."""
    if payload is None:
        return TextNode(id_=id_, text=text or "", metadata=metadata)
    name, _, packed = payload.partition(b"\n")
    fields = {**msgspec.msgpack.decode(packed), "metadata": metadata}
    if "text_resource" not in fields:
        fields["text"] = text or ""
    return _CLASSES[name.decode()].from_dict(fields)


def _fields(node: BaseNode) -> dict[str, Any]:
    """Return a node's fields, with the binary content that its own dump leaves out."""
    fields = node.to_dict()
    for name in _RESOURCES:
        data = getattr(getattr(node, name, None), "data", None)
        if data is not None:
            fields[name]["data"] = data
    return fields


def _plain(value: Any) -> str:
    if isinstance(value, (AnyUrl, PurePath)):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no stored form")


_encoder = msgspec.msgpack.Encoder(enc_hook=_plain)
_decoder = msgspec.msgpack.Decoder(PackedNode)
