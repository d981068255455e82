"""LangChain's own conformance suites for chat models: the plain `ChatOpenAI`, and the wrapped one.

Both talk to a server that speaks the OpenAI API. The wrapped one passes every test twice over one
cache: it asks the first time, and is served from the cache the second time.
"""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.load import dumpd
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from ragaccel import MultiLevelCache, accelerate
from tests.support.openai_server import OpenAIServer

#: Asks with other ids of tool calls every time, so that no two of its questions are the same.
NEW_EVERY_TIME = "test_structured_few_shot_examples"
#: What LangChain and openai warn about in their own code.
pytestmark = [
    pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning"),
    pytest.mark.filterwarnings("ignore:The method `BaseChatModel.dict` was deprecated"),
    pytest.mark.filterwarnings("ignore:Pydantic serializer warnings"),
    pytest.mark.filterwarnings("ignore:Received a Pydantic BaseModel V1 schema"),
    pytest.mark.enable_socket,
]


@pytest.fixture(scope="module")
def listening():
    with OpenAIServer() as server:
        yield server


@pytest.fixture(scope="class")
def shared():
    """A cache, and the names of the tests that have asked over it."""
    with MultiLevelCache.open() as cache:
        yield cache, set()


class _Plain:
    """What both suites ask of a model, for the class as it is."""

    @pytest.fixture(autouse=True)
    def _listening(self, listening):
        listening.reset()
        self.server = listening

    @property
    def chat_model_class(self) -> type[ChatOpenAI]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {
            "model": "gpt-x", "temperature": 0, "base_url": self.server.base_url,
            "api_key": "secret", "stream_usage": True,
        }  # fmt: skip

    @property
    def init_from_env_params(self):
        environment = {"OPENAI_API_KEY": "of the environment", "OPENAI_API_BASE": "http://env"}
        given = {"model": "gpt-x", "temperature": 0}
        expected = {"openai_api_key": "of the environment", "openai_api_base": "http://env"}
        return environment, given, expected

    @property
    def model_override_value(self) -> str:
        return "gpt-y"

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True

    @pytest.fixture
    def snapshot(self):
        """What a model is written as: as the plain class with the same settings."""
        plain = ChatOpenAI(**{**self.standard_chat_model_params, **self.chat_model_params})
        return lambda name: dumpd(plain)

    @pytest.fixture
    def benchmark(self):
        """Time nothing."""
        return lambda work: work()


class _Accelerated(_Plain):
    """The same for wrapped models, which share a cache."""

    @pytest.fixture(params=["first", "again"], autouse=True)
    def _cached(self, request, _listening, shared):
        self.cache, asked = shared
        test, misses = request.node.name.replace("again", "first"), self.cache.stats().misses
        yield
        stats = self.cache.stats()
        assert stats.bypasses == stats.errors == {}
        if test in asked and not test.startswith(NEW_EVERY_TIME):
            assert stats.misses == misses
            assert self.server.requests == []
        asked.add(test)

    @property
    def chat_model_class(self) -> type[ChatOpenAI]:
        cache = self.cache

        class Accelerated(ChatOpenAI):
            """Makes plain models, and wraps them."""

            def __new__(cls, **params):
                return accelerate(ChatOpenAI(**params), cache=cache)

        return Accelerated


class TestPlainUnit(_Plain, ChatModelUnitTests):
    """The unit suite for the plain class."""


class TestAcceleratedUnit(_Accelerated, ChatModelUnitTests):
    """The unit suite for wrapped models."""


class TestPlainIntegration(_Plain, ChatModelIntegrationTests):
    """The integration suite for the plain class."""


class TestAcceleratedIntegration(_Accelerated, ChatModelIntegrationTests):
    """The integration suite for wrapped models."""
