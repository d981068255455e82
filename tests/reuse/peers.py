"""One process of several over the same documents and cache: it writes, or reads and is as fresh.

Run as a script it does what it is told in lines of JSON, and answers so.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import subprocess
import sys

import numpy as np
from langchain_core.embeddings import Embeddings

from ragaccel import MultiLevelCache, accelerate
from ragaccel.langchain import CompressedVectorStore

DIM = 16
KINDS = {
    "one": {"k": 1},
    "three": {"k": 3},
    "equal": {"k": 3, "filter": {"group": 1}},
    "range": {"k": 2, "filter": {"group": {"$gte": 2}}},
    "either": {"k": 4, "filter": {"$or": [{"group": 0}, {"kept": {"$ne": True}}]}},
    "all": {"k": 1000},
}


class Numbered(Embeddings):
    """Every text has a random direction of its own, near that of its first word."""

    def embed_documents(self, texts):
        return [_direction(text) for text in texts]

    def embed_query(self, text):
        return _direction(text)


@functools.lru_cache(maxsize=200_000)
def _direction(text):
    seed = int.from_bytes(text.encode(), "big")
    own = np.random.default_rng(seed).standard_normal(DIM)
    topic = np.random.default_rng(int.from_bytes(text.split()[0].encode(), "big"))
    return (topic.standard_normal(DIM) + 0.5 * own).tolist()


class Peer:
    """The documents and the cache of two folders, as one process has them open."""

    def __init__(self, folder, *, read_only, compression="float32"):
        self.store = CompressedVectorStore.open(
            f"{folder}/corpus", Numbered(), read_only=read_only, compression=compression
        )
        self.cache = MultiLevelCache.open(f"{folder}/cache")
        self.plain = {
            name: self.store.as_retriever(search_kwargs=dict(asked))
            for name, asked in KINDS.items()
        }
        self.fast = {
            name: accelerate(plain, cache=self.cache) for name, plain in self.plain.items()
        }

    def add(self, ids, texts, metadatas):
        self.store.add_texts(texts, metadatas, ids=ids)

    def delete(self, ids):
        self.store.delete(ids)

    def tidy(self, how):
        getattr(self.store.collection, how)()

    def invalidate(self, documents):
        self.cache.invalidate(documents=documents)

    def ask(self, kind, query):
        """Return the cached answer, and that of a search from scratch."""
        return [
            [(one.id, one.page_content, one.metadata) for one in retriever[kind].invoke(query)]
            for retriever in (self.fast, self.plain)
        ]

    def recalls(self, kind, query):
        """Return how many of the rows that are truly nearest each of the two answers has."""
        with self.store.collection.exactly():
            true = {one.id for one in self.plain[kind].invoke(query)}
        return [
            len(true.intersection(row for row, *_ in answer)) for answer in self.ask(kind, query)
        ]

    def figures(self):
        stats = self.cache.stats()
        return sum(stats.hits.values()), stats.misses, stats.stale

    def close(self):
        self.cache.close()
        self.store.close()


class Remote:
    """Another process, which has at most one `Peer`."""

    def __init__(self):
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        )

    def open(self, folder, **options):
        self._do("open", [str(folder)], options)
        return self

    def __getattr__(self, name):
        return lambda *given: self._do(name, given, {})

    def _do(self, name, given, options):
        print(json.dumps([name, given, options]), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def end(self):
        with self._process, contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
            self._process.wait(30)


def main():
    peer = None
    for line in sys.stdin:
        name, given, options = json.loads(line)
        if name == "open":
            peer, found = Peer(*given, **options), None
        else:
            found = getattr(peer, name)(*given)
        sys.stdout.write(json.dumps(found) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
