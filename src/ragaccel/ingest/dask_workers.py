"""Workers on a Dask cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ragaccel.errors import MissingExtraError
from ragaccel.ingest.cluster import perform

if TYPE_CHECKING:
    from ragaccel.ingest.cluster import Job


class DaskWorkers:
    """Workers of `ingest` on a Dask cluster; every thread of it takes one call at a time.

    Transformations in Python need workers with one thread each, as in
    `LocalCluster(n_workers=4, threads_per_worker=1)`.

    Args:
        client: A `distributed.Client`, not an asynchronous one; it is left open.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self._running: set[Any] = set()

    def connect(self) -> int:
        """Return how many threads the workers have.

        Raises:
            MissingExtraError: Dask is not installed.
        """
        try:
            import cloudpickle
        except ImportError as error:
            raise MissingExtraError("dask", "distributed") from error
        self._dumps = cloudpickle.dumps
        return sum(self._client.nthreads().values())

    def publish(self, job: Job) -> Any:
        """Make a task of a job, which is done anew where workers that had it are gone."""
        return self._client.submit(bytes, self._dumps(job), pure=False)

    def call(self, published: Any, method: str, argument: Any) -> Any:
        """Have a worker do a part of the job.

        Raises:
            Exception: It raised that, or its workers died.
        """
        future = self._client.submit(perform, published, method, argument, pure=False)
        self._running.add(future)
        try:
            return future.result()
        finally:
            self._running.discard(future)

    def disconnect(self) -> None:
        """Cancel what runs."""
        self._client.cancel(list(self._running))
