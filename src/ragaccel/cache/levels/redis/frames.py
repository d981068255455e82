"""RESP3, as far as a listener needs it: a stream of bytes cut into values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

_BULKS = frozenset(b"$=!")
_LISTS = frozenset(b"*>~")
_MAPS = frozenset(b"%|")


class Frame(NamedTuple):
    """One whole value.

    Attributes:
        sort: The byte that RESP3 begins it with: `>` for what was not asked for, `-` for an error.
        value: Bytes, None or a list of values.
    """

    sort: bytes
    value: Any


class _Open(NamedTuple):
    """A list that is not complete yet."""

    sort: bytes
    items: list[Any]
    length: int


class Frames:
    """Takes the bytes as they come and gives the frames that are complete."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._open: list[_Open] = []

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Take bytes in and yield what they complete."""
        self._buffer += data
        at = 0
        while (end := self._buffer.find(b"\r\n", at)) >= 0:
            sort, rest = self._buffer[at], bytes(self._buffer[at + 1 : end])
            at, begun = end + 2, at
            value: Any = rest
            if sort in _BULKS:
                length = int(rest)
                if length >= 0 and len(self._buffer) < at + length + 2:
                    at = begun
                    break
                value = None if length < 0 else bytes(self._buffer[at : at + length])
                at += length + 2 if length >= 0 else 0
            elif sort in _LISTS or sort in _MAPS:
                length = int(rest) * (2 if sort in _MAPS else 1)
                if length > 0:
                    self._open.append(_Open(bytes((sort,)), [], length))
                    continue
                value = None if length < 0 else []
            elif sort == ord("_"):
                value = None
            complete = self._place(bytes((sort,)), value)
            if complete is not None:
                yield complete
        del self._buffer[:at]

    def _place(self, sort: bytes, value: Any) -> Frame | None:
        """Put a value where it belongs; return the frame that this completes."""
        while self._open:
            last = self._open[-1]
            last.items.append(value)
            if len(last.items) < last.length:
                return None
            self._open.pop()
            sort, value = last.sort, last.items
        return Frame(sort, value)
