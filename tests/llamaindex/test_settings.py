"""An application that takes its models from LlamaIndex's settings is cached without a change."""

from __future__ import annotations

import pytest
from llama_index.core import Document, Settings, VectorStoreIndex

from ragaccel.errors import RagaccelWarning
from ragaccel.llamaindex import accelerated_settings
from tests.llamaindex.embeddings import HashEmbedding
from tests.llamaindex.models import Provider


@pytest.fixture
def models(monkeypatch):
    """The application's own."""
    llm, embed_model = Provider(), HashEmbedding()
    monkeypatch.setattr(Settings, "_llm", llm)
    monkeypatch.setattr(Settings, "_embed_model", embed_model)
    return llm, embed_model


def application():
    """What knows nothing of ragaccel."""
    index = VectorStoreIndex.from_documents([Document(text="red trees"), Document(text="blue")])
    return str(index.as_query_engine().query("what is red?"))


def test_an_application_is_served(models, cache):
    """It asks its models once, and gets what it got."""
    expected = application()
    llm, embed_model = models
    llm._calls.clear()
    with accelerated_settings(cache):
        assert application() == application()
        assert len(Settings.llm._calls) == 1
    assert expected.split(". ", 1)[1] in application()
    assert (Settings.llm, Settings.embed_model) == (llm, embed_model)


def test_options_are_those_of_accelerate(models, cache):
    """Tenants, and samples."""
    llm, _ = models
    for tenant in ("a", "b", "a"):
        with accelerated_settings(cache, namespace=tenant):
            Settings.llm.complete("hello")
    assert cache.stats().namespaces["a"].misses == 1
    llm.temperature = 0.5
    with pytest.warns(RagaccelWarning, match="samples"), accelerated_settings(cache):
        pass
    assert Settings.llm is llm


def test_what_the_application_sets_meanwhile_is_kept(models, cache):
    """It is its own, and is not wrapped."""
    other = Provider(model_name="other")
    with accelerated_settings(cache):
        Settings.llm = other
    assert Settings.llm is other
    assert Settings.embed_model is models[1]


def test_what_is_not_set_is_not_asked_for(monkeypatch, cache):
    """LlamaIndex would look for OpenAI's."""
    monkeypatch.setattr(Settings, "_llm", None)
    monkeypatch.setattr(Settings, "_embed_model", None)
    with accelerated_settings(cache):
        assert Settings._llm is None
