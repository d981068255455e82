"""The same ingestion with workers on real local clusters of Ray and Dask."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import threading
from pathlib import Path

import pytest

from ragaccel import CompressionSpec, VectorCollection
from ragaccel.errors import ConfigurationError
from ragaccel.ingest import DaskWorkers, RayWorkers, ingest
from tests.ingest import texts
from tests.ingest.children import check_interrupted
from tests.ingest.kits import KITS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::UserWarning"),
]


@contextlib.contextmanager
def dask():
    """A local cluster of two processes, with one thread each."""
    distributed = pytest.importorskip("distributed", reason="needs ragaccel[dask]")
    with (
        pytest.importorskip("dask").config.set(
            {
                "distributed.scheduler.allowed-failures": 1,
                "distributed.deploy.lost-worker-timeout": "120s",  # busy machines restart slowly
            }
        ),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, host="127.0.0.1"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield DaskWorkers(client)


@contextlib.contextmanager
def ray():
    """A local cluster of two CPUs that is there for all ingestions of a test."""
    module = pytest.importorskip("ray", reason="needs ragaccel[ray]")
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as folder:
        try:
            _started(module, folder)
            yield RayWorkers()
        finally:
            module.shutdown()


def _started(module, folder):
    """Try again where a busy machine takes longer than the 30 s that Ray allows itself."""
    options = {"include_dashboard": False, "log_to_driver": False, "_temp_dir": folder}
    for tries in range(3):
        try:
            module.init(num_cpus=2, object_store_memory=100 << 20, **options)
        except Exception as error:
            module.shutdown()
            if "timed out during startup" not in str(error) or tries == 2:
                raise
        else:
            return


CLUSTERS = {"dask": dask, "ray": ray}


@pytest.fixture(scope="module", params=list(CLUSTERS))
def cluster(request):
    """Workers on a cluster, one after the other."""
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # else it writes a token into the home
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    handlers = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)}
    with CLUSTERS[request.param]() as workers:
        yield workers
    for one, handler in handlers.items():
        signal.signal(one, handler)


@pytest.mark.parametrize("name", KITS)
def test_the_store_is_the_one_that_a_local_ingestion_makes(name, cluster, tmp_path):
    """Row by row, byte by byte, and so are the segments that are built of it."""
    kit = KITS[name]()
    documents = [kit.document(id_, text) for id_, text, _ in texts.documents(1200)]
    documents.insert(700, kit.document("p", "poison"))
    documents.insert(900, kit.document("u", "unembeddable"))
    stores = {}
    for workers in (0, cluster):
        folder = tmp_path / ("local" if workers == 0 else "cluster")
        store = kit.open(folder)
        report = ingest(documents, store, embed=kit.model, transform=kit.transform, workers=workers)
        collection = kit.collection(store)
        collection.compact()
        stores[folder.name] = (
            list(texts.rows(collection).items()), report.stored, report.embedded,
            [(one.document_id, one.stage, str(one.error)) for one in report.errors],
            segments(folder),
        )  # fmt: skip
        kit.close(store)
    assert stores["cluster"] == stores["local"]
    assert segments(tmp_path / "local")
    assert "p" in {one.document_id for one in report.errors}


def segments(folder):
    """Return the codes of every segment, without the head, which names the collection."""
    files = sorted(path for path in Path(folder).rglob("*") if "segment" in path.name)
    return [file.read_bytes().split(b"\n", 2)[2] for file in files]


def test_a_document_that_kills_its_worker_is_a_bad_one(cluster):
    """Those that were on their way with it are stored."""
    documents = [*texts.documents(60), ("x", "lethal", {})]
    with VectorCollection.open() as collection:
        report = ingest(
            documents, collection, embed=texts.HashModel(), transform=texts.deadly, workers=cluster
        )
    assert [(one.document_id, one.stage) for one in report.errors] == [("x", "transform")]
    assert report.stored == 60


def test_what_workers_cannot_be_sent_is_refused(cluster):
    """Before a document is read."""
    lock = threading.Lock()
    with (
        VectorCollection.open() as collection,
        pytest.raises(ConfigurationError, match="cannot be sent to a cluster"),
    ):
        ingest(
            iter([]), collection, embed=texts.HashModel(), transform=lambda _: [lock],
            workers=cluster,
        )  # fmt: skip


@pytest.mark.parametrize("name", CLUSTERS)
def test_what_ctrl_c_broke_off_is_gone_on_with(name, tmp_path, monkeypatch):
    """Documents are whole or not there, no process is left, and the end is the undisturbed one."""
    pytest.importorskip({"dask": "distributed", "ray": "ray"}[name], reason="needs the extra")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    pids = tmp_path / "pids"
    pids.mkdir()
    check_interrupted(name, tmp_path / "store", pids)


def test_the_second_time_nothing_is_sent(cluster):
    """Documents that are stored are passed over, whichever workers stored them."""
    documents = texts.documents(50)
    with VectorCollection.open(compression=CompressionSpec("float32")) as collection:
        options = {"embed": texts.HashModel(), "transform": texts.sentences}
        ingest(documents, collection, workers=cluster, **options)
        report = ingest(documents, collection, workers=0, **options)
    assert (report.unchanged, report.embedded) == (50, 0)
