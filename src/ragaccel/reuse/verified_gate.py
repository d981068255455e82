"""What two questions must have in common before their vectors are compared: plain, without a model.

Numbers, negations and names must be the same; the same words must not stand in another order, and
questions must not be the same but for some words in the place of others, such as "more" for "less":
vectors hardly tell them apart.
"""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING, Final, NamedTuple
from zlib import crc32

import numpy as np

from ragaccel.cache import digest

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: How many words in the place of others make another question, where this share is the same.
_REPLACED: Final = 2
_SAME: Final = 2 / 3
#: From so many words on a question is not part of another one by chance.
_TELLING: Final = 5
_WORD: Final = re.compile(r"\d+(?:[.,:/]\d+)*|\w+(?:['’]\w+)*")  # noqa: RUF001 - as people type it
_SENTENCE_END: Final = '.!?:…。！？"“„«'  # noqa: RUF001 - see above
_NEGATIONS: Final = frozenset(
    """
    no not never none nobody nothing neither nor without cannot except
    nicht kein keine keinen keinem keiner nie niemals ohne nichts außer
    ne pas jamais sans rien aucun aucune
    nunca jamás sin nada ningún ninguna non mai senza niente nessun nessuna
    não nem sem nenhum nenhuma niet geen nooit zonder
    inte ej aldrig utan ikke aldri uden uten bez nigdy ei
    не нет без ни никогда
    """.split()  # noqa: SIM905 - a list would be a page
)
_SIGNS: Final = frozenset("不没沒無无非未")
#: English words that numbers are spoken with. Not "one": it stands for a thing as often.
_NUMBERS: Final = {
    word: str(number)
    for number, word in enumerate(
        ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"), start=2
    )
}


class Gate(NamedTuple):
    """What is compared of a question; it does not tell the words.

    Attributes:
        facts: A digest of its numbers, negations and names.
        words: A hash of each word, in their order.
    """

    facts: bytes
    words: NDArray[np.uint32]

    def lets(self, other: Gate) -> bool:
        """Tell whether two questions may be compared by their vectors."""
        return (
            self.facts == other.facts
            and not _is_reordered(self.words, other.words)
            and not _is_replaced(self.words, other.words)
        )

    def extends(self, other: Gate) -> bool:
        """Tell whether a question is another one with words added, as by who corrects himself."""
        if not _TELLING <= len(other.words) < len(self.words):
            return False
        mine = iter(self.words.tolist())
        return all(word in mine for word in other.words.tolist())  # each after the one before


def gate(question: str) -> Gate:
    """Return what is compared of a question."""
    text = unicodedata.normalize("NFKC", question)
    found = list(_WORD.finditer(text))
    words = [one.group() for one in found]
    plain = [one.casefold() for one in words]
    numbers = sorted(
        _NUMBERS.get(word, word) for word in plain if word[0].isdigit() or word in _NUMBERS
    )
    negations = sum(
        word in _NEGATIONS or word.endswith(("n't", "n’t"))  # noqa: RUF001 - as people type it
        or (not word.isascii() and not _SIGNS.isdisjoint(word))
        for word in plain
    )  # fmt: skip
    names = [word for at, word in enumerate(words) if _is_name(text, found[at].start(), word)]
    facts = [numbers, negations % 2, [one.casefold() for one in names]]
    hashes = [crc32(word.encode()) for word in plain]
    return Gate(digest("", "reuse.gate", facts)[:8], np.array(hashes, np.uint32))


def _is_name(text: str, at: int, word: str) -> bool:
    """Tell whether a word is written as a name, though no sentence begins with it."""
    if not word[0].isupper() or (len(word) == 1 and word == "I"):
        return False
    before = text[:at].rstrip()
    return bool(before) and before[-1] not in _SENTENCE_END


def _is_reordered(mine: NDArray[np.uint32], other: NDArray[np.uint32]) -> bool:
    return (
        len(mine) == len(other)
        and not np.array_equal(mine, other)
        and np.array_equal(np.sort(mine), np.sort(other))
    )


def _is_replaced(mine: NDArray[np.uint32], other: NDArray[np.uint32]) -> bool:
    """Tell whether all but one or two words in one place are the same."""
    shorter, longer = sorted((len(mine), len(other)))
    before = _shared(mine, other, shorter)
    shared = before + _shared(mine[::-1], other[::-1], shorter - before)
    return shorter - shared > 0 and longer - shared <= _REPLACED and shared >= _SAME * longer


def _shared(mine: NDArray[np.uint32], other: NDArray[np.uint32], most: int) -> int:
    """Return with how many of the same words two questions begin."""
    differ = np.flatnonzero(mine[:most] != other[:most])
    return int(differ[0]) if len(differ) else most
