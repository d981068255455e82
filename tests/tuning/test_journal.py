"""The journal of trials: what is written is there after a crash, for one process at a time."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from ragaccel.errors import ConfigurationError
from ragaccel.tuning.journal import Journal


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal.jsonl"


def test_what_is_written_is_read(path):
    """Of each knob the last entry that names it."""
    journal = Journal.open(path)
    journal.write("trying", {"a": 1, "b": [2]}, {"a": 0, "b": []})
    journal.write("rolled back", {"a": 1}, {"a": 0}, "slow")
    journal.close()
    journal.close()
    again = Journal.open(path)
    assert again.last("a").reason == "slow"
    assert again.last("b").settings == {"a": 1, "b": [2]}
    assert again.last("c") is None
    again.close()


def test_it_knows_what_a_process_begins_with(path):
    """What was before an unfinished trial, or what was applied last."""
    journal = Journal()
    assert journal.settled("a") is None
    journal.write("trying", {"a": 1}, {"a": 0})
    assert journal.settled("a") == 0
    journal.write("rolled back", {"a": 1}, {"a": 0})
    assert journal.settled("a") is None
    journal.write("applied", {"a": 2}, {"a": 0})
    assert journal.settled("a") == 2
    journal.write("trying", {"a": 3}, {"a": 2})
    journal.write("stopped", {"a": 3}, {"a": 2})
    assert journal.settled("a") == 2


def test_a_cut_line_is_left_out(path):
    """What a crash has cut was never acted on, and spoils no other line."""
    path.write_bytes(b'{"state":"trying","settings":{"a"')
    journal = Journal.open(path)
    assert journal.last("a") is None
    journal.write("applied", {"a": 2}, {"a": 0})
    journal.close()
    again = Journal.open(path)
    assert again.settled("a") == 2
    again.close()


def test_one_process_holds_it_until_its_end(path):
    """Another one, or another guard, is refused; a fork does not keep it."""
    journal = Journal.open(path)
    with pytest.raises(ConfigurationError, match="held by another"):
        Journal.open(path)
    program = "import sys; from ragaccel.tuning.journal import Journal; Journal.open(sys.argv[1])"
    command = [sys.executable, "-c", program, path]
    assert subprocess.run(command, check=False, capture_output=True).returncode
    journal.close()
    subprocess.run(command, check=True)
    Journal.open(path).close()


def test_a_journal_that_cannot_be_opened_is_refused(tmp_path):
    """It says which one."""
    with pytest.raises(ConfigurationError, match="missing"):
        Journal.open(tmp_path / "missing" / "journal")


def test_what_cannot_be_written_raises(path):
    """So that nothing is tried that no restart could take back."""
    journal = Journal.open(path)
    with pytest.raises(TypeError):
        journal.write("trying", {"a": object()}, {"a": 0})
    full = Journal(os.open("/dev/full", os.O_RDWR))
    with pytest.raises(OSError, match="space"):
        full.write("trying", {"a": 1}, {"a": 0})
    assert journal.last("a") is full.last("a") is None
    full.close()
    journal.close()
