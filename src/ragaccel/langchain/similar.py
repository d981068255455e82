"""Which calls of language models may be answered as a similar question was; see `VerifiedReuse`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from langchain_core.messages import HumanMessage

from ragaccel.langchain.calls import canonical, check_one_answer
from ragaccel.wrapping.fingerprint import identity
from ragaccel.wrapping.sampling import check_sampling
from ragaccel.wrapping.semantic import asks_for_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from langchain_core.messages import BaseMessage

    from ragaccel.wrapping.seam import Options

#: What a message carries where its answer is more than a text.
_MORE: Final = frozenset(("tool_calls", "function_call", "parsed"))
_NO_TEXT: Final = {"content": ""}


def of_messages(
    model: Any,
    options: Options,
    messages: Sequence[BaseMessage],
    stop: list[str] | None,
    asked: Mapping[str, Any],
) -> tuple[str, Any] | None:
    """Return the last message's text, and everything else that decides the answer.

    Args:
        model: The model.
        options: What `accelerate` was asked for.
        messages: System prompt, history and question.
        stop: Where it stops.
        asked: The other arguments.
    """
    last = messages[-1] if messages else None
    if type(last) is not HumanMessage or not isinstance(last.content, str) or not last.content:
        return None
    rest = [canonical(one) for one in messages[:-1]], canonical(last.model_copy(update=_NO_TEXT))
    return of_text(model, options, last.content, stop, asked, rest)


def of_text(
    model: Any,
    options: Options,
    text: str,
    stop: list[str] | None,
    asked: Mapping[str, Any],
    rest: Any = None,
) -> tuple[str, Any] | None:
    """Return a prompt's text, and everything else that decides the answer; see `of_messages`."""
    own = getattr(model, "model_kwargs", None) or {}
    if not asks_for_text(asked, own):
        return None
    check_one_answer(model, dict(asked))
    check_sampling(model, options, dict(asked))
    return text, (identity(model, options), rest, stop, dict(asked))


def said(generations: Sequence[Any], *, is_stream: bool) -> str | None:
    """Return the text of an answer, or None for one that calls tools, or is several or none.

    Args:
        generations: What the model gave, or the chunks of it.
        is_stream: Whether they are chunks.
    """
    if not is_stream and len(generations) != 1:
        return None
    for one in generations:
        message = getattr(one, "message", None)
        if message is not None and not _is_text(message):
            return None
    return "".join(one.text for one in generations) or None


def _is_text(message: Any) -> bool:
    calls = (
        message.tool_calls
        or message.invalid_tool_calls
        or getattr(message, "tool_call_chunks", None)
    )
    more = _MORE.isdisjoint(message.additional_kwargs)
    return isinstance(message.content, str) and not calls and more
