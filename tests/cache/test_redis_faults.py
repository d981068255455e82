"""Servers that are dead, frozen, slow, full or locked, straight at the level."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import threading
import time
import traceback

import pytest
import redis

from ragaccel.cache import RedisLevel
from ragaccel.cache.levels.redis import Unavailable
from tests.cache.helpers import here, key, logged, stored, together, wait_until


class Proxy:
    """Passes bytes to a server and back, each answer as late as a test wants; counts knocks."""

    def __init__(self, port: int) -> None:
        self.knocks, self.bytes, self.delay, self.pieces = 0, 0, 0.0, 4
        self._to = port
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._socket.accept()
                self.knocks += 1
                far = socket.create_connection(("127.0.0.1", self._to))
                for source, sink, back in ((near, far, False), (far, near, True)):
                    arguments = (source, sink, back)
                    threading.Thread(target=self._pass, args=arguments, daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, back: bool) -> None:
        with contextlib.suppress(OSError), source, sink:
            while data := source.recv(1 << 16):
                if back:
                    piece = max(1, len(data) // self.pieces)
                    for at in range(0, len(data), piece):
                        time.sleep(self.delay)
                        sink.sendall(data[at : at + piece])
                else:
                    self.bytes += len(data)
                    sink.sendall(data)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


@pytest.fixture
def proxy(server):
    proxy = Proxy(server.port)
    yield proxy
    proxy.close()


@contextlib.contextmanager
def frozen(server):
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


# ---- the breaker ---------------------------------------------------------------------------------


@pytest.mark.parametrize("used", [False, True], ids=["unused", "used"])
def test_a_frozen_server_is_asked_once(own_server, used):
    """Whether a connection was open before or not, one call waits and the others do not ask."""
    proxy = Proxy(own_server.port)
    level = RedisLevel(proxy.url, timeout=0.3, retry_after=3_600)
    if used:
        level.put_many([stored("a")])
    with frozen(own_server):
        started = time.monotonic()
        with pytest.raises(Unavailable):
            level.get_many([key("a")])
        assert time.monotonic() - started < 2
        seen = proxy.knocks, proxy.bytes
        for call in (
            lambda: level.get_many([key("a")]),
            lambda: level.put_many([stored("a")]),
            lambda: level.delete_many([key("a")]),
            lambda: list(level.scan(bytes(8))),
            lambda: level.leases.acquire(key("a")),
            lambda: level.ledger.strike(b"a-tenant", [b"document"]),
            lambda: asyncio.run(level.aget_many([key("a")])),
            level.describe,
            level.clear,
        ):
            with pytest.raises(Unavailable):
                call()
        assert (proxy.knocks, proxy.bytes) == seen
    level.close()
    proxy.close()


async def test_a_frozen_server_is_asked_once_by_async_callers(own_server):
    """All that wait together wait one time-out; each has an exception of its own."""
    level = RedisLevel(own_server.url, timeout=0.3, retry_after=3_600)
    with frozen(own_server):
        started = time.monotonic()
        calls = (level.aget_many([key(n)]) for n in range(50))
        faults = await asyncio.gather(*calls, return_exceptions=True)
        assert time.monotonic() - started < 2
        assert {type(fault) for fault in faults} == {Unavailable}
        assert len({id(fault) for fault in faults}) == 50
        lengths = {len(traceback.extract_tb(fault.__traceback__)) for fault in faults}
        assert len(lengths) == 1
    await level.aclose()


def test_preparing_for_a_frozen_server_spares_the_first_call(own_server):
    """`prepare` waits its time-out, raises nothing, and then the server is known to be away."""
    level = RedisLevel(own_server.url, timeout=0.5, retry_after=3_600)
    with frozen(own_server):
        started = time.monotonic()
        level.ledger.prepare()
        assert time.monotonic() - started < 2
        wait_until(lambda: level._server.breaker.state == "open")
        with pytest.raises(Unavailable):
            level.get_many([key("a")])
        level.ledger.prepare()
    level.close()


def test_one_line_is_logged_per_change(own_server, caplog):
    """Callers, tasks and the listener together say once that a server is away."""
    level = RedisLevel(own_server.url, timeout=0.5, retry_after=0.2)
    level.ledger.prepare()
    assert logged(caplog) == []
    own_server.kill()
    wait_until(lambda: not level.ledger.contact)
    for _ in range(20):
        with pytest.raises(Unavailable):
            level.get_many([key("a")])
        with pytest.raises(Unavailable):
            asyncio.run(level.aget_many([key("a")]))
        time.sleep(0.03)
    assert [line.split(" (")[0] for line in logged(caplog)] == [
        f"redis at 127.0.0.1:{own_server.port} cannot be reached"
    ]
    own_server.start()
    wait_until(lambda: level.ledger.contact)

    def works() -> bool:
        with contextlib.suppress(Unavailable):
            level.put_many([stored("a")])
            return here(level, "a") == ["a"]
        return False

    wait_until(works)
    assert [line.split(" (")[0] for line in logged(caplog)] == [
        f"redis at 127.0.0.1:{own_server.port} cannot be reached",
        f"redis at 127.0.0.1:{own_server.port} can be reached again",
    ]
    level.close()


def test_a_full_server_still_reads_and_the_breaker_stays_closed(own_server):
    """A server that refuses writes is not away."""
    level = RedisLevel(own_server.url, timeout=10.0)
    level.put_many([stored("a")])
    with own_server.client() as client:
        client.config_set("maxmemory", "1")
    for _ in range(3):
        with pytest.raises(redis.ResponseError):
            level.put_many([stored("b")])
        assert here(level, "a", "b") == ["a"]
    assert level.describe()["breaker"] == "closed"
    level.close()


def test_a_write_that_a_full_server_refuses_shows_that_it_is_there(own_server, caplog):
    """The breaker closes when the call that looks again is answered, whatever the answer."""
    level = RedisLevel(own_server.url, timeout=10.0, retry_after=0.0)
    level.put_many([stored("a")])
    with own_server.client() as client:
        client.config_set("maxmemory", "1")
    level._server.breaker.trip(OSError())
    with pytest.raises(redis.ResponseError):
        level.put_many([stored("b")])
    assert level._server.breaker.state == "closed"
    assert logged(caplog, "can be reached again")
    level.close()


def test_one_call_at_a_time_looks_whether_a_server_is_back(own_server):
    """However many callers come when the pause is over, one of them asks and waits."""
    proxy = Proxy(own_server.port)
    level = RedisLevel(proxy.url, timeout=0.5, retry_after=0.2)
    level.put_many([stored("a")])

    def call(_: int) -> type[BaseException] | None:
        try:
            level.get_many([key("a")])
        except Unavailable as error:
            return type(error.__cause__)
        return None

    with frozen(own_server):
        call(0)
        time.sleep(0.3)
        knocks = proxy.knocks
        waited = [cause for cause in together(16, call) if cause is not type(None)]
        assert (proxy.knocks - knocks, len(waited)) == (1, 1)
        time.sleep(0.3)
        assert level._server.breaker.enter()
        level._server.breaker.trip(OSError())  # as the listener does meanwhile
        time.sleep(0.3)
        with pytest.raises(Unavailable):
            level.get_many([key("a")])
        assert proxy.knocks - knocks == 1
        level._server.breaker.leave(KeyboardInterrupt(), probe=True)
    assert here(level, "a") == ["a"]
    level.close()
    proxy.close()


def test_a_server_that_drips_is_not_waited_for(proxy):
    """The time-out is that of the whole answer, not of each piece."""
    level = RedisLevel(proxy.url, timeout=0.5, retry_after=3_600)
    level.put_many([stored("a", b"blob" * 10)])
    assert here(level, "a") == ["a"]
    proxy.delay, proxy.pieces = 0.2, 30  # each in time; all together take six seconds
    started = time.monotonic()
    with pytest.raises(Unavailable):
        level.get_many([key("a")])
    assert 0.4 < time.monotonic() - started < 3
    assert level._server.breaker.state == "open"
    level.close()


async def test_a_server_that_drips_is_not_waited_for_by_async_callers(proxy):
    """The same on an event loop."""
    level = RedisLevel(proxy.url, timeout=0.5, retry_after=3_600)
    await level.aput_many([stored("a", b"blob" * 10)])
    proxy.delay, proxy.pieces = 0.2, 30
    started = time.monotonic()
    with pytest.raises(Unavailable):
        await level.aget_many([key("a")])
    assert 0.4 < time.monotonic() - started < 3
    await level.aclose()


def test_a_client_of_the_callers_is_as_patient_as_it_wants(proxy):
    """A late answer serves its caller, and the next ones do without the server."""
    with redis.Redis(port=proxy.port) as client:
        level = RedisLevel(client, timeout=0.5, retry_after=3_600)
        level.put_many([stored("a")])
        proxy.delay = 0.2
        assert here(level, "a") == ["a"]
        with pytest.raises(Unavailable):
            level.get_many([key("a")])
        level.close()


def test_connections_that_the_server_closed_are_replaced(own_server, caplog):
    """A server that was restarted, or closes what was quiet for long, is no fault."""
    level = RedisLevel(own_server.url, timeout=10.0, retry_after=3_600)
    together(4, lambda n: level.put_many([stored(n)]))
    with own_server.client() as client:
        assert client.execute_command("CLIENT", "KILL", "SKIPME", "yes") >= 1
    assert here(level, *range(4)) == list(range(4))
    own_server.kill()
    own_server.start()
    assert here(level, 0) == []
    assert logged(caplog) == []
    level.close()


def test_a_long_answer_arrives_whole(server):
    """Answers of many pieces are put together, and the connection serves on."""
    level = RedisLevel(server.url, timeout=10.0)
    blobs = {key(n): os.urandom(n * 1_000_000) for n in range(1, 4)}
    level.put_many([stored(n, blobs[key(n)]) for n in range(1, 4)])
    for _ in range(3):
        assert level.get_many(list(blobs)) == blobs
        assert here(level, 1, "no") == [1]
    level.close()


async def test_a_busy_event_loop_is_not_the_servers_fault(server):
    """Work that holds up the loop while an answer waits does not open the breaker."""
    level = RedisLevel(server.url, timeout=0.2, retry_after=3_600)
    await level.aput_many([stored("a")])

    async def work() -> None:
        end = time.thread_time() + 0.5
        while time.thread_time() < end:
            pass

    for _ in range(3):
        with contextlib.suppress(Unavailable):
            await asyncio.gather(level.aget_many([key("a")]), work())
    assert level._server.breaker.state == "closed"
    assert await level.aget_many([key("a")]) == {key("a"): b"blob"}
    await level.aclose()


def test_options_of_the_url_do_not_undo_the_time_outs(own_server):
    """A URL that asks for patience and retries gets none."""
    options = "socket_timeout=60&socket_connect_timeout=60&retry_on_timeout=yes&protocol=3"
    url = f"{own_server.url}/0?{options}&decode_responses=yes&health_check_interval=1"
    level = RedisLevel(url, timeout=0.3, retry_after=3_600)
    level.put_many([stored("a")])
    assert here(level, "a") == ["a"]
    with frozen(own_server):
        started = time.monotonic()
        with pytest.raises(Unavailable):
            level.get_many([key("a")])
        assert time.monotonic() - started < 3
    level.close()


# ---- merged reads --------------------------------------------------------------------------------


async def test_reads_of_one_turn_are_one_command(server):
    """A hundred tasks that read at once cost one MGET, and each gets its own."""
    level = RedisLevel(server.url, timeout=10.0)
    await level.aput_many([stored(n, b"%d" % n) for n in range(100)])
    with server.client() as client:
        client.config_resetstat()
        answers = await asyncio.gather(*(level.aget_many([key(n), key("x")]) for n in range(100)))
        assert answers == [{key(n): b"%d" % n} for n in range(100)]
        assert client.info("commandstats")["cmdstat_mget"]["calls"] == 1
    await level.aclose()


async def test_a_cancelled_reader_hurts_nobody(server):
    """Others of the same turn get their answers, whoever is cancelled and when."""
    level = RedisLevel(server.url, timeout=10.0)
    await level.aput_many([stored(n, b"%d" % n) for n in range(10)])
    for turns in range(6):
        tasks = [asyncio.create_task(level.aget_many([key(n)])) for n in range(10)]
        for _ in range(turns):
            await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert answers[1::2] == [{key(n): b"%d" % n} for n in range(1, 10, 2)]
    await level.aclose()


# ---- secrets -------------------------------------------------------------------------------------


def test_no_secret_is_told(own_server, caplog):
    """Neither log lines nor exceptions show a password, a user, a key or a value."""
    with own_server.client() as client:
        client.config_set("requirepass", "right-secret")
    told = []
    for login in (":wrong-secret@", "somebody:wrong-secret@", ""):
        level = RedisLevel(
            f"redis://{login}127.0.0.1:{own_server.port}", prefix="hidden:", retry_after=0.0
        )
        level.ledger.prepare()
        for call in (
            lambda level=level: level.put_many([stored("a", b"hush")]),
            lambda level=level: level.get_many([key("a")]),
            lambda level=level: level.ledger.strike(b"a-tenant", [b"document"]),
            lambda level=level: asyncio.run(level.aget_many([key("a")])),
        ):
            with pytest.raises(Exception) as caught:
                call()
            told += traceback.format_exception(caught.value)
        told.append(repr(level._server.target))
        level.close()
    text = "".join(line for line in told if "File" not in line) + caplog.text
    for secret in ("wrong-secret", "right-secret", "somebody", "hush", key("a").hex(), "document"):
        assert secret not in text.replace('b"hush"', "").replace('b"document"', "")
    level = RedisLevel(f"redis://:right-secret@127.0.0.1:{own_server.port}", timeout=10.0)
    level.ledger.prepare()
    assert level.ledger.contact
    level.close()


def test_a_password_in_a_url_that_cannot_be_used_is_not_told():
    """The refusal quotes nothing of the URL."""
    for url in ("redis://me:se/cret@localhost:1", "redis+cluster://me:se/cret@h:x"):
        with pytest.raises(ValueError, match="URL") as caught:
            RedisLevel(url)
        assert "cret" not in "".join(traceback.format_exception_only(caught.value))
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__


def test_a_server_that_refuses_to_track_is_used_without(own_server, caplog):
    """Where a user may not listen, entries work, and strikes of others count late."""
    with own_server.client() as client:
        client.execute_command("ACL", "SETUSER", "plain", "on", ">pw", "~*", "+@all", "-client")
    level = RedisLevel(
        f"redis://plain:pw@127.0.0.1:{own_server.port}", timeout=10.0, retry_after=0.1
    )
    level.ledger.prepare()
    assert not level.ledger.contact
    level.put_many([stored("a")])
    assert here(level, "a") == ["a"]
    time.sleep(0.5)  # some more tries to listen
    assert len(logged(caplog)) == 1
    assert logged(caplog, "does not tell of changes")
    level.close()
