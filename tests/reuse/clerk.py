"""A chat model that answers by what a question is about, and questions that people would ask it."""

from __future__ import annotations

import asyncio

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from pydantic import PrivateAttr

from tests.langchain.embeddings import HashEmbeddings

EMBED = HashEmbeddings()
#: Each of words of its own, so that questions about the same are near each other.
TOPICS = tuple(
    f"{word}y {word}ish {word}"
    for word in (
        "shoe", "hat", "coat", "sock", "glove", "belt", "tie", "scarf", "shirt", "skirt", "boot",
        "jean",
    )
)  # fmt: skip
WORDINGS = (
    "show me {}", "please show me {}", "show me some {}", "now show me {}", "do show me {}",
    "just show me {}", "could you show me {}", "well show me {}",
)  # fmt: skip
#: Another wording, which none of the tests teaches.
NEW = "kindly show me {}"


class Clerk(BaseChatModel):
    """Says which of the topics a question is about."""

    temperature: float = 0
    name_of_model: str = "clerk"
    _asked: list[str] = PrivateAttr(default_factory=list)
    _style: list[str] = PrivateAttr(default_factory=lambda: ["about {}"])

    @property
    def _llm_type(self) -> str:
        return "clerk"

    @property
    def asked(self) -> list[str]:
        """What it was asked."""
        return self._asked

    def answer_so(self, style: str) -> None:
        """Answer in another way from now on; `{}` is the topic and `{n}` the number of calls."""
        self._style[:] = [style]

    def _answered(self, messages) -> ChatResult:
        question = messages[-1].content
        self._asked.append(question)
        text = self._style[0].format(question.split()[-1], n=len(self._asked))
        return ChatResult(generations=[ChatGeneration(message=AIMessage(content=text))])

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        return self._answered(messages)

    async def _agenerate(self, messages, stop=None, run_manager=None, **kwargs):
        await asyncio.sleep(0)
        return self._answered(messages)


def questions() -> list[str]:
    """Return every wording of every topic."""
    return [wording.format(topic) for wording in WORDINGS for topic in TOPICS]


def teach(model) -> None:
    """Ask everything once."""
    for question in questions():
        model.invoke(question)
