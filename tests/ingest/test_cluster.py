"""Workers that are someone else's: what every cluster can count on."""

from __future__ import annotations

import threading

import pytest

from ragaccel import VectorCollection
from ragaccel.errors import ConfigurationError
from ragaccel.ingest import Cluster, ingest
from tests.ingest import texts
from tests.ingest.pools import PoolWorkers


def in_memory(documents, workers, transform=texts.sentences):
    """Ingest into a collection in memory; return the report and the rows in their order."""
    with VectorCollection.open() as collection:
        report = ingest(
            documents, collection, embed=texts.HashModel(), transform=transform, workers=workers
        )
        return report, list(texts.rows(collection).items())


def test_split_and_embedded_elsewhere_the_rows_are_the_same():
    """In the same order, with the same bad documents, and nothing is left connected."""
    documents = [
        *texts.documents(600), ("p", "poison"), ("u", "unembeddable"), *texts.documents(100, 1),
    ]  # fmt: skip
    workers = PoolWorkers()
    assert isinstance(workers, Cluster)
    report, rows = in_memory(documents, workers)
    expected, expected_rows = in_memory(documents, 0)
    assert rows == expected_rows
    assert [str(one) for one in report.errors] == [str(one) for one in expected.errors]
    assert {"transform", "embed"} < set(workers.calls)
    assert not workers.is_connected


def test_what_is_broken_off_calls_no_more(tmp_path):
    """The workers are let go of before the error comes out."""
    workers = PoolWorkers()

    def source():
        number = 0
        while workers.calls.count("transform") < 20:
            yield (f"{number}", "one. two")
            number += 1
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        in_memory(source(), workers, texts.Slow(texts.sentences, str(tmp_path)))
    assert not workers.is_connected
    assert not workers.late


def test_a_job_that_cannot_be_sent_is_refused():
    """Before a document is read, and the cluster is let go of."""
    workers, lock = PoolWorkers(), threading.Lock()
    with pytest.raises(ConfigurationError, match="cannot be sent to a cluster"):
        in_memory(iter([]), workers, lambda _: [lock])
    assert not workers.is_connected


@pytest.mark.parametrize("workers", [-1, 1.5, "2", object()])
def test_workers_are_a_number_or_a_cluster(workers):
    """Anything else is told what could be given."""
    with pytest.raises(ConfigurationError, match="a whole number, RayWorkers, DaskWorkers"):
        in_memory([], workers)
