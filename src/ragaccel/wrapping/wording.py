"""Questions in other words that are the same: case, white space and the forms of characters."""

from __future__ import annotations

import unicodedata
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


def same_words(*, case: bool = True, space: bool = True) -> Callable[[str], str]:
    """Return a function that gives all spellings of the same words the same text.

    Characters are brought into Unicode's form NFKC, which makes one of full-width and ordinary
    letters, of ligatures and their letters, and of x² and x2.

    Args:
        case: Whether capitals and small letters are the same.
        space: Whether white space at the ends is left out, and any within is one space.
    """
    return partial(_same_words, case=case, space=space)


def _same_words(text: str, *, case: bool, space: bool) -> str:
    text = unicodedata.normalize("NFKC", text)
    if case:
        text = unicodedata.normalize("NFKC", text.casefold())
    return " ".join(text.split()) if space else text


def wording_name(normalise: Callable[[str], str]) -> Any:
    """Return what tells a function apart from others: its name, and what it was bound to."""
    bound: Any = None
    named: Any = normalise
    if isinstance(normalise, partial):
        named, bound = normalise.func, [list(normalise.args), normalise.keywords]
    if not hasattr(named, "__qualname__"):
        named = type(named)
    return getattr(named, "__module__", None), named.__qualname__, bound
