"""Workers on a Ray cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ragaccel.errors import MissingExtraError
from ragaccel.ingest.cluster import perform

if TYPE_CHECKING:
    from ragaccel.ingest.cluster import Job


class RayWorkers:
    """Workers of `ingest` on a Ray cluster; every CPU of it takes one call at a time.

    Where Ray is initialized already, it is used and left as it is. Otherwise it is initialized for
    the ingestion and shut down after it.

    A Ray of 2.60 or later writes an authentication token into the home directory when it is first
    initialized, unless the environment has `RAY_AUTH_MODE=disabled`.

    Args:
        options: Of `ray.init`, such as `address="auto"` for a cluster that runs, or `num_cpus=4`
            for one on this machine. There is no dashboard and no logs of workers unless they are
            asked for. `_temp_dir` must be short: Ray keeps sockets in it.
    """

    def __init__(self, **options: Any) -> None:
        self._options = options
        self._ray: Any = None
        self._is_ours = False
        self._running: set[Any] = set()

    def connect(self) -> int:
        """Initialize Ray, unless it is; return the CPUs of the cluster.

        Raises:
            MissingExtraError: Ray is not installed.
        """
        try:
            import ray
        except ImportError as error:
            raise MissingExtraError("ray", "ray") from error
        self._ray = ray
        self._is_ours = not ray.is_initialized()
        if self._is_ours:
            quiet = {"include_dashboard": False, "log_to_driver": False}
            ray.init(**({} if "address" in self._options else quiet) | self._options)
        self._perform = ray.remote(max_retries=1)(perform)
        return int(ray.cluster_resources().get("CPU", 1))

    def publish(self, job: Job) -> Any:
        """Put a job into Ray's object store."""
        from ray import cloudpickle

        return self._ray.put(cloudpickle.dumps(job))

    def call(self, published: Any, method: str, argument: Any) -> Any:
        """Have a worker do a part of the job.

        Raises:
            Exception: It raised that, or its worker died.
        """
        reference = self._perform.remote(published, method, argument)
        self._running.add(reference)
        try:
            return self._ray.get(reference)
        finally:
            self._running.discard(reference)

    def disconnect(self) -> None:
        """Cancel what runs; shut Ray down if `connect` initialized it."""
        for reference in list(self._running):
            self._ray.cancel(reference, force=True)
        if self._is_ours:
            self._ray.shutdown()
