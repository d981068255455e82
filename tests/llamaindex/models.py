"""Language models that tell of their calls as providers' do, and need no network."""

from __future__ import annotations

from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    LLMMetadata,
    MessageRole,
)
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.llm import LLM
from pydantic import PrivateAttr


class Provider(LLM):
    """Answers with how often it was asked and what it was asked, word by word."""

    model_name: str = "words"
    temperature: float = 0.0
    api_key: str = "secret"
    _calls: list[str] = PrivateAttr(default_factory=list)

    @classmethod
    def class_name(cls) -> str:
        return "Provider"

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name=self.model_name)

    def words(self, asked: Any) -> list[str]:
        """Count the call and return the words of the answer."""
        self._calls.append(str(asked))
        if "fail" in str(asked):
            raise ConnectionError("the provider is away")
        return [f"{len(self._calls)}. ", self.model_name, " heard ", str(asked)]

    def chats(self, words: list[str]) -> list[ChatResponse]:
        return [
            ChatResponse(
                message=ChatMessage(
                    role=MessageRole.ASSISTANT, content="".join(words[: at + 1]),
                    additional_kwargs={"at": at},
                ),
                delta=word,
                raw={"usage": {"prompt_tokens": 3, "completion_tokens": at + 1}},
            )
            for at, word in enumerate(words)
        ]  # fmt: skip

    def texts(self, words: list[str]) -> list[CompletionResponse]:
        return [
            CompletionResponse(text="".join(words[: at + 1]), delta=word, raw={"at": at})
            for at, word in enumerate(words)
        ]

    @llm_chat_callback()
    def chat(self, messages, **kwargs):
        whole = "".join(self.words(messages[-1].content))
        return ChatResponse(
            message=ChatMessage(role=MessageRole.ASSISTANT, content=whole),
            raw={"usage": {"prompt_tokens": 3, "completion_tokens": 4}},
        )

    @llm_completion_callback()
    def complete(self, prompt, formatted=False, **kwargs):
        return CompletionResponse(text="".join(self.words(prompt)), raw={"whole": True})

    @llm_chat_callback()
    def stream_chat(self, messages, **kwargs):
        def gen():
            for one in self.chats(self.words(messages[-1].content)):
                yield one
                if "break" in messages[-1].content:
                    raise ConnectionError("the stream broke")

        return gen()

    @llm_completion_callback()
    def stream_complete(self, prompt, formatted=False, **kwargs):
        def gen():
            yield from self.texts(self.words(prompt))

        return gen()

    @llm_chat_callback()
    async def achat(self, messages, **kwargs):
        whole = "".join(self.words(messages[-1].content))
        return ChatResponse(
            message=ChatMessage(role=MessageRole.ASSISTANT, content=whole),
            raw={"usage": {"prompt_tokens": 3, "completion_tokens": 4}},
        )

    @llm_completion_callback()
    async def acomplete(self, prompt, formatted=False, **kwargs):
        return CompletionResponse(text="".join(self.words(prompt)), raw={"whole": True})

    @llm_chat_callback()
    async def astream_chat(self, messages, **kwargs):
        async def gen():
            for one in self.chats(self.words(messages[-1].content)):
                yield one
                if "break" in messages[-1].content:
                    raise ConnectionError("the stream broke")

        return gen()

    @llm_completion_callback()
    async def astream_complete(self, prompt, formatted=False, **kwargs):
        async def gen():
            for one in self.texts(self.words(prompt)):
                yield one

        return gen()


class Quiet(Provider):
    """A provider that does not tell of its calls."""

    def chat(self, messages, **kwargs):
        return ChatResponse(
            message=ChatMessage(role="assistant", content=self.words(messages[-1].content)[0])
        )
