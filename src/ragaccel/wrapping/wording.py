"""Questions in other words that are the same: case, white space and the forms of characters."""

from __future__ import annotations

import unicodedata
import uuid
import weakref
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ragaccel.cache import Uncacheable

if TYPE_CHECKING:
    from collections.abc import Callable


_tokens: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()


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
    """Return what tells a function apart from others: its name, and what it was bound to.

    One without a name of its own, such as a lambda, a method or an object that can be called, is
    told apart by what it is, and so in this process only.

    Raises:
        Uncacheable: It is an object of which that cannot be told.
    """
    bound: Any = None
    named: Any = normalise
    if isinstance(normalise, partial):
        named, bound = normalise.func, [list(normalise.args), normalise.keywords]
    name = getattr(named, "__qualname__", "<")
    owner = getattr(named, "__self__", None)
    if "<" in name or not (owner is None or isinstance(owner, ModuleType)):
        try:
            return _tokens.setdefault(named, uuid.uuid4().hex), bound
        except TypeError as error:
            raise Uncacheable("normalise") from error
    return getattr(named, "__module__", None), name, bound
