"""Transforming and embedding on a cluster: what it must be able to do, and how it is used.

Documents are split and texts embedded by the workers. Looking up and writing stay here, in the same
order as without a cluster, so that the collection is the same, row by row, and so are the segments
that are built of it. A job is sent to the workers once, then groups of documents and texts.

What that costs for many, and why codes are made here, is in examples/many_machines/README.md.
"""

from __future__ import annotations

import functools
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from ragaccel.errors import ConfigurationError
from ragaccel.ingest.adapter import embedding_of
from ragaccel.ingest.worker import Done, failed, portable, transform

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Future

    from ragaccel.ingest.chunks import Task
    from ragaccel.ingest.worker import Split


@runtime_checkable
class Cluster(Protocol):
    """Machines that calls can be sent to; see `RayWorkers` and `DaskWorkers`."""

    def connect(self) -> int:
        """Get ready; return how many calls can run at a time."""
        ...

    def publish(self, job: Job) -> Any:
        """Send a job to the workers, once; return what stands for it in `call`."""
        ...

    def call(self, published: Any, method: str, argument: Any) -> Any:
        """Return what `perform` of the job gives on some worker. Called by many threads at a time.

        Raises:
            Exception: It raised that, or its worker died.
        """
        ...

    def disconnect(self) -> None:
        """Cancel what still runs, and end what `connect` began."""
        ...


class Job:
    """What workers do.

    Args:
        split: Makes the chunks of a document.
        model: Embeds: a model of a framework, or a function.
    """

    def __init__(self, split: Split, model: Any) -> None:
        self._split, self._model = split, model

    def ready(self, _: object) -> None:
        """Do nothing, which shows that the job could be loaded."""

    def transform(self, group: Sequence[Task]) -> Done:
        """Split documents."""
        return transform(self._split, group)

    def embed(self, texts: list[str]) -> Any:
        """Return vectors, (n, dim) where they have one dimension, or what the model raised."""
        try:
            vectors = embedding_of(self._model)(texts)
        except Exception as error:  # noqa: BLE001 - the parent raises it
            return portable(error)
        try:
            return np.asarray(vectors, np.float32)
        except (TypeError, ValueError):  # the parent tells which are wrong
            return vectors


def perform(pickled: bytes, method: str, argument: Any) -> Any:
    """Do a part of a job, on a worker."""
    return getattr(_loaded(pickled), method)(argument)


@functools.lru_cache(maxsize=2)
def _loaded(pickled: bytes) -> Job:
    job: Job = pickle.loads(pickled)  # noqa: S301 - the parent's own
    return job


class OnCluster:
    """Transforms groups of documents and embeds texts on a cluster.

    Documents whose worker dies are tried one by one, so that it is known which of them did it.

    Args:
        cluster: The cluster.
        job: What its workers do.

    Attributes:
        count: How many calls can run at a time.
    """

    def __init__(self, cluster: Cluster, job: Job) -> None:
        """Connect and publish.

        Raises:
            ConfigurationError: The job cannot be sent, or not be loaded by a worker.
        """
        self._cluster, self._is_stopped = cluster, False
        self.count = max(1, cluster.connect())
        try:
            self._published = self._sent(job)
        except BaseException:
            cluster.disconnect()
            raise
        self._threads = ThreadPoolExecutor(self.count, "ragaccel-ingest")

    def submit(self, group: Sequence[Task]) -> Future[Done]:
        """Begin to transform a group."""
        return self._threads.submit(self._run, group)

    def embed(self, texts: list[str]) -> Any:
        """Return the vectors of texts.

        Raises:
            Exception: What the model raised.
        """
        made = self._cluster.call(self._published, "embed", texts)
        if isinstance(made, Exception):
            raise made
        return made

    def close(self, *, kill: bool = False) -> None:
        """End it.

        Args:
            kill: Do not wait for what the workers do now, and ask them for nothing more.
        """
        self._is_stopped = kill
        self._threads.shutdown(wait=not kill, cancel_futures=True)
        self._cluster.disconnect()
        self._threads.shutdown()

    def _sent(self, job: Job) -> Any:
        try:
            published = self._cluster.publish(job)
        except Exception as error:
            raise ConfigurationError(
                f"the transformation or the model cannot be sent to a cluster ({error}): pass "
                "functions of a module; one that embeds may load its model when it is first called."
            ) from error
        try:
            self._cluster.call(published, "ready", None)
        except Exception as error:
            raise ConfigurationError(
                f"a worker of the cluster cannot load the transformation or the model ({error}): "
                "ragaccel and the modules that they stand in must be installed there."
            ) from error
        return published

    def _run(self, group: Sequence[Task]) -> Done:
        try:
            done: Done = self._cluster.call(self._published, "transform", group)
        except Exception as error:  # a document that kills its worker, or the end
            if self._is_stopped:
                raise
            if len(group) == 1:
                return Done([failed(error)], 0.0)
        else:
            return done
        parts = [self._run([task]) for task in group]
        return Done([part.outcomes[0] for part in parts], sum(part.seconds for part in parts))
