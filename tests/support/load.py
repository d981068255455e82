"""A process under load, in which every metric has something to tell; run as a program by tests."""

from __future__ import annotations

import contextlib
import contextvars
import random
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from langchain_core.language_models import FakeListChatModel

from ragaccel import MicroBatcher, MultiLevelCache, VectorCollection, accelerate, telemetry
from ragaccel.cache import PLAIN, Kind
from ragaccel.reuse import VerifiedReuse

_ANSWER = Kind("answer", PLAIN.pack, PLAIN.open, tokens=lambda _: (50, 20))
_NOBODY_LISTENS = "redis://127.0.0.1:1"


class Application:
    """A cache of three levels of which one is away, a collection, a batcher, and a model."""

    def __init__(self, folder: Path) -> None:
        self.cache = MultiLevelCache.open(
            folder / "cache", redis=_NOBODY_LISTENS, memory_bytes=20_000
        )
        self.collection = VectorCollection.open(folder / "documents")
        rows = np.random.default_rng(0).standard_normal((200, 8)).astype(np.float32)
        self.collection.upsert([str(at) for at in range(len(rows))], rows)
        self.embed = MicroBatcher(self._embedded, workers=1)
        self.model = accelerate(
            FakeListChatModel(responses=["yes"]),
            cache=self.cache,
            semantic=VerifiedReuse(embed=lambda text: [1.0, len(text)]),
        )
        self._threads = ThreadPoolExecutor(4)
        self._round = 0

    @staticmethod
    def _embedded(texts: list[str]) -> list[list[float]]:
        time.sleep(0.002)
        return [[random.Random(text).random() for _ in range(8)] for text in texts]

    def work(self) -> None:
        """Answer some questions at once, of which some were asked before; one fails."""
        self._round += 1
        old = [f"question {random.randrange(300)}" for _ in range(4)]
        asked = old + [f"question {self._round}.{at}" for at in range(4)]
        for job in [
            self._threads.submit(contextvars.copy_context().run, self._answer, one) for one in asked
        ]:
            job.result()
        self.cache.bypass("component")
        self.model.invoke("please " * (self._round % 100 + 1))
        with contextlib.suppress(ValueError), telemetry.stage("generate"):
            raise ValueError

    def _answer(self, question: str) -> None:
        with telemetry.stage("query"):
            self.cache.get_or_compute(question, lambda: self._found(question), kind=_ANSWER)

    def _found(self, question: str) -> str:
        with telemetry.stage("embed"):
            vector = self.embed(question)
        return str([hit.id for hit in self.collection.search(vector)[0]]) * 20


def main(port: int) -> None:
    """Serve metrics, and work until the standard input is closed."""
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    telemetry.configure(prometheus_port=port, service_name="load")
    with tempfile.TemporaryDirectory() as folder:
        application = Application(Path(folder))
        while not ended.wait(0.01):
            application.work()
        application.collection.close()
        application.cache.close()


if __name__ == "__main__":
    main(int(sys.argv[1]))
