"""Recorded traffic: what was asked, when, and what was found."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, overload

import msgspec

from ragaccel.errors import ConfigurationError

if TYPE_CHECKING:
    import os

    from typing_extensions import Self

_KEY_BYTES: Final = 16


class Asked(msgspec.Struct, frozen=True):
    """One request.

    Attributes:
        at: When it came, seconds since the first one of its traffic.
        query: What was asked; None where content is not recorded.
        key: A digest of the query, keyed where content is not recorded; equal for equal queries.
        arguments: What else it was asked with, such as `k`; JSON values.
        ids: Ids of the documents that were found, best first.
        seconds: How long it took.
        error: The name of the exception that ended it.
    """

    at: float
    query: str | None
    key: bytes
    arguments: dict[str, Any] = {}
    ids: tuple[str, ...] = ()
    seconds: float = 0.0
    error: str | None = None


def query_key(query: str, secret: bytes = b"") -> bytes:
    """Return the `Asked.key` of a query.

    Args:
        query: The query.
        secret: At most 64 bytes; who does not know them cannot tell which query it was by trying.
    """
    text = query.encode(errors="surrogatepass")
    return hashlib.blake2b(text, digest_size=_KEY_BYTES, key=secret).digest()


_encoder: Final = msgspec.json.Encoder()
_decoder: Final = msgspec.json.Decoder(Asked)


def encode_line(asked: Asked) -> bytes:
    """Return a request as a line of a file, its line feed included.

    Raises:
        TypeError: An argument is no JSON value.
        ValueError: A text that is not Unicode.
    """
    return _encoder.encode(asked) + b"\n"


class Traffic(Sequence[Asked]):
    """Requests in the order in which they came; it does not change.

    Args:
        requests: In any order, with times that count from anywhere: they are put in order, and
            count from the first one.
        left_out: How many lines of the file were damaged; see `read`.
    """

    def __init__(self, requests: Iterable[Asked], *, left_out: int = 0) -> None:
        found = sorted(requests, key=lambda one: one.at)
        first = found[0].at if found else 0.0
        if first:
            found = [msgspec.structs.replace(one, at=one.at - first) for one in found]
        self._requests: Final = tuple(found)
        self.left_out: Final = left_out

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """Return what a `TrafficRecorder` or `write` has written.

        Lines that are damaged, or cut by a crash, are left out and counted in `left_out`.

        Args:
            path: The file.

        Raises:
            ConfigurationError: It cannot be read, or no line of it is a request.
        """
        try:
            lines = [one for one in Path(path).read_bytes().splitlines() if one.strip()]
        except OSError as error:
            raise ConfigurationError(
                f"no traffic can be read from {str(path)!r}: {error.strerror}; give the path of a "
                "file that a TrafficRecorder has written."
            ) from error
        requests = [one for one in map(_decoded, lines) if one is not None]
        if lines and not requests:
            raise ConfigurationError(
                f"none of the {len(lines):,} lines of {str(path)!r} is a request; give the path of "
                "a file that a TrafficRecorder has written."
            )
        return cls(requests, left_out=len(lines) - len(requests))

    @classmethod
    def of(cls, queries: Iterable[str]) -> Self:
        """Return traffic that asks queries all at once, with nothing found yet.

        Args:
            queries: In order.

        Raises:
            ConfigurationError: One of them is no string.
        """
        if isinstance(queries, str):
            raise ConfigurationError(f"queries must be several strings, got one: {queries!r}.")
        found = list(queries)
        for one in found:
            if not isinstance(one, str):
                raise ConfigurationError(f"a query must be a string, got {type(one).__name__}.")
        return cls(Asked(0.0, one, query_key(one)) for one in found)

    def split(self, share: float) -> tuple[Self, Self]:
        """Return the earlier requests and the later ones.

        Args:
            share: How many of the requests are earlier ones, over 0 and under 1.

        Raises:
            ConfigurationError: A share outside of that.
        """
        if not 0 < share < 1:
            raise ConfigurationError(f"share must be over 0 and under 1, got {share!r}.")
        cut = round(len(self) * share)
        return type(self)(self._requests[:cut]), type(self)(self._requests[cut:])

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write it to a file, as JSON lines; what the file held is lost.

        Args:
            path: The file.

        Raises:
            ConfigurationError: It cannot be written.
        """
        try:
            Path(path).write_bytes(b"".join(map(encode_line, self._requests)))
        except OSError as error:
            raise ConfigurationError(
                f"no traffic can be written to {str(path)!r}: {error.strerror}; give the path of a "
                "file, in a folder that exists."
            ) from error

    def __len__(self) -> int:
        return len(self._requests)

    @overload
    def __getitem__(self, index: int) -> Asked: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...
    def __getitem__(self, index: int | slice) -> Asked | Self:
        if isinstance(index, slice):
            return type(self)(self._requests[index])
        return self._requests[index]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Traffic) and self._requests == other._requests

    def __hash__(self) -> int:
        return hash(tuple((one.at, one.key) for one in self._requests))

    def __repr__(self) -> str:
        seconds = self._requests[-1].at if self._requests else 0.0
        return f"<Traffic: {len(self):,} requests in {seconds:,.1f} s>"


def _decoded(line: bytes) -> Asked | None:
    try:
        return _decoder.decode(line)
    except msgspec.DecodeError:
        return None
