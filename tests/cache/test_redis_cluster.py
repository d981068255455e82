"""The Redis level on a cluster, behind sentinels, and through a client of the caller's."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import time
from typing import TYPE_CHECKING

import pytest
import redis

from ragaccel.cache import RedisLevel, Stored
from ragaccel.cache.ledger import EVERYTHING
from ragaccel.cache.levels.redis import Unavailable
from ragaccel.errors import ConfigurationError
from ragaccel.testing import LevelContract
from tests.cache.helpers import here, key, logged, stored, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

TENANT, MARK = b"a-tenant", b"document"
MANY = range(300)


def opened(server, **options) -> RedisLevel:
    return RedisLevel(server, **{"timeout": 10.0, "retry_after": 0.2} | options)


class Everywhere(LevelContract):
    """The contract, and what must hold however the servers are arranged."""

    def test_many_keys_in_one_call(self, level):
        """Keys of all slots are written, read, found by namespace and deleted together."""
        level.put_many(
            [Stored(key(n), b"%d" % n, time.time() + 60, 0.0, b"%08d" % (n % 3)) for n in MANY]
        )
        assert level.get_many([key(n) for n in MANY]) == {key(n): b"%d" % n for n in MANY}
        assert dict(level.scan(b"%08d" % 1)) == {key(n): b"%d" % n for n in MANY if n % 3 == 1}
        level.delete_many([key(n) for n in MANY[:200]])
        assert here(level, *MANY) == list(MANY[200:])
        level.clear()
        assert not here(level, *MANY)

    async def test_many_keys_in_one_async_call(self, level):
        """The async face does the same."""
        await level.aput_many([stored(n) for n in MANY])
        answers = await asyncio.gather(*(level.aget_many([key(n), key("no")]) for n in MANY))
        assert answers == [{key(n): b"blob"} for n in MANY]
        await level.adelete_many([key(n) for n in MANY[:200]])
        assert len(await level.aget_many([key(n) for n in MANY])) == 100
        await level.aclose()

    async def test_strikes_leases_and_changes(self, level, other):
        """Another level hears of strikes and of changed entries; a lease is had by one."""
        copies: list[bytes] = []

        class Copies:
            forget = copies.extend

            def forget_all(self) -> None:
                copies.clear()

        follower = Copies()
        level.ledger.prepare()
        level.follow(follower)
        assert level.ledger.contact
        before = level.ledger.position()
        await other.ledger.astrike(TENANT, [MARK])
        wait_until(lambda: not level.ledger.stands(before, time.time(), TENANT + MARK))
        assert level.ledger.stands(before, time.time(), TENANT + b"neighbor")
        other.ledger.strike(EVERYTHING, [EVERYTHING])
        wait_until(lambda: not level.ledger.stands(before, time.time(), TENANT + b"neighbor"))
        other.put_many([stored(n) for n in MANY])
        wait_until(lambda: set(copies) == {key(n) for n in MANY})
        assert level.leases.acquire(key("a"))
        assert not await other.leases.aacquire(key("a"))
        level.leases.release(key("a"))
        assert await other.leases.aacquire(key("a"))
        await other.leases.arelease(key("a"))
        await other.aclose()

    def test_what_it_tells(self, level):
        """`describe` adds the nodes up."""
        level.put_many([stored(n) for n in MANY])
        level.ledger.strike(TENANT, [MARK])
        told = level.describe()
        assert told["keys"] == len(MANY) + 4
        assert (told["strikes"], told["marks"]) == (1, 1)


class FromClient(Everywhere):
    """What a level with a client of the caller's does otherwise."""

    def test_a_pickled_level_works(self, level):
        """It does not, and says so: a client belongs to its process."""
        with pytest.raises(ConfigurationError, match="URL"):
            pickle.dumps(level)


def pair(make) -> Iterator[list[RedisLevel]]:
    levels = [make(), make()]
    yield levels
    for level in levels:
        level.close()


class Pair:
    """Two levels on the same servers, from a fixture `both`."""

    @pytest.fixture
    def level(self, both) -> RedisLevel:
        return both[0]

    @pytest.fixture
    def other(self, both) -> RedisLevel:
        return both[1]


class TestStandalone(Pair, Everywhere):
    @pytest.fixture
    def both(self, server):
        yield from pair(lambda: opened(server.url))


class TestCluster(Pair, Everywhere):
    @pytest.fixture
    def both(self, cluster):
        yield from pair(lambda: opened(cluster.url))


class TestSentinel(Pair, Everywhere):
    @pytest.fixture
    def both(self, sentinel):
        yield from pair(lambda: opened(f"redis+sentinel://127.0.0.1:{sentinel}/primary/0"))


class TestClient(Pair, FromClient):
    @pytest.fixture
    def both(self, server):
        with redis.Redis(port=server.port) as client:
            yield from pair(lambda: opened(client))


class TestClusterClient(Pair, FromClient):
    @pytest.fixture
    def both(self, cluster):
        client = redis.RedisCluster(host="127.0.0.1", port=cluster.nodes[0].port)
        yield from pair(lambda: opened(client))
        client.close()


class TestSentinelClient(Pair, FromClient):
    @pytest.fixture
    def both(self, sentinel):
        watch = redis.Sentinel([("127.0.0.1", sentinel)])
        yield from pair(lambda: opened(watch.master_for("primary")))


