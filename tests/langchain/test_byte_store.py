"""`ByteStore`: LangChain's suites, and what must not go wrong."""

from __future__ import annotations

import pickle
import time

import pytest
from langchain_tests.integration_tests.base_store import BaseStoreAsyncTests, BaseStoreSyncTests

from ragaccel import MemoryLevel, MultiLevelCache
from ragaccel.errors import ConfigurationError
from ragaccel.langchain import ByteStore

# ---- the suites ----------------------------------------------------------------------------------


class TestSyncInMemory(BaseStoreSyncTests):
    @pytest.fixture
    def three_values(self):
        return b"foo", b"bar", b"buzz"

    @pytest.fixture
    def kv_store(self):
        with MultiLevelCache.open() as cache:
            yield ByteStore(cache)


class TestSyncOnDisk(BaseStoreSyncTests):
    @pytest.fixture
    def three_values(self):
        return b"foo", b"", bytes(range(256)) * 100

    @pytest.fixture
    def kv_store(self, tmp_path):
        with MultiLevelCache.open(tmp_path) as cache:
            yield ByteStore(cache)


class TestAsyncInMemory(BaseStoreAsyncTests):
    @pytest.fixture
    def three_values(self):
        return b"foo", b"bar", b"buzz"

    @pytest.fixture
    async def kv_store(self):
        async with MultiLevelCache.open() as cache:
            yield ByteStore(cache)


class TestAsyncOnDisk(BaseStoreAsyncTests):
    @pytest.fixture
    def three_values(self):
        return b"foo", b"", bytes(range(256)) * 100

    @pytest.fixture
    async def kv_store(self, tmp_path):
        async with MultiLevelCache.open(tmp_path) as cache:
            yield ByteStore(cache)


# ---- more than the suites ------------------------------------------------------------------------


@pytest.fixture(params=["memory", "disk"])
def cache(request, tmp_path):
    """A cache of each make."""
    with MultiLevelCache.open(None if request.param == "memory" else tmp_path) as made:
        yield made


class Counting(MemoryLevel):
    """Counts the calls that ask it for keys or give it entries."""

    name = "counting"

    def __init__(self):
        super().__init__()
        self.calls = []

    def get_many(self, keys):
        self.calls.append(("get", len(keys)))
        return super().get_many(keys)

    def put_many(self, entries):
        self.calls.append(("put", len(entries)))
        super().put_many(entries)

    def delete_many(self, keys):
        self.calls.append(("delete", len(keys)))
        super().delete_many(keys)


class Broken(MemoryLevel):
    """A level that fails at everything."""

    name = "broken"

    def get_many(self, keys):
        raise OSError("the machine is on fire")

    put_many = delete_many = scan = get_many


def test_many_keys_are_one_call_of_a_level():
    """Whatever their number."""
    level = Counting()
    store = ByteStore(MultiLevelCache([level]))
    keys = [str(number) for number in range(100)]
    store.mset([(key, key.encode()) for key in keys])
    assert store.mget(keys) == [key.encode() for key in keys]
    store.mdelete(keys)
    assert level.calls == [("put", 100), ("get", 100), ("delete", 100)]


@pytest.mark.parametrize("pair", [("a", "text"), ("a", bytearray(b"x")), ("a", None), (1, b"x")])
async def test_only_bytes_under_strings(cache, pair):
    """Anything else is refused with words that help, and nothing of the call is stored."""
    store = ByteStore(cache)
    with pytest.raises(ConfigurationError, match="keeps bytes under strings"):
        store.mset([("before", b"x"), pair])
    with pytest.raises(ConfigurationError, match="keeps bytes under strings"):
        await store.amset([("before", b"x"), pair])
    assert store.mget(["before"]) == [None]


def test_of_a_key_given_twice_the_last_counts(cache):
    """As in a dict."""
    store = ByteStore(cache)
    store.mset([("a", b"1"), ("b", b"2"), ("a", b"3")])
    assert store.mget(["a", "b"]) == [b"3", b"2"]


