"""What ingestion has to know of a framework, and the adapter for collections without any."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any, Final

import msgspec

from ragaccel.cache import Uncacheable
from ragaccel.errors import ConfigurationError, InvalidRecordError
from ragaccel.ingest.chunks import Chunk, chunk_ids, document_mark, model_mark
from ragaccel.ingest.described import digest_of
from ragaccel.vectors import VectorCollection
from ragaccel.wrapping.fingerprint import fingerprint, function_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ragaccel.ingest.chunks import Task
    from ragaccel.ingest.worker import Split
    from ragaccel.vectors import Record

#: Where stores come from -> the module whose `adapter` knows their documents.
_STORES: Final = {
    "ragaccel.llamaindex.": "ragaccel.llamaindex.ingest",
    "ragaccel.langchain.": "ragaccel.langchain.ingest",
}
#: How models of both frameworks, and of the demo, are asked for the vectors of several texts.
_METHODS: Final = ("embed_documents", "get_text_embedding_batch", "embed")

Key = str | Callable[[Any], Any] | None


@dataclass(frozen=True)
class Adapter:
    """The documents, chunks and embeddings of a store.

    Attributes:
        collection: Where rows go.
        model: What embeds, to be told apart from others.
        embed: Gives the vectors of texts, of shape (n, dim) or a list of lists.
        identify: Gives the id of a document.
        content: Gives the bytes of everything that decides a document's chunks.
        split: Makes the chunks of a document; can be pickled if `transformation` can.
        transformation: What the user gave; None where a document is its own chunk.
        embedded: Gives the text that a stored row was embedded as.
    """

    collection: VectorCollection
    model: Any
    embed: Callable[[list[str]], Any]
    identify: Callable[[Any], Any]
    content: Callable[[Any], bytes]
    split: Split
    transformation: Any
    embedded: Callable[[Record], str]


@dataclass(frozen=True)
class Source:
    """A document as it was read.

    Attributes:
        document: The framework's object.
        id: Its id.
        mark: What its chunks are named by, whether or not they are.
        size: About how many bytes it takes.
    """

    document: Any
    id: str
    mark: str
    size: int


class Reader:
    """Tells documents apart.

    Attributes:
        model: What all ids begin with of chunks that the model embeds; None if it cannot be told
            from others.
    """

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter
        self.model = _mark_of(adapter.model)
        self._begin = self.model or model_mark()
        self._transformation = digest_of(adapter.transformation)

    def read(self, document: Any) -> Source:
        """Return what is to be known of a document.

        Raises:
            InvalidRecordError: It has no id.
            Exception: It is none.
        """
        content = self._adapter.content(document)
        id_ = self._adapter.identify(document)
        if id_ is None:
            id_ = hashlib.blake2b(content, digest_size=20).hexdigest()
        if not isinstance(id_, str) or not id_:
            raise InvalidRecordError(f"the id of a document is a non-empty string, got {id_!r}.")
        mark = document_mark(self._begin, id_.encode(), content, self._transformation)
        return Source(document, id_, mark, len(content))


def adapter_of(into: Any, embed: Any, transform: Any, key: Key) -> Adapter:
    """Return the adapter of a store.

    Raises:
        ConfigurationError: It is none of ours, or an argument does not fit it.
    """
    names = [f"{base.__module__}." for base in type(into).__mro__]
    home = next((_STORES[one] for one in _STORES for name in names if name.startswith(one)), None)
    if home is not None:
        made: Adapter = import_module(home).adapter(into, embed, transform, key)
        return made
    if not isinstance(into, VectorCollection):
        raise ConfigurationError(
            "into is a CompressedVectorStore of ragaccel.llamaindex or ragaccel.langchain, or a "
            f"VectorCollection, got {type(into).__name__}."
        )
    if embed is None:
        raise ConfigurationError("a collection has no embedding model; pass embed=.")
    if transform is not None and not callable(transform):
        raise not_a_transformation(transform, "a function of (id, text, metadata)")
    return Adapter(
        into, embed, embedding_of(embed), identifier(key, _id_of, _metadata_of), _content_of,
        _Split(transform), transform, lambda row: row.text or "",
    )  # fmt: skip


def embedding_of(model: Any) -> Callable[[list[str]], Any]:
    """Return the function of a model that gives vectors of texts.

    Raises:
        ConfigurationError: It has none.
    """
    found = (getattr(model, name, None) for name in _METHODS)
    call = next(filter(callable, found), model)
    if not callable(call):
        raise ConfigurationError(
            "embed is an embedding model of LlamaIndex or LangChain, or a function that gives the "
            f"vectors of a list of texts, got {type(model).__name__}."
        )
    return call


def identifier(
    key: Key, own: Callable[[Any], Any], metadata: Callable[[Any], Mapping[str, Any]]
) -> Callable[[Any], Any]:
    """Return the function that gives the id of a document.

    Args:
        key: What the user wants: a metadata field, a function, or None.
        own: Gives the id that a document has.
        metadata: Gives its metadata.
    """
    if key is None:
        return own
    if callable(key):
        return key

    def field(document: Any) -> Any:
        found = metadata(document)
        if key not in found:
            raise InvalidRecordError(f"the document has no {key!r} in its metadata.")
        return found[key]

    return field


def not_a_transformation(given: Any, wanted: str) -> ConfigurationError:
    """Return the error for a `transform` that is none."""
    return ConfigurationError(f"transform is {wanted}, got {type(given).__name__}.")


def chunks_of(made: Any) -> Any:
    """Return what a function made of a document.

    Raises:
        InvalidRecordError: It is a text, whose letters would be taken for chunks.
    """
    if isinstance(made, (str, bytes)):
        raise InvalidRecordError("transform gave a text, not a list of chunks; return [text].")
    return made


def _mark_of(model: Any) -> str | None:
    """Return the mark of a model; None if it cannot be told apart from others."""
    try:
        if isinstance(model, FunctionType):
            return model_mark(function_name(model).encode())
        if isinstance(model, MethodType):
            name, settings = fingerprint(model.__self__)
            return model_mark(name.encode(), model.__name__.encode(), settings)
        name, settings = fingerprint(model)
        return model_mark(name.encode(), settings)
    except Uncacheable:
        return None


# -- a collection without a framework --------------------------------------------------------------


def _parts(document: Any) -> tuple[str, str, Mapping[str, Any]]:
    if not isinstance(document, (tuple, list)) or len(document) not in {2, 3}:
        raise InvalidRecordError(f"a document is (id, text, metadata), got {document!r}.")
    id_, text, *rest = document
    return id_, text, (rest[0] if rest else None) or {}


def _id_of(document: Any) -> Any:
    return _parts(document)[0]


def _metadata_of(document: Any) -> Mapping[str, Any]:
    return _parts(document)[2]


def _content_of(document: Any) -> bytes:
    _, text, metadata = _parts(document)
    return msgspec.json.encode([text, metadata])


@dataclass(frozen=True)
class _Split:
    """Makes chunks of (id, text, metadata)."""

    transformation: Callable[[Any], Sequence[Any]] | None

    def __call__(self, task: Task) -> list[Chunk]:
        _, text, metadata = _parts(task.document)
        if self.transformation is None or task.mark is None:
            return [Chunk(task.id, text, dict(metadata))] if text.strip() else []
        made = [
            (one, metadata) if isinstance(one, str) else one
            for one in chunks_of(self.transformation(task.document))
        ]
        kept = [(text, own) for text, own in made if text.strip()]
        ids = chunk_ids(task.mark, len(kept))
        return [
            Chunk(id_, text, dict(own or {}), task.id)
            for id_, (text, own) in zip(ids, kept, strict=True)
        ]
