"""Memory while many documents go through."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_PROGRAM = """
import sys, threading, time
from pathlib import Path
from ragaccel import VectorCollection
from ragaccel.ingest import ingest
from tests.ingest import texts

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

peak = 0
def watch():
    global peak
    while True:
        peak = max(peak, anonymous())
        time.sleep(0.005)

def documents(count):
    return ((f"{number}", f"short {number % 5}. document") for number in range(count))

threading.Thread(target=watch, daemon=True).start()
with VectorCollection.open(sys.argv[2], compression=sys.argv[3]) as collection:
    ingest(
        documents(int(sys.argv[1])), collection, embed=texts.HashModel(),
        transform=texts.sentences, workers=0,
    )
    print(peak * 1024 - collection.stats().bytes_in_memory)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="RssAnon is Linux's")
@pytest.mark.parametrize(("compression", "growth"), [("float32", 1.3), ("auto", 1.5)])
def test_many_documents_take_no_more_than_a_few(tmp_path, compression, growth):
    """Anonymous memory at the highest is flat, but for codes, and the rows they are made from."""
    few, many = (_peak(count, tmp_path / f"{count}", compression) for count in (10_000, 150_000))
    assert many < growth * few


def _peak(count, folder, compression):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(count), str(folder), compression],
        capture_output=True, text=True, check=True, env=environment,
    )  # fmt: skip
    return int(done.stdout)
