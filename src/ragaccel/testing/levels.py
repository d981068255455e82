"""What every level of a cache must do."""

from __future__ import annotations

import asyncio
import hashlib
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from ragaccel.cache import Stored

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ragaccel.cache import Level

_KEY, _OTHER = b"k" * 20, b"o" * 20


class LevelContract:
    """Tests of a `Level`; a subclass gives an empty one in a fixture named `level`."""

    def test_an_empty_level_has_nothing(self, level: Level) -> None:
        """A key that was never put is not found."""
        assert not level.get_many((_KEY,))

    def test_what_was_put_is_found(self, level: Level) -> None:
        """Blobs come back byte for byte, several in one call, and unknown keys are left out."""
        blobs = {_KEY: bytes(range(256)), _OTHER: b""}
        level.put_many([_stored(key, blob) for key, blob in blobs.items()])
        assert dict(level.get_many((_KEY, _OTHER, b"x" * 20))) == blobs

    def test_a_later_put_replaces(self, level: Level) -> None:
        """The last blob of a key counts."""
        level.put_many([_stored(_KEY, b"old")])
        level.put_many([_stored(_KEY, b"new")])
        assert dict(level.get_many((_KEY,))) == {_KEY: b"new"}

    def test_keys_that_begin_alike_are_apart(self, level: Level) -> None:
        """A level that hashes or shortens keys still compares them whole."""
        first, second = b"a" * 16 + b"1234", b"a" * 16 + b"5678"
        level.put_many([_stored(first, b"first")])
        assert not level.get_many((second,))

    def test_deleted_keys_are_gone(self, level: Level) -> None:
        """Deleting forgets the given keys only; unknown ones are no error."""
        level.put_many([_stored(_KEY, b"1"), _stored(_OTHER, b"2")])
        level.delete_many((_KEY, b"x" * 20))
        assert dict(level.get_many((_KEY, _OTHER))) == {_OTHER: b"2"}

    def test_clear_forgets_everything(self, level: Level) -> None:
        """Nothing is found after clear."""
        level.put_many([_stored(_KEY, b"1"), _stored(_OTHER, b"2")])
        level.clear()
        assert not level.get_many((_KEY, _OTHER))

    def test_expired_entries_are_not_found(self, level: Level) -> None:
        """An entry whose time is over is as if it had never been put."""
        level.put_many([Stored(_KEY, b"1", time.time() - 1)])
        assert not level.get_many((_KEY,))

    def test_entries_without_end_are_found(self, level: Level) -> None:
        """An infinite time of expiry is allowed."""
        level.put_many([Stored(_KEY, b"1", float("inf"))])
        assert dict(level.get_many((_KEY,))) == {_KEY: b"1"}

    def test_async_calls_see_what_sync_calls_wrote(self, level: Level) -> None:
        """Both faces of a level are one level."""

        async def use() -> None:
            level.put_many([_stored(_KEY, b"sync")])
            assert dict(await level.aget_many((_KEY,))) == {_KEY: b"sync"}
            await level.aput_many([_stored(_OTHER, b"async")])
            assert dict(level.get_many((_OTHER,))) == {_OTHER: b"async"}
            await level.adelete_many((_KEY,))
            assert not await level.aget_many((_KEY,))
            await level.aclear()
            assert not await level.aget_many((_OTHER,))
            await level.aclose()

        asyncio.run(use())

    def test_one_event_loop_after_another(self, level: Level) -> None:
        """Connections that belong to a loop do not outlive it."""

        def once(call: Callable[[], Awaitable[None]]) -> None:
            async def use() -> None:
                await call()
                await level.aclose()

            asyncio.run(use())

        once(lambda: level.aput_many([_stored(_KEY, b"1")]))
        once(lambda: level.aput_many([_stored(_OTHER, b"2")]))

    def test_threads_together(self, level: Level) -> None:
        """Threads that read and write at once lose nothing."""

        def work(number: int) -> bool:
            key = hashlib.blake2b(bytes((number,)), digest_size=20).digest()
            level.put_many([_stored(key, key * 3)])
            return dict(level.get_many((key,))) == {key: key * 3}

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(work, range(200)))


def _stored(key: bytes, blob: bytes) -> Stored:
    return Stored(key, blob, time.time() + 60)
