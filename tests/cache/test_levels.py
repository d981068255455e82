"""Every level of ours keeps the contract that third parties are given."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ragaccel.cache import DiskLevel, MemoryLevel, RedisLevel
from ragaccel.testing import LevelContract

if TYPE_CHECKING:
    from collections.abc import Iterator


class TestMemoryLevel(LevelContract):
    @pytest.fixture
    def level(self) -> MemoryLevel:
        return MemoryLevel(1_000_000)


class TestDiskLevel(LevelContract):
    @pytest.fixture
    def level(self, tmp_path) -> Iterator[DiskLevel]:
        level = DiskLevel(tmp_path / "cache.sqlite", 10_000_000)
        yield level
        level.close()


class TestRedisLevel(LevelContract):
    @pytest.fixture
    def level(self, server) -> Iterator[RedisLevel]:
        level = RedisLevel(server.url, timeout=10.0)
        yield level
        level.close()
