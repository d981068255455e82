"""The socket at which a monitor shows what it sees, to `ragaccel top` for one.

Whoever connects is given one snapshot, as a line of JSON, and is hung up on.
"""

from __future__ import annotations

import logging
import os
import socket
import socketserver
import stat
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from ragaccel.errors import ConfigurationError
from ragaccel.observe.snapshot import Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable

_SEND_SECONDS: Final = 2.0
_CLOSE_SECONDS: Final = 0.2
_log = logging.getLogger("ragaccel.observe")


def socket_path(pid: int) -> Path:
    """Return where a process's socket is unless it was told otherwise.

    It is in the user's runtime directory, or else in a folder of the user's in that for temporary
    files.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    folder = (
        Path(runtime) / "ragaccel"
        if runtime
        else Path(tempfile.gettempdir()) / f"ragaccel-{os.getuid()}"
    )
    return folder / f"{pid}.sock"


class Server:
    """Gives a line to whoever connects to a Unix domain socket, one after the other.

    Args:
        path: Where; None for `socket_path`.
        line: Returns what to give.
    """

    def __init__(self, path: str | os.PathLike[str] | None, line: Callable[[], bytes]) -> None:
        self.path = socket_path(os.getpid()) if path is None else Path(path)
        self._is_own_folder = path is None
        self._line = line

    def open(self) -> None:
        """Begin to listen; only this user can connect.

        Raises:
            ConfigurationError: Another monitor listens there, or nothing can.
        """
        if self._is_own_folder:
            _make_private(self.path.parent)
        _make_room(self.path)
        self._server = _Listening(str(self.path), self._line)
        self._inode = self.path.stat().st_ino
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_CLOSE_SECONDS,), name="ragaccel-live",
            daemon=True,
        )  # fmt: skip
        self._thread.start()

    def close(self) -> None:
        """Listen no more, and take the socket away."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        try:
            if self.path.stat().st_ino == self._inode:
                self.path.unlink()
        except FileNotFoundError:
            pass

    def leave(self) -> None:
        """Let go of it in a child process: it is the parent's."""
        self._server.server_close()


class _Listening(socketserver.UnixStreamServer):
    def __init__(self, path: str, line: Callable[[], bytes]) -> None:
        super().__init__(path, _Giving, bind_and_activate=False)
        self.line = line
        try:
            self.server_bind()
            Path(path).chmod(0o600)  # before anybody can connect
            self.server_activate()
        except OSError as error:
            self.server_close()
            raise ConfigurationError(f"no socket can be made at {path}: {error}.") from error

    def handle_error(self, *_: object) -> None:
        """Log what would be printed."""
        _log.debug("A snapshot could not be given", exc_info=True)


class _Giving(socketserver.BaseRequestHandler):
    server: _Listening

    def handle(self) -> None:
        self.request.settimeout(_SEND_SECONDS)
        self.request.sendall(self.server.line() + b"\n")


def fetch(path: Path, *, timeout: float = 5.0) -> Snapshot:
    """Return what the monitor at a socket sees now.

    Args:
        path: The socket.
        timeout: Seconds to wait for it.

    Raises:
        ConfigurationError: Nothing listens there, or it is no monitor of this version.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout)
            connection.connect(str(path))
            with connection.makefile("rb") as lines:
                line = lines.readline()
        return msgspec.json.decode(line, type=Snapshot)
    except OSError as error:
        raise ConfigurationError(
            f"nothing listens at {path} ({error}); call monitor.serve() in the process to look at."
        ) from error
    except msgspec.MsgspecError as error:
        raise ConfigurationError(
            f"what listens at {path} is no monitor of this version of ragaccel: {error}."
        ) from error


def place_of(where: str) -> Path:
    """Return the socket of a process by its number, or the one that is named."""
    return socket_path(int(where)) if where.isdigit() else Path(where)


def _make_private(folder: Path) -> None:
    """Make a folder that is nobody else's, or see that it is so."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise ConfigurationError(f"no folder can be made at {folder}: {error}.") from error
    is_private = stat.S_ISDIR(found.st_mode) and not found.st_mode & 0o077
    if not is_private or found.st_uid != os.getuid():
        raise ConfigurationError(
            f"{folder} is not a folder of this user's alone; remove it or give serve() a path."
        )


def _make_room(path: Path) -> None:
    """Take away a socket that a process has left behind."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ConfigurationError(f"{path} is there and is no socket; give another path.")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(_SEND_SECONDS)
            connection.connect(str(path))
    except FileNotFoundError:
        pass
    except ConnectionRefusedError:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigurationError(f"no socket can be made at {path}: {error}.") from error
    else:
        raise ConfigurationError(f"another monitor listens at {path}; give serve() another path.")
