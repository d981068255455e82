"""Streaming models of both frameworks whose work can be seen in a trace: a span for each word."""

from __future__ import annotations

import asyncio
import contextlib

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from llama_index.core.base.llms.types import CompletionResponse
from llama_index.core.llms.callbacks import llm_completion_callback
from opentelemetry import trace

from tests.llamaindex.models import Provider

WORDS = ("a ", "red ", "tree ")


@contextlib.contextmanager
def working(question):
    """What a model does for one word: its client's own span is there meanwhile."""
    with trace.get_tracer("tests").start_as_current_span("model"):
        yield
        if "fail" in question:
            raise ConnectionError("the provider is away")


class TalkingChat(BaseChatModel):
    """LangChain's: says three words, one at a time."""

    @property
    def _llm_type(self):
        return "talking"

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        with working(messages[-1].content):
            message = AIMessage("".join(WORDS))
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _stream(self, messages, stop=None, run_manager=None, **kwargs):
        for word in WORDS:
            with working(messages[-1].content):
                chunk = ChatGenerationChunk(message=AIMessageChunk(content=word))
            yield chunk

    async def _astream(self, messages, stop=None, run_manager=None, **kwargs):
        for word in WORDS:
            with working(messages[-1].content):
                await asyncio.sleep(0)
            yield ChatGenerationChunk(message=AIMessageChunk(content=word))


class TalkingLLM(Provider):
    """LlamaIndex's: the same."""

    @llm_completion_callback()
    def stream_complete(self, prompt, formatted=False, **kwargs):
        def gen():
            for word in WORDS:
                with working(prompt):
                    response = CompletionResponse(text=word, delta=word)
                yield response

        return gen()

    @llm_completion_callback()
    async def astream_complete(self, prompt, formatted=False, **kwargs):
        async def gen():
            for word in WORDS:
                with working(prompt):
                    await asyncio.sleep(0)
                yield CompletionResponse(text=word, delta=word)

        return gen()
