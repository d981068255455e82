"""Taking in documents: split by processes, embedded and stored in batches, resumed after a kill."""

from ragaccel.ingest.cluster import Cluster
from ragaccel.ingest.dask_workers import DaskWorkers
from ragaccel.ingest.entry import aingest, ingest
from ragaccel.ingest.ray_workers import RayWorkers
from ragaccel.ingest.report import Failure, IngestReport

__all__ = [
    "Cluster", "DaskWorkers", "Failure", "IngestReport", "RayWorkers", "aingest", "ingest",
]  # fmt: skip
