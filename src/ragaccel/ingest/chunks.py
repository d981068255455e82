"""Chunks and their ids, which tell by themselves whether a document is stored as it is now.

The id of a chunk is made of the embedding model, of everything that decides the chunks of its
document, of the chunk's place, and of how many there are. So a document is complete when as many
rows with its mark are there as their ids say, and no other note of that has to be kept in step.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from ragaccel.vectors import Record

_FORMAT: Final = b"1"
_MODEL_DIGITS: Final = 8
_MARK_DIGITS: Final = 40
_NAME: Final = re.compile(rf"([0-9a-f]{{{_MARK_DIGITS}}})-\d+of(\d+)")


class Chunk(msgspec.Struct, frozen=True, gc=False):
    """A row to store.

    Attributes:
        id: Of the row.
        text: As it is stored.
        metadata: JSON values by name.
        document_id: The document that it is a part of, or None.
        payload: Bytes that an adapter keeps beside the row.
        prompt: What is embedded, where it is another text.
    """

    id: str
    text: str | None
    metadata: dict[str, Any]
    document_id: str | None = None
    payload: bytes | None = None
    prompt: str | None = None

    @property
    def embedded(self) -> str:
        """The text to embed."""
        return (self.text or "") if self.prompt is None else self.prompt

    @property
    def size(self) -> int:
        """About how many bytes it takes, without what every object costs."""
        return len(self.text or "") + len(self.payload or b"") + len(self.prompt or "")

    def is_stored_as(self, row: Record) -> bool:
        """Tell whether a row of its id is what would be written."""
        if (self.text, self.document_id, self.payload) != (row.text, row.document_id, row.payload):
            return False
        plain = msgspec.json.decode(msgspec.json.encode(self.metadata))
        return bool(plain == row.metadata)


class Task(NamedTuple):
    """A document to transform.

    Attributes:
        document: The framework's object.
        id: Its id.
        mark: What its chunks are named by; None for a document that is its own chunk.
    """

    document: Any
    id: str
    mark: str | None


def model_mark(*parts: bytes) -> str:
    """Return what the ids of all chunks begin with that one model embeds."""
    return _digest(parts, _MODEL_DIGITS)


def document_mark(model: str, *parts: bytes) -> str:
    """Return what the ids of a document's chunks begin with.

    Args:
        model: The mark of the embedding model.
        parts: Everything else that decides the chunks.
    """
    return model + _digest((_FORMAT, *parts), _MARK_DIGITS - _MODEL_DIGITS)


def chunk_ids(mark: str, count: int) -> list[str]:
    """Return the ids of all chunks of a document, in their order."""
    return [f"{mark}-{number}of{count}" for number in range(1, count + 1)]


def complete_ids(mark: str, stored: Collection[str]) -> set[str] | None:
    """Return the ids of a document's chunks if all of them are among those stored."""
    for one in stored:
        match = _NAME.fullmatch(one)
        if match is not None and match[1] == mark:
            ids = set(chunk_ids(mark, int(match[2])))
            return ids if ids.issubset(stored) else None
    return None


def is_made_here(id_: str) -> bool:
    """Tell whether an id was given by `chunk_ids`."""
    return _NAME.fullmatch(id_) is not None


def _digest(parts: Sequence[bytes], digits: int) -> str:
    made = hashlib.blake2b(digest_size=digits // 2)
    for part in parts:
        made.update(len(part).to_bytes(8, "big"))
        made.update(part)
    return made.hexdigest()
