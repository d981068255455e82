"""What other processes do in the tests; run as a script with a role and arguments."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from ragaccel import VectorCollection
from ragaccel.ingest import DaskWorkers, RayWorkers, flow, ingest
from tests.ingest import texts
from tests.ingest.kits import KITS

DOCUMENTS = 600


def given(kit):
    """Return the documents that `run` takes in."""
    return [kit.document(id_, text) for id_, text, _ in texts.documents(DOCUMENTS)]


# -- what a child does -----------------------------------------------------------------------------


def run(name, folder, pids, where="processes"):
    """Ingest with two workers, slowly, in many small transactions; then say so."""
    flow._WINDOW_CHUNKS = 50
    kit = KITS[name]()
    with WORKERS[where]() as workers:
        store = kit.open(folder)
        _tell("open")
        transform = texts.Slow(kit.transform, pids)
        _tell(ingest(given(kit), store, embed=kit.model, transform=transform, workers=workers))
        kit.close(store)


def outlast(pids, workers):
    """Ingest documents that take very long."""
    store = KITS["bare"]().open()
    documents = [(f"{number}", "text", {"path": pids}) for number in range(4)]
    ingest(documents, store, embed=texts.HashModel(), transform=texts.endless, workers=int(workers))


@contextlib.contextmanager
def _dask():
    import distributed

    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, host="127.0.0.1"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield DaskWorkers(client)


@contextlib.contextmanager
def _ray():
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield RayWorkers(num_cpus=2, object_store_memory=100 << 20, _temp_dir=folder)


WORKERS = {"processes": lambda: contextlib.nullcontext(2), "dask": _dask, "ray": _ray}


def _tell(line):
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


# -- what a test does with a child -----------------------------------------------------------------


def environment():
    """Return the variables of a child."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}


@contextlib.contextmanager
def child(*arguments):
    """Run a role in a process group of its own; kill it at the end."""
    process = subprocess.Popen(
        [sys.executable, __file__, *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
        start_new_session=True,
    )  # fmt: skip
    with process:
        try:
            yield process
        finally:
            process.kill()


def interrupt(process):
    """Do what Ctrl-C in a terminal does, wait for the end, and return the error output.

    Returns:
        Also the processes that descended from it, and still run.
    """
    below = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=240)
    _, left = psutil.wait_procs(below, timeout=60)
    return errors, left


def until(condition):
    """Wait until something is so."""
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def alive(folder):
    """Return the processes that have noted themselves in a folder and still run."""
    found = []
    for file in Path(folder).iterdir():
        with contextlib.suppress(psutil.NoSuchProcess):
            if psutil.Process(int(file.name)).status() != psutil.STATUS_ZOMBIE:
                found.append(int(file.name))
    return found


def stored(kit, folder):
    """Return all that a folder holds, by id."""
    store = kit.open(folder)
    rows = texts.rows(kit.collection(store))
    kit.close(store)
    return rows


def check_interrupted(where, folder, pids):
    """Interrupt a run once some documents are stored, look at what is there, and end it."""
    kit = KITS["bare"]()
    with child("run", "bare", folder, pids, where) as process:
        assert process.stdout.readline() == "open\n"
        with VectorCollection.open(folder, read_only=True) as reader:
            until(lambda: process.poll() is not None or len(reader) > 0)
        assert process.poll() is None, process.stderr.read()
        errors, left = interrupt(process)
    assert "KeyboardInterrupt" in errors, errors
    assert not left
    partly = stored(kit, folder)
    assert is_whole(partly)
    undisturbed, resumed = kit.open(), kit.open(folder)
    transform = texts.Slow(kit.transform, str(pids))
    first, second = (
        ingest(given(kit), store, embed=kit.model, transform=transform, workers=0)
        for store in (undisturbed, resumed)
    )
    assert second.chunks == first.chunks - len(partly) < first.chunks
    assert texts.rows(resumed) == texts.rows(undisturbed)


def is_whole(rows):
    """Tell whether of each document there are as many rows as their ids say."""
    marks = [id_.split("-")[0] for id_ in rows]
    return all(marks.count(id_.split("-")[0]) == int(id_.split("of")[1]) for id_ in rows)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    {"run": run, "outlast": outlast}[sys.argv[1]](*sys.argv[2:])
