"""What was asked and answered, in spans: only where the user asked for it, and cut short."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

from ragaccel.telemetry import attributes

#: Attributes of frameworks' objects that hold their text, in the order of asking.
_TEXTS: Final = ("query_str", "page_content", "content", "text")
#: What LangChain and LlamaIndex call the roles of messages -> what the conventions do.
_ROLES: Final = {"human": "user", "ai": "assistant"}

_limit = 0
_has_openinference = False


def capture(max_chars: int, *, openinference: bool) -> None:
    """Record content from now on.

    Args:
        max_chars: How much of each text is recorded; 0 for none of any.
        openinference: Whether to record it under OpenInference's names, too.
    """
    global _limit, _has_openinference
    _limit, _has_openinference = max_chars, openinference


def asked(stage: str, query: Any) -> dict[str, str]:
    """Return the attributes of what a stage was asked."""
    if not _limit or query is None:
        return {}
    text = _text(query)
    told = {attributes.INPUT: text} if _has_openinference or stage == "embed" else {}
    if stage == "generate":
        told[attributes.INPUT_MESSAGES] = _messages(query, "user")
    elif stage != "embed":
        told[attributes.QUERY_TEXT] = text
    return told


def answered(stage: str, result: Any) -> dict[str, str]:
    """Return the attributes of what a stage gave; vectors are left out."""
    if not _limit or result is None or stage == "embed":
        return {}
    told = {attributes.OUTPUT: _text(result)} if _has_openinference else {}
    if stage == "generate":
        told[attributes.OUTPUT_MESSAGES] = _messages(result, "assistant")
    else:
        told[attributes.FOUND_DOCUMENTS] = json.dumps([_document(one) for one in _each(result)])
    return told


def _each(value: Any) -> Iterable[Any]:
    return value if isinstance(value, (list, tuple)) else (value,)


def _text(value: Any) -> str:
    """Return the text of an object, or of each of several, cut short."""
    if isinstance(value, (list, tuple)):
        return "\n".join(_text(one) for one in value)[:_limit]
    if isinstance(value, str):
        # Half a character cannot be exported, and takes all spans of a batch with it.
        return value[:_limit].encode(errors="replace").decode()
    if isinstance(value, Mapping):
        return _text(next((value[name] for name in _TEXTS if name in value), ""))
    found = (getattr(value, name, None) for name in ("node", *_TEXTS))
    return _text(next((one for one in found if one is not None), ""))


def _messages(value: Any, role: str) -> str:
    """Return messages as GenAI's conventions have them; cut before, so that it stays JSON."""
    return json.dumps(
        [
            {"role": _role(one, role), "parts": [{"type": "text", "content": _text(one)}]}
            for one in _each(value)
        ]
    )


def _role(told: Any, default: str) -> str:
    message = getattr(told, "message", told)
    role = getattr(message, "role", None) or getattr(message, "type", None) or default
    name = str(getattr(role, "value", role))
    return _ROLES.get(name, name)


def _document(found: Any) -> dict[str, Any]:
    node = getattr(found, "node", found)
    id_, score = getattr(node, "node_id", None) or getattr(node, "id", None), None
    if node is not found:
        score = getattr(found, "score", None)
    return {
        "id": None if id_ is None else str(id_),
        "score": None if score is None else float(score),
        "content": _text(found),
    }
