"""What the tests of the cache share."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ragaccel
from ragaccel.cache import DiskLevel, Stored

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pytest

    from ragaccel.cache import Level, MultiLevelCache

FILE = "cache.sqlite"
SOURCE = str(Path(ragaccel.__file__).parents[1])
PATIENCE = 30.0  # seconds after which something that should have happened counts as never


def key(name: object) -> bytes:
    """Return a key such as a cache gives to its levels."""
    return hashlib.blake2b(repr(name).encode(), digest_size=20).digest()


def stored(name: object, blob: bytes = b"blob", seconds: float = 60.0) -> Stored:
    """Return an entry that lives for some seconds of the real clock."""
    return Stored(key(name), blob, time.time() + seconds)


def here(level: Level, *names: object) -> list[object]:
    """Return those of the names that a level has."""
    found = level.get_many([key(name) for name in names])
    return [name for name in names if key(name) in found]


def together(count: int, work: Callable[[int], Any]) -> list[Any]:
    """Run `work(0)` to `work(count - 1)` in as many threads that start at once."""
    start = threading.Barrier(count)

    def run(number: int) -> Any:
        start.wait(PATIENCE)
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


def logged(caplog: pytest.LogCaptureFixture, part: str = "") -> list[str]:
    """Return the lines that the cache logged and that contain a part."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "ragaccel.cache" and part in record.getMessage()
    ]


def wait_until(so: Callable[[], bool]) -> None:
    """Poll until something is so."""
    end = time.monotonic() + PATIENCE
    while not so():
        assert time.monotonic() < end, f"not so within {PATIENCE} s"
        time.sleep(0.01)


def script(code: str, *arguments: object, timeout: float = 120.0) -> str:
    """Run a program in a process of its own and return what it printed; it must end well."""
    program = "import faulthandler; faulthandler.enable()\n" + textwrap.dedent(code)
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": SOURCE},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout


class Compute:
    """A computation that counts its calls, for sync callers (`c`) and async ones (`c.awaited`)."""

    def __init__(self, value: Any = "value") -> None:
        self.value = value
        self.calls = 0
        self._lock = threading.Lock()

    def __call__(self) -> Any:
        with self._lock:
            self.calls += 1
        return self.value

    async def awaited(self) -> Any:
        return self()


class Sync:
    """Calls the sync methods of a cache."""

    name = "sync"

    def get(self, cache: MultiLevelCache, key: Any) -> Any:
        return cache.get(key)

    def get_many(self, cache: MultiLevelCache, keys: Sequence[Any]) -> list[Any]:
        return cache.get_many(keys)

    def set(self, cache: MultiLevelCache, key: Any, value: Any, **options: Any) -> None:
        cache.set(key, value, **options)

    def delete(self, cache: MultiLevelCache, key: Any) -> None:
        cache.delete(key)

    def get_or_compute(
        self, cache: MultiLevelCache, key: Any, compute: Callable[[], Any], **options: Any
    ) -> Any:
        return cache.get_or_compute(key, compute, **options)

    def invalidate(self, cache: MultiLevelCache, **named: Any) -> None:
        cache.invalidate(**named)

    def clear(self, cache: MultiLevelCache) -> None:
        cache.clear()

    def close(self, cache: MultiLevelCache) -> None:
        cache.close()


class Async:
    """Calls the async methods of a cache, on one event loop of its own."""

    name = "async"

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()

    def get(self, cache: MultiLevelCache, key: Any) -> Any:
        return self._run(lambda: cache.aget(key))

    def get_many(self, cache: MultiLevelCache, keys: Sequence[Any]) -> list[Any]:
        return self._run(lambda: cache.aget_many(keys))

    def set(self, cache: MultiLevelCache, key: Any, value: Any, **options: Any) -> None:
        self._run(lambda: cache.aset(key, value, **options))

    def delete(self, cache: MultiLevelCache, key: Any) -> None:
        self._run(lambda: cache.adelete(key))

    def get_or_compute(
        self, cache: MultiLevelCache, key: Any, compute: Callable[[], Any], **options: Any
    ) -> Any:
        async def awaited() -> Any:
            return compute()

        return self._run(lambda: cache.aget_or_compute(key, awaited, **options))

    def invalidate(self, cache: MultiLevelCache, **named: Any) -> None:
        self._run(lambda: cache.ainvalidate(**named))

    def clear(self, cache: MultiLevelCache) -> None:
        self._run(cache.aclear)

    def close(self, cache: MultiLevelCache) -> None:
        self._run(cache.aclose)

    def _run(self, call: Callable[[], Any]) -> Any:
        async def within() -> Any:
            return await call()

        return self.loop.run_until_complete(within())


Face = Sync | Async


def share_a_file(path: str, me: str, other: str) -> int:
    """Write 300 entries while another process does, and return how many of its own were read."""
    level = DiskLevel(path)
    seen = 0
    for number in range(300):
        level.put_many([stored((me, number))])
        assert here(level, (me, number)) == [(me, number)]
        here(level, (other, number))
        seen += len(here(level, (me, number // 2)))
    level.close()
    return seen


PUPPET = """
import os, sys
from ragaccel.cache import MISSING, MultiLevelCache
def wait_for(path):
    while not os.path.exists(path):
        pass
for line in sys.stdin:
    try:
        print(repr(eval(line)) if not line.startswith("!") else exec(line[1:]), flush=True)
    except Exception as error:
        print(f"{type(error).__name__}: {error}".replace("\\n", " "), flush=True)
"""


class Puppet:
    """Another process, which does what it is told; `!` begins a statement."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PUPPET],
            env={**os.environ, "PYTHONPATH": SOURCE},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, code: str) -> str:
        self.begin(code)
        return self.end()

    def begin(self, code: str) -> None:
        print(code, file=self.process.stdin, flush=True)

    def end(self) -> str:
        return self.process.stdout.readline().strip()

    def open(self, folder: Path, **options: Any) -> None:
        given = "".join(f", {name}={value!r}" for name, value in options.items())
        assert self(f"!cache = MultiLevelCache.open({str(folder)!r}{given})") == "None"

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@contextlib.contextmanager
def locked(folder: Path):
    """Hold the lock of the cache file, as a process that writes for long does."""
    with contextlib.closing(sqlite3.connect(folder / FILE, isolation_level=None)) as db:
        db.execute("BEGIN EXCLUSIVE")
        yield
        db.execute("ROLLBACK")
