"""`aingest`: the same from an event loop, with iterables of its own."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from ragaccel import VectorCollection
from ragaccel.errors import ConfigurationError
from ragaccel.ingest import aingest, ingest
from tests.ingest import texts


@pytest.fixture
def collection():
    """An empty collection in memory."""
    with VectorCollection.open() as made:
        yield made


async def each(documents, pause=0.0):
    """Yield documents, letting others run in between."""
    for document in documents:
        await asyncio.sleep(pause)
        yield document


OPTIONS = {"embed": texts.HashModel(), "transform": texts.sentences, "workers": 0}


@pytest.mark.parametrize("wrap", [list, each])
async def test_it_does_what_ingest_does(collection, wrap):
    """With a list as with an asynchronous generator, and the loop goes on meanwhile."""
    beats = []

    async def beat():
        while True:
            beats.append(time.monotonic())
            await asyncio.sleep(0.001)

    heart = asyncio.ensure_future(beat())
    report = await aingest(wrap(texts.documents(200)), collection, **OPTIONS)
    heart.cancel()
    with VectorCollection.open() as other:
        expected = ingest(texts.documents(200), other, **OPTIONS)
        assert texts.rows(collection) == texts.rows(other)
    assert (report.stored, report.embedded) == (expected.stored, expected.embedded)
    assert len(beats) > 5


async def test_a_cancellation_ends_it(collection):
    """Even while it waits for a document that never comes; no thread is left."""
    waiting = asyncio.Event()

    async def stuck():
        yield ("a", "one")
        waiting.set()
        await asyncio.sleep(600)

    task = asyncio.ensure_future(aingest(stuck(), collection, **OPTIONS))
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not [one for one in threading.enumerate() if one.name.startswith("ragaccel-ingest")]
    assert collection.count() in {0, 1}


async def test_a_cancellation_ends_it_between_two_calls_of_the_model(collection):
    """What is being embedded is not stored."""
    calls, called, loop = [], asyncio.Event(), asyncio.get_running_loop()

    def embed(some):
        calls.append(len(some))
        loop.call_soon_threadsafe(called.set)
        time.sleep(0.05)
        return [[1.0, 2.0]] * len(some)

    documents = [(f"{number}", f"text {number}") for number in range(100_000)]
    task = asyncio.ensure_future(aingest(documents, collection, **{**OPTIONS, "embed": embed}))
    await called.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(calls) < 6
    assert not len(collection)


async def test_what_the_source_raises_is_raised(collection):
    """Once all is stored that came before."""

    async def source():
        yield ("a", "one")
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        await aingest(source(), collection, **OPTIONS)
    assert [row.text for row in collection.select()] == ["one"]


def test_an_asynchronous_iterable_is_for_aingest(collection):
    """The message says so."""
    with pytest.raises(ConfigurationError, match="await aingest"):
        ingest(each([]), collection, **OPTIONS)
