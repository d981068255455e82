"""What is tried, written down before it is, so that a restart finds the way back."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from ragaccel.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from typing_extensions import Self

State = Literal["trying", "applied", "rolled back", "stopped"]


class Entry(msgspec.Struct, frozen=True):
    """What became of some settings.

    Attributes:
        state: "trying", "applied", "rolled back", or "stopped" where the user has ended it.
        settings: The values that are, or were, tried; by the names of the knobs.
        was: The values before.
        reason: Why they were rolled back.
        at: When, seconds since the epoch.
    """

    state: State
    settings: dict[str, Any]
    was: dict[str, Any]
    reason: str | None = None
    at: float = 0.0


_decoder: Final = msgspec.json.Decoder(Entry)


class Journal:
    """A file of entries, held by one process; what is written has reached the disk.

    Without a file it only remembers.

    Args:
        file: A file descriptor, to read and to append; None for no file.
    """

    def __init__(self, file: int | None = None) -> None:
        self._file = file
        self._entries: list[Entry] = []
        if file is not None:
            self._read(file)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Open a file; it is made if there is none.

        Args:
            path: The file.

        Raises:
            ConfigurationError: It cannot be opened, or another process holds it.
        """
        try:
            file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigurationError(
                f"the journal {str(path)!r} cannot be opened: {error.strerror}; give the path of a "
                "file, in a folder that exists."
            ) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(file)
            raise ConfigurationError(
                f"the journal {str(path)!r} is held by another process or guard; give each its own."
            ) from error
        return cls(file)

    def last(self, name: str) -> Entry | None:
        """Return what was written last about a knob.

        Args:
            name: Of the knob.
        """
        return next((one for one in reversed(self._entries) if name in one.settings), None)

    def settled(self, name: str) -> Any:
        """Return what a knob is to be at when a process begins; None for what it is at by itself.

        Args:
            name: Of the knob.
        """
        last = self.last(name)
        if last is not None and last.state == "trying":
            return last.was[name]
        applied = [one for one in self._entries if one.state == "applied" and name in one.settings]
        return applied[-1].settings[name] if applied else None

    def write(
        self,
        state: State,
        settings: Mapping[str, Any],
        was: Mapping[str, Any],
        reason: str | None = None,
    ) -> None:
        """Write an entry, and return when it has reached the disk.

        Args:
            state: See `Entry`.
            settings: See `Entry`.
            was: See `Entry`.
            reason: See `Entry`.

        Raises:
            OSError: It cannot be written.
            TypeError: A value is no JSON value.
        """
        entry = Entry(state, dict(settings), dict(was), reason, time.time())
        if self._file is not None:
            line = msgspec.json.encode(entry) + b"\n"
            if os.write(self._file, b"\n" + line) != len(line) + 1:
                raise OSError("the disk is full")
            os.fsync(self._file)
        self._entries.append(entry)

    def close(self) -> None:
        """Let go of the file; closing again does nothing."""
        if self._file is not None:
            os.close(self._file)
        self._file = None

    def _read(self, file: int) -> None:
        data = os.pread(file, os.fstat(file).st_size, 0)
        for line in data.splitlines():
            with contextlib.suppress(msgspec.DecodeError):  # a line that a crash has cut
                self._entries.append(_decoder.decode(line))
