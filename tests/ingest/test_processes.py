"""Transformations in processes of their own, and what becomes of them when things go wrong."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from ragaccel import VectorCollection
from ragaccel.errors import ConfigurationError, IngestionError, RagaccelWarning
from ragaccel.ingest import ingest
from tests.ingest import children, texts
from tests.ingest.children import (
    alive,
    check_interrupted,
    child,
    interrupt,
    is_whole,
    stored,
    until,
)
from tests.ingest.kits import KITS


def in_memory(documents, transform, workers):
    """Ingest into a collection in memory; return the report and the rows."""
    with VectorCollection.open() as collection:
        report = ingest(
            documents, collection, embed=texts.HashModel(), transform=transform, workers=workers
        )
        return report, texts.rows(collection)


def test_processes_change_nothing_in_the_result():
    """The rows are the same as without any, and no process is left."""
    documents = [*texts.documents(300), ("p", "poison")]
    report, rows = in_memory(documents, texts.sentences, 2)
    expected, expected_rows = in_memory(documents, texts.sentences, 0)
    assert rows == expected_rows
    assert (report.stored, report.failed) == (expected.stored, expected.failed) == (300, 1)
    assert str(report.errors[0]) == str(expected.errors[0])
    assert "texts.py" in report.errors[0].traceback
    assert not [one for one in psutil.Process().children() if "spawn_main" in one.cmdline()[-2]]


def test_a_document_that_kills_its_process_is_a_bad_one():
    """It alone is listed, with the signal; those that were in the process with it are stored."""
    good = texts.documents(60)
    documents = [*good[:40], ("x", "lethal"), *good[40:]]
    report, rows = in_memory(documents, texts.deadly, 1)
    assert [(one.document_id, one.stage) for one in report.errors] == [("x", "transform")]
    assert isinstance(report.errors[0].error, IngestionError)
    assert "SIGKILL" in str(report.errors[0])
    expected = sorted(part for one in good for part in texts.parts(one[1]))
    assert sorted(text for text, *_ in rows.values()) == expected


def test_an_error_that_no_pickle_can_carry_is_told_by_its_words():
    """The worker goes on."""
    report, _ = in_memory(texts.documents(3), texts.odd, 1)
    assert [str(one.error) for one in report.errors] == ["OddError: 1 and 2"] * 3


def test_what_cannot_be_sent_to_processes_is_refused():
    """Or, where nobody asked for processes, done without them, with a warning."""

    def slow(document):
        time.sleep(0.02)
        return texts.sentences(document)

    with pytest.raises(ConfigurationError, match="cannot be sent to worker processes"):
        in_memory(texts.documents(1), slow, 2)
    with pytest.warns(RagaccelWarning, match="by one core: the transformation cannot be sent"):
        report, _ = in_memory(texts.documents(100), slow, None)
    assert report.stored == 100


@pytest.mark.parametrize(
    ("workers", "ends_well"), [("2", False), ("None", True)], ids=["asked for", "left open"]
)
def test_a_script_without_a_guard(tmp_path, workers, ends_well):
    """It is told what to do before anything runs twice; or it does without processes."""
    script = tmp_path / "script.py"
    script.write_text(_SCRIPT.format(workers=workers))
    done = _python(str(script))
    assert done.stdout.count("begins") == 1
    assert (done.returncode == 0) is ends_well
    assert ("100 stored" in done.stdout) is ends_well
    assert 'put what it does under `if __name__ == "__main__":`' in done.stderr.replace("\n", " ")


_SCRIPT = """
import time
from ragaccel import VectorCollection
from ragaccel.ingest import ingest
from tests.ingest import texts

def slow(document):
    time.sleep(0.02)
    return texts.sentences(document)

print("begins")
print(ingest(
    texts.documents(100), VectorCollection.open(), embed=texts.HashModel(), transform=slow,
    workers={workers},
))
"""


def test_a_transformation_that_workers_cannot_find_is_told():
    """A function of a program that is no file stands in no module that they could import."""
    program = _SCRIPT.format(workers=1)
    done = _python("-c", program)
    assert done.returncode == 1
    assert "ConfigurationError: a worker process cannot load the transformation" in done.stderr


def _python(*arguments):
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=children.environment(),
    )


# -- kills -----------------------------------------------------------------------------------------


@pytest.fixture
def pids(tmp_path):
    """A folder that worker processes note themselves in."""
    folder = tmp_path / "pids"
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    ("name", "kills"),
    [
        ("bare", 2),
        *[pytest.param(name, 50, marks=pytest.mark.slow) for name in KITS],
    ],
)
def test_killed_and_resumed_it_ends_as_if_undisturbed(name, kills, tmp_path, pids):
    """At every moment a document is whole or not there; in the end no row is lost or double."""
    kit, random = KITS[name](), np.random.default_rng()
    transform = texts.Slow(kit.transform, str(pids))
    undisturbed = kit.open()
    ingest(children.given(kit), undisturbed, embed=kit.model, transform=transform, workers=0)
    expected = texts.rows(kit.collection(undisturbed))
    (pids / str(os.getpid())).unlink()
    folders, partly = [tmp_path / "store 0"], 0
    for number in range(kills):
        with child("run", name, folders[-1], pids) as process:
            assert process.stdout.readline() == "open\n"
            if number % 4 != 3:
                until(lambda: alive(pids) or process.poll() is not None)
            time.sleep(random.uniform(0, 0.5))
            process.kill()
        until(lambda: not alive(pids))
        rows = stored(kit, folders[-1])
        assert is_whole(rows)
        assert rows.items() <= expected.items()
        partly += 0 < len(rows) < len(expected)
        if len(rows) == len(expected):
            folders.append(tmp_path / f"store {len(folders)}")
    assert partly or kills < 10
    with child("run", name, folders[-1], pids) as process:
        told, errors = process.communicate()
    assert f"{children.DOCUMENTS} documents" in told, errors
    assert stored(kit, folders[-1]) == expected


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_end_with_a_parent_that_is_killed(pids, workers):
    """Whatever they are doing."""
    with child("outlast", pids, workers) as process:
        until(lambda: len(alive(pids)) == workers)
        process.kill()
        until(lambda: not alive(pids))


def test_ctrl_c_ends_it_cleanly(pids):
    """With one KeyboardInterrupt, no word of the workers, and none of them left."""
    with child("outlast", pids, 2) as process:
        until(lambda: len(alive(pids)) == 2)
        errors, left = interrupt(process)
    assert re.search(r"KeyboardInterrupt\n$", errors)
    assert errors.count("Traceback") == 1
    assert not left


def test_what_ctrl_c_broke_off_is_gone_on_with(tmp_path, pids):
    """Documents are whole or not there, no process is left, and the end is the undisturbed one."""
    check_interrupted("processes", tmp_path / "store", pids)


def test_processes_are_started_where_there_is_enough_to_do(pids):
    """Left open, the first documents are transformed here, and later ones in processes, too."""
    sent = []

    def source():
        while len(list(pids.iterdir())) < 2:
            sent.append(f"{len(sent)}")
            yield (sent[-1], "one. two", {})

    report, rows = in_memory(source(), texts.Slow(texts.sentences, str(pids)), None)
    assert (report.stored, len(rows)) == (len(sent), 2 * len(sent))
    assert (pids / str(os.getpid())).exists()
    assert alive(pids) == [os.getpid()]


def test_few_documents_start_no_process(pids):
    """It would take longer than they do."""
    in_memory(texts.documents(20), texts.Slow(texts.sentences, str(pids)), None)
    assert [file.name for file in pids.iterdir()] == [str(os.getpid())]
