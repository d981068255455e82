"""Every level of ours keeps the contract that third parties are given."""

from __future__ import annotations

import pickle
import time
from typing import TYPE_CHECKING

import pytest

from ragaccel.cache import DiskLevel, MemoryLevel, RedisLevel, Stored
from ragaccel.testing import LevelContract
from tests.cache.helpers import here, key, stored

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ragaccel.cache import Level


class Wider(LevelContract):
    """What the contract suite leaves open and a user of `Level` would still expect."""

    def test_a_call_without_keys_is_no_fault(self, level: Level):
        """Empty reads, writes and deletions do nothing, and the level works on."""
        assert not level.get_many(())
        level.put_many(())
        level.delete_many(())
        level.put_many([stored("a")])
        assert here(level, "a") == ["a"]

    def test_the_last_of_a_key_twice_in_one_put_counts(self, level: Level):
        """Writing a key twice in one call replaces it and loses nothing else."""
        level.put_many([stored("kept")])
        level.put_many([stored("a", b"old"), stored("a", b"new")])
        assert level.get_many((key("a"),))[key("a")] == b"new"
        assert here(level, "kept") == ["kept"]

    def test_keys_that_begin_alike_in_one_put_are_no_fault(self, level: Level):
        """Two keys with the same first bytes never cost the other entries."""
        level.put_many([stored("kept")])
        alike = [b"a" * 16 + b"1234", b"a" * 16 + b"5678"]
        level.put_many([Stored(name, name, time.time() + 60) for name in alike])
        assert all(level.get_many((name,)).get(name, name) == name for name in alike)
        assert here(level, "kept") == ["kept"]

    def test_a_pickled_level_works(self, level: Level):
        """A level can be sent to another process."""
        copy = pickle.loads(pickle.dumps(level))
        copy.put_many([stored("a")])
        assert here(copy, "a") == ["a"]
        copy.close()


class TestMemoryLevel(Wider):
    @pytest.fixture
    def level(self) -> MemoryLevel:
        return MemoryLevel(1_000_000)


class TestDiskLevel(Wider):
    @pytest.fixture
    def level(self, tmp_path) -> Iterator[DiskLevel]:
        level = DiskLevel(tmp_path / "cache.sqlite", 10_000_000)
        yield level
        level.close()


class TestRedisLevel(Wider):
    @pytest.fixture
    def level(self, server) -> Iterator[RedisLevel]:
        level = RedisLevel(server.url, timeout=10.0)
        yield level
        level.close()
