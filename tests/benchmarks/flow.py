"""What `gather`, `agather` and `stream` cost per item, beside what one would write by hand.

    python -m tests.benchmarks.flow

Calls that do nothing, so that the cost of the machinery is all there is; beside it calls that take
a millisecond, as a search does. Every ratio is the median of rounds that measure both in turn.
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from ragaccel.batching import StreamStage, agather, gather, stream
from tests.benchmarks.ratios import compare

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ITEMS, CONCURRENCY, ROUNDS = 2000, 16, 9


def plain(item: int) -> int:
    """Do nothing."""
    return item


async def turn(item: int) -> int:
    """Do nothing, on the event loop."""
    await asyncio.sleep(0)
    return item


def search(item: int) -> int:
    """Wait for a millisecond."""
    time.sleep(0.001)
    return item


async def asearch(item: int) -> int:
    """Wait for a millisecond, on the event loop."""
    await asyncio.sleep(0.001)
    return item


def pool(call: Callable[[int], int]) -> None:
    """Map over a pool of threads."""
    with ThreadPoolExecutor(CONCURRENCY) as threads:
        for _ in threads.map(call, range(ITEMS)):
            pass


async def semaphore(call: Callable[[int], Any]) -> None:
    """Gather everything, so many at a time."""
    free = asyncio.Semaphore(CONCURRENCY)

    async def one(item: int) -> int:
        async with free:
            return await call(item)

    await asyncio.gather(*map(one, range(ITEMS)), return_exceptions=True)


async def queues(call: Callable[[int], Any]) -> None:
    """Connect two stages by bounded queues, without order, errors or cancellation."""
    first, second, done = (asyncio.Queue[int](2 * CONCURRENCY) for _ in range(3))

    async def feed() -> None:
        for item in range(ITEMS):
            await first.put(item)

    async def work(taken: asyncio.Queue[int], given: asyncio.Queue[int]) -> None:
        while True:
            await given.put(await call(await taken.get()))

    tasks = [asyncio.create_task(feed())]
    for taken, given in ((first, second), (second, done)):
        tasks += [asyncio.create_task(work(taken, given)) for _ in range(CONCURRENCY)]
    for _ in range(ITEMS):
        await done.get()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def streamed(call: Callable[[int], Any]) -> None:
    """Send the items through two stages."""
    stages = [StreamStage(call, CONCURRENCY), StreamStage(call, CONCURRENCY)]
    async for _ in stream(range(ITEMS), stages):
        pass


async def agathered(call: Callable[[int], Any]) -> None:
    """Take every outcome."""
    async for _ in agather(range(ITEMS), call, concurrency=CONCURRENCY):
        pass


def gathered(call: Callable[[int], Any]) -> None:
    """Take every outcome."""
    for _ in gather(range(ITEMS), call, concurrency=CONCURRENCY):
        pass


def pairs() -> Iterator[tuple[str, str, Callable[[], Any], Callable[[], Any]]]:
    """Yield what is compared with what."""
    yield "gather, nothing", "ThreadPoolExecutor.map", lambda: gathered(plain), lambda: pool(plain)
    yield "gather, 1 ms", "ThreadPoolExecutor.map", lambda: gathered(search), lambda: pool(search)
    for title, call in (("nothing", turn), ("1 ms", asearch)):
        yield (
            f"agather, {title}",
            "asyncio.gather + Semaphore",
            lambda call=call: asyncio.run(agathered(call)),
            lambda call=call: asyncio.run(semaphore(call)),
        )
        yield (
            f"stream of 2 stages, {title}",
            "asyncio.Queue by hand",
            lambda call=call: asyncio.run(streamed(call)),
            lambda call=call: asyncio.run(queues(call)),
        )


def main() -> None:
    """Print the table."""
    table = Table("ours", "by hand", "ours, µs an item", "by hand", "ratio")
    for title, other, ours, theirs in pairs():
        mine, bare, ratio = compare(ours, theirs, times=1, rounds=ROUNDS)
        table.add_row(title, other, f"{mine / ITEMS:.1f}", f"{bare / ITEMS:.1f}", f"{ratio:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