async def test_nothing_given_is_nothing_done(cache):
    """Empty calls are no errors."""
    store = ByteStore(cache)
    store.mset([])
    store.mdelete([])
    await store.amset([])
    await store.amdelete([])
    assert store.mget([]) == await store.amget([]) == []
    assert cache.stats().errors == {}


async def test_namespaces_share_nothing(cache):
    """Neither values nor keys, nor with other entries of the cache."""
    cache.set("a", "plain")
    stores = [ByteStore(cache), ByteStore(cache, namespace="acme")]
    for number, store in enumerate(stores):
        assert store.mget(["a"]) == [None]
        store.mset([("a", b"%d" % number), (str(number), b"")])
    for number, store in enumerate(stores):
        assert store.mget(["a"]) == [b"%d" % number]
        assert sorted(store.yield_keys()) == sorted(["a", str(number)])
        assert sorted([key async for key in store.ayield_keys()]) == sorted(["a", str(number)])
    stores[0].mdelete(["a"])
    assert [store.mget(["a"])[0] for store in stores] == [None, b"1"]
    assert cache.get("a") == "plain"
    cache.invalidate(namespace=stores[1].namespace)
    assert list(stores[1].yield_keys()) == []
    assert list(stores[0].yield_keys()) == ["0"]


def test_there_is_no_limit_unless_one_is_given(monkeypatch):
    """Neither the cache's own lifetime nor that of empty results holds."""
    cache = MultiLevelCache.open(ttl=10, negative_ttl=10)
    endless, short = ByteStore(cache), ByteStore(cache, namespace="short", ttl=None)
    for store in (endless, short):
        store.mset([("empty", b""), ("full", b"x")])
    later = time.time() + 1000
    monkeypatch.setattr(time, "time", lambda: later)
    assert endless.mget(["empty", "full"]) == [b"", b"x"]
    assert short.mget(["empty", "full"]) == [None, None]


def test_a_restart_keeps_the_bytes(tmp_path):
    """A new cache over the same folder has them."""
    with MultiLevelCache.open(tmp_path) as cache:
        ByteStore(cache).mset([("a", b"1")])
    with MultiLevelCache.open(tmp_path) as cache:
        assert ByteStore(cache).mget(["a", "b"]) == [b"1", None]
        assert list(ByteStore(cache).yield_keys()) == ["a"]


def test_two_processes_see_each_others_changes(tmp_path):
    """An overwrite or a deletion by one is seen by the other, whose memory had the old bytes."""
    with MultiLevelCache.open(tmp_path) as one, MultiLevelCache.open(tmp_path) as two:
        first, second = ByteStore(one), ByteStore(two)
        first.mset([("a", b"old"), ("b", b"old")])
        assert second.mget(["a", "b"]) == [b"old", b"old"]
        first.mset([("a", b"new")])
        assert second.mget(["a", "b"]) == [b"new", b"old"]
        second.mdelete(["b"])
        assert first.mget(["a", "b"]) == [b"new", None]
        assert list(first.yield_keys()) == list(second.yield_keys()) == ["a"]


def test_a_broken_level_breaks_nothing():
    """It is passed over, in listing keys too."""
    store = ByteStore(MultiLevelCache([MemoryLevel(), Broken()]))
    store.mset([("a", b"1")])
    assert store.mget(["a", "b"]) == [b"1", None]
    assert list(store.yield_keys()) == ["a"]


def test_it_can_be_pickled(tmp_path):
    """It goes to other processes with its cache."""
    with MultiLevelCache.open(tmp_path) as cache:
        store = ByteStore(cache, namespace="acme")
        store.mset([("a", b"1")])
        copied = pickle.loads(pickle.dumps(store))
        assert copied.mget(["a"]) == [b"1"]
        copied._cache.close()