# ---- faults --------------------------------------------------------------------------------------


def put_all(level) -> bool:
    try:
        level.put_many([stored(n) for n in MANY])
    except Unavailable:
        return False
    return here(level, *MANY) == list(MANY)


def test_a_frozen_node_is_survived_and_comes_back(own_cluster, caplog):
    """While a node is away the level is, with one line; afterwards it works as before."""
    level = opened(own_cluster.url, timeout=1.0)
    level.ledger.prepare()
    assert put_all(level)
    os.kill(own_cluster.nodes[1]._process.pid, signal.SIGSTOP)
    with pytest.raises(Unavailable):
        level.get_many([key(n) for n in MANY])
    wait_until(lambda: not level.ledger.contact)
    started = time.monotonic()
    for number in range(50):
        with pytest.raises(Unavailable):
            level.get_many([key(n) for n in (*MANY, number)])
    assert time.monotonic() - started < 20
    assert len(logged(caplog, "cannot be reached")) == 1
    os.kill(own_cluster.nodes[1]._process.pid, signal.SIGCONT)
    wait_until(lambda: put_all(level))
    wait_until(lambda: level.ledger.contact)
    level.close()


def test_a_killed_node_is_survived(own_cluster, caplog):
    """Calls that need a node that is gone are refused, sooner or later without asking."""
    level = opened(own_cluster.url, timeout=1.0, retry_after=3_600)
    assert put_all(level)
    own_cluster.nodes[1].terminate()
    for _ in range(50):
        with pytest.raises(Unavailable):
            level.get_many([key(n) for n in MANY])
    assert len(logged(caplog)) == 1
    level.close()


def test_slots_that_move_are_found_again(own_cluster):
    """A key whose slot went to another node is read and written there."""
    level, both = opened(own_cluster.url), opened(own_cluster.url)
    assert put_all(level)
    assert put_all(both)
    old, new = (redis.Redis(port=node.port) for node in own_cluster.nodes[:2])
    ids = [client.execute_command("CLUSTER", "MYID") for client in (old, new)]
    slots = {redis.crc.key_slot(name): name for name in old.scan_iter("ragaccel:e:*")}
    slot, name = next(iter(slots.items()))
    new.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[0])
    old.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[1])
    names = old.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100)
    target = ("127.0.0.1", own_cluster.nodes[1].port)
    old.execute_command("MIGRATE", *target, "", 0, 5_000, "KEYS", *names)
    moving = bytes.fromhex(name.decode().rpartition(":")[2])
    assert level.get_many([moving]) == {moving: b"blob"}  # the old node says: ask the other
    level.put_many([Stored(moving, b"new", time.time() + 60)])
    for client in (new, old):
        client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[1])
    assert level.get_many([moving]) == {moving: b"new"}  # the old node says: it has moved
    assert asyncio.run(one_async_get(both, moving)) == {moving: b"new"}
    for client in (old, new):
        client.close()
    level.close()
    both.close()


async def one_async_get(level, name: bytes) -> dict[bytes, bytes]:
    found = await level.aget_many([name, *(key(n) for n in MANY)])
    await level.aclose()
    return {name: found[name]}


@pytest.mark.parametrize("dead", ["frozen", "killed"])
def test_a_dead_cluster_costs_one_timeout(own_cluster, dead):
    """However many nodes there are to ask, the first call is bounded; later ones do not ask."""
    for node in own_cluster.nodes:
        if dead == "frozen":
            os.kill(node._process.pid, signal.SIGSTOP)
        else:
            node.terminate()
    level = RedisLevel(own_cluster.url, timeout=0.5, retry_after=3_600)
    started = time.monotonic()
    for _ in range(50):
        with pytest.raises(Unavailable):
            level.get_many([key("a")])
    assert time.monotonic() - started < 2
    level.close()
    if dead == "frozen":
        for node in own_cluster.nodes:
            os.kill(node._process.pid, signal.SIGCONT)


def test_a_cluster_with_a_dead_first_node_is_found_by_the_next(own_cluster):
    """Any living node of the URL tells of all."""
    url = own_cluster.url.replace("redis+cluster://", "redis+cluster://127.0.0.1:1,")
    level = opened(url)
    assert put_all(level)
    level.close()


@pytest.mark.parametrize(
    "url",
    [
        "redis+cluster://",
        "redis+cluster://localhost:1/3",
        "redis+cluster://localhost:port",
        "redis+sentinel://localhost:1",
        "redis+sentinel://localhost:1,/primary",
        "redis+carrier-pigeon://localhost",
        "redis://localhost?retries=3",
    ],
)
def test_urls_that_cannot_be_used_are_refused(url):
    """A mistake in the URL is said where it is made."""
    with pytest.raises(ConfigurationError, match="URL"):
        RedisLevel(url)


def test_clients_that_cannot_be_used_are_refused():
    """Entries are bytes, and the client must be a sync one."""
    with pytest.raises(ConfigurationError, match="decode"):
        RedisLevel(redis.Redis(decode_responses=True))
    with pytest.raises(ConfigurationError, match="client"):
        RedisLevel(redis.asyncio.Redis())
