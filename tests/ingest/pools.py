"""A cluster that is a pool of processes, as a third party might write one."""

from __future__ import annotations

import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor

from ragaccel.ingest.cluster import perform


class PoolWorkers:
    """Two spawned processes with calls in line; notes what it is asked for, and when too late."""

    def __init__(self):
        self.calls = []
        self.late = []
        self.is_connected = False

    def connect(self):
        self._pool = ProcessPoolExecutor(2, multiprocessing.get_context("spawn"))
        self.is_connected = True
        return 12

    def publish(self, job):
        return pickle.dumps(job)

    def call(self, published, method, argument):
        (self.calls if self.is_connected else self.late).append(method)
        return self._pool.submit(perform, published, method, argument).result()

    def disconnect(self):
        self.is_connected = False
        self._pool.shutdown(cancel_futures=True)
