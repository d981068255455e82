"""Which calls of language models may be answered as a similar question was; see `VerifiedReuse`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, MessageRole, TextBlock

from ragaccel.llamaindex.prompts import canonical
from ragaccel.wrapping.semantic import asks_for_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ragaccel.llamaindex.responses import Answer

#: What a message carries where its answer is more than a text.
_CALLS: Final = frozenset(("tool_calls", "function_call"))


def asked(
    model: Any, given: Sequence[Any], kwargs: Mapping[str, Any], *, is_chat: bool
) -> tuple[str, Any] | None:
    """Return the text of a question, and what else of the call decides the answer.

    Args:
        model: The model.
        given: The messages, or the prompt and whether it is formatted.
        kwargs: The other arguments.
        is_chat: Whether they are messages.
    """
    own = getattr(model, "additional_kwargs", None) or {}
    if not given or not asks_for_text(kwargs, own):
        return None
    if not is_chat:
        return (given[0], canonical(given[1:])) if isinstance(given[0], str) else None
    last = given[0][-1] if given[0] else None
    if not isinstance(last, ChatMessage) or last.role != MessageRole.USER:
        return None
    if len(last.blocks) != 1 or type(last.blocks[0]) is not TextBlock or not last.blocks[0].text:
        return None
    return last.blocks[0].text, (canonical(given[0][:-1]), canonical(last.additional_kwargs))


def said(answer: Answer) -> str | None:
    """Return the text of an answer, or None for one that calls tools or is none."""
    last = answer.responses[-1] if answer.responses else None
    if not isinstance(last, ChatResponse):
        return last.text or None if last is not None else None
    blocks = last.message.blocks
    if (
        not _CALLS.isdisjoint(last.message.additional_kwargs)
        or len(blocks) != 1
        or type(blocks[0]) is not TextBlock
    ):
        return None
    return blocks[0].text or None
