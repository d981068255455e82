"""What a collection holds and returns, and the checks on what goes in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from ragaccel.errors import InvalidRecordError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from ragaccel.vectors.spec import CompressionSpec


Document = tuple[int, str, str | None, str, str | None, bytes | None]
"""A row of the database: slot, id, text, metadata as JSON, document id, payload."""


class Record(msgspec.Struct, frozen=True, gc=False):
    """A stored row.

    Attributes:
        id: The user's id.
        text: The text that was embedded, or None.
        metadata: JSON values by name.
        document_id: The document that the text is a part of, or None.
        payload: Bytes that an adapter keeps beside the row, or None.
        slot: The row's number; it never changes, and an upsert of the id takes a new one.
        vector: The raw vector, float32 of shape (dim,), where it was asked for.
    """

    id: str
    text: str | None
    metadata: dict[str, Any]
    document_id: str | None = None
    payload: bytes | None = None
    slot: int = 0
    vector: NDArray[np.float32] | None = None

    @classmethod
    def of(cls, document: Document, vector: NDArray[np.float32] | None = None) -> Record:
        """Return the row that a document of the database is."""
        slot, id_, text, metadata, document_id, payload = document
        return cls(id_, text, decode_metadata(metadata), document_id, payload, slot, vector)


class Hit(Record, frozen=True, gc=False):
    """A found row and its exact score; higher is nearer."""

    score: float = 0.0

    @classmethod
    def found(
        cls, document: Document, score: float, vector: NDArray[np.float32] | None = None
    ) -> Hit:
        """Return the hit that a document of the database is."""
        slot, id_, text, metadata, document_id, payload = document
        return cls(id_, text, decode_metadata(metadata), document_id, payload, slot, vector, score)


@dataclass(frozen=True, slots=True)
class Changes:
    """What happened to a collection after a position of its change log.

    Attributes:
        seq: The position reached.
        mark: The mark of that position; see `SearchTrace`.
        upserted: Slots that were written and still exist, int64 of shape (n,).
        vectors: Their raw vectors, float32 of shape (n, dim).
        deleted: Slots that are gone, int64 of shape (m,).
    """

    seq: int
    mark: int
    upserted: NDArray[np.int64]
    vectors: NDArray[np.float32]
    deleted: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class CollectionStats:
    """A collection in numbers.

    Attributes:
        rows: Rows that a search can find.
        dim: Dimensions of the vectors.
        bytes_in_memory: Codes, row numbers, recent vectors and tombstones; not the page cache.
        bytes_on_disk: Size of the collection's files; 0 in memory mode.
        compression: What the vectors are kept with now.
        recall: Recall@10 against exact search, estimated when the codec was last calibrated; 1.0
            while search is exact.
        seq: Position of the change log.
    """

    rows: int
    dim: int
    bytes_in_memory: int
    bytes_on_disk: int
    compression: CompressionSpec
    recall: float
    seq: int

    @property
    def bytes_per_vector(self) -> float:
        """Bytes in memory per row; a float32 vector takes four times its dimensions."""
        return self.bytes_in_memory / self.rows if self.rows else 0.0


class Row(NamedTuple):
    """A row as the database stores it."""

    id: str
    text: str | None
    metadata: str
    document_id: str | None
    payload: bytes | None


def check_rows(
    ids: Sequence[str],
    texts: Sequence[str | None] | None,
    metadata: Sequence[Mapping[str, Any] | None] | None,
    document_ids: Sequence[str | None] | None,
    payloads: Sequence[bytes | None] | None,
) -> dict[int, Row]:
    """Return the rows to store, by their position; of equal ids the last counts.

    Raises:
        InvalidRecordError: Columns of different lengths, or a value that cannot be stored.
    """
    keys = check_ids(ids)
    text = _column("texts", texts, len(keys))
    meta = _column("metadata", metadata, len(keys))
    document = _column("document_ids", document_ids, len(keys))
    payload = _column("payloads", payloads, len(keys))
    last = sorted({key: position for position, key in enumerate(keys)}.values())
    return {
        at: Row(
            keys[at],
            _text(text[at]),
            _encode_metadata(meta[at]),
            _document_id(document[at]),
            _payload(payload[at]),
        )
        for at in last
    }


def check_ids(ids: Sequence[str]) -> list[str]:
    """Return the ids as a list.

    Raises:
        InvalidRecordError: An id is not a string, or is empty.
    """
    if isinstance(ids, str):
        raise InvalidRecordError(f"ids must be a list of strings, got the string {ids!r}.")
    if not hasattr(ids, "__iter__"):
        raise InvalidRecordError(f"ids must be a list of strings, got {ids!r}.")
    found: list[Any] = list(ids)
    for position, one in enumerate(found):
        if not isinstance(one, str) or not one:
            raise InvalidRecordError(
                f"ids must be non-empty strings, got {one!r} at position {position}."
            )
        _check_unicode(one, "an id", null=False)
    return found


def _column(name: str, values: Sequence[Any] | None, rows: int) -> Sequence[Any]:
    """Return a column of as many values as there are rows; None stands for all None.

    Raises:
        InvalidRecordError: The column is of another length.
    """
    if values is None:
        return [None] * rows
    if isinstance(values, (str, bytes, dict)) or not hasattr(values, "__len__"):
        raise InvalidRecordError(f"{name} must be a list, got {values!r}.")
    if len(values) != rows:
        raise InvalidRecordError(f"{rows} ids need {rows} {name}, got {len(values)}.")
    return values


def _text(text: Any) -> str | None:
    """Return a text that can be stored.

    Raises:
        InvalidRecordError: Not a string, empty, or not valid Unicode.
    """
    if text is None:
        return None
    if not isinstance(text, str):
        raise InvalidRecordError(f"texts must be strings or None, got {type(text).__name__}.")
    if not text:
        raise InvalidRecordError(
            "a text is empty; leave the row out, or pass None for a row without a text."
        )
    return _check_unicode(str(text), "a text", null=True)


def _payload(payload: Any) -> bytes | None:
    if payload is not None and not isinstance(payload, bytes):
        raise InvalidRecordError(f"payloads must be bytes or None, got {payload!r}.")
    return payload


def _document_id(document_id: Any) -> str | None:
    if document_id is None:
        return None
    if not isinstance(document_id, str):
        raise InvalidRecordError(f"document_ids must be strings or None, got {document_id!r}.")
    return _check_unicode(document_id, "a document id", null=False)


def _check_unicode(text: str, what: str, *, null: bool) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRecordError(
            f"{what} is not valid Unicode ({error.reason} at {error.start}); "
            "clean it with text.encode(errors='replace').decode()."
        ) from error
    if not null and "\0" in text:
        raise InvalidRecordError(f"{what} holds a null character; remove it.")
    return text


def _encode_metadata(metadata: Mapping[str, Any] | None) -> str:
    """Return metadata as JSON.

    Raises:
        InvalidRecordError: A value is not JSON (tuples are stored as lists), or is NaN.
    """
    if metadata is None:
        return "{}"
    if not isinstance(metadata, Mapping):
        raise InvalidRecordError(f"metadata must be dicts or None, got {metadata!r}.")
    metadata = dict(metadata)
    _check_json(metadata, "metadata")
    try:
        return msgspec.json.encode(metadata).decode()
    except (TypeError, ValueError, UnicodeError) as error:
        raise InvalidRecordError(f"metadata cannot be stored as JSON: {error}") from error


def decode_metadata(stored: str) -> dict[str, Any]:
    """Return the metadata of a stored row."""
    metadata: dict[str, Any] = _metadata_decoder.decode(stored)
    return metadata


_MAX_DEPTH: Final = 100
_metadata_decoder = msgspec.json.Decoder(dict[str, Any])


def _check_json(value: Any, where: str, depth: int = 0) -> None:
    if depth > _MAX_DEPTH:
        raise InvalidRecordError(
            f"{where[:80]}… is nested too deeply to be stored, or holds itself."
        )
    if value is None or isinstance(value, (bool, int)):
        return
    if isinstance(value, str):
        _check_unicode(value, where, null=False)
        return
    if isinstance(value, float):
        if math.isfinite(value):
            return
    elif isinstance(value, (list, tuple)):
        for position, item in enumerate(value):
            _check_json(item, f"{where}[{position}]", depth + 1)
        return
    elif isinstance(value, dict) and all(isinstance(key, str) for key in value):
        for key, item in value.items():
            _check_unicode(key, f"a key of {where}", null=False)
            _check_json(item, f"{where}[{key!r}]", depth + 1)
        return
    raise InvalidRecordError(
        f"{where} is {value!r} ({type(value).__name__}), which JSON cannot hold; store strings, "
        "finite numbers, booleans, None, lists and dicts with string keys."
    )
