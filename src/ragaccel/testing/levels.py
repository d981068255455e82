"""What every level of a cache must do."""

from __future__ import annotations

import asyncio
import hashlib
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from ragaccel.cache import Stored, Usage
from ragaccel.cache.levels import NO_NAMESPACE

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

    def test_keys_that_begin_alike_in_one_put_are_no_fault(self, level: Level) -> None:
        """Two keys with the same first bytes never cost the other entries."""
        level.put_many([_stored(_KEY, b"kept")])
        alike = [b"a" * 16 + b"1234", b"a" * 16 + b"5678"]
        level.put_many([_stored(key, key) for key in alike])
        assert all(level.get_many((key,)).get(key, key) == key for key in alike)
        assert dict(level.get_many((_KEY,))) == {_KEY: b"kept"}

    def test_the_last_of_a_key_twice_in_one_put_counts(self, level: Level) -> None:
        """Writing a key twice in one call replaces it and loses nothing else."""
        level.put_many([_stored(_OTHER, b"kept")])
        level.put_many([_stored(_KEY, b"old"), _stored(_KEY, b"new")])
        assert dict(level.get_many((_KEY, _OTHER))) == {_KEY: b"new", _OTHER: b"kept"}

    def test_a_call_without_keys_is_no_fault(self, level: Level) -> None:
        """Empty reads, writes and deletions do nothing, and the level works on."""
        assert not level.get_many(())
        level.put_many(())
        level.delete_many(())
        level.put_many([_stored(_KEY, b"1")])
        assert dict(level.get_many((_KEY,))) == {_KEY: b"1"}

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

    def test_scan_yields_a_namespace(self, level: Level) -> None:
        """Exactly the entries of the namespace are yielded, once each, with their last blobs."""
        spaces = {namespace: _many(namespace, 600) for namespace in (b"n" * 8, b"m" * 8)}
        for namespace, blobs in spaces.items():
            level.put_many([_stored(key, b"replaced", namespace) for key in blobs])
            level.put_many([_stored(key, blob, namespace) for key, blob in blobs.items()])
        for namespace, blobs in spaces.items():
            scanned = list(level.scan(namespace))
            assert len(scanned) == len(blobs)
            assert dict(scanned) == blobs
        assert not list(level.scan(b"x" * 8))

    def test_usage_counts_the_entries(self, level: Level) -> None:
        """How many entries are here is told right, or not at all."""
        for stored in (1, 2):
            level.put_many([_stored(_KEY, b"1"), _stored(_OTHER, b"2")][:stored])
            usage = level.usage()
            assert isinstance(usage, Usage)
            assert usage.entries in {stored, -1}
            assert usage.bytes == -1 or usage.bytes >= stored
            assert usage.evictions in {0, -1}
        level.clear()
        assert level.usage().entries in {0, -1}

    def test_a_pickled_level_works(self, level: Level) -> None:
        """A level can be sent to another process."""
        copy = pickle.loads(pickle.dumps(level))  # noqa: S301 - our own bytes
        copy.put_many([_stored(_KEY, b"1")])
        assert dict(copy.get_many((_KEY,))) == {_KEY: b"1"}
        copy.close()

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


def _stored(key: bytes, blob: bytes, namespace: bytes = NO_NAMESPACE) -> Stored:
    return Stored(key, blob, time.time() + 60, namespace=namespace)


def _many(namespace: bytes, count: int) -> dict[bytes, bytes]:
    keys = (
        hashlib.blake2b(b"%d" % n, digest_size=20, key=namespace).digest() for n in range(count)
    )
    return {key: key[: n % 20] for n, key in enumerate(keys)}
