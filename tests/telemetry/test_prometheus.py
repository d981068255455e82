"""The metrics as Prometheus reads them."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

_LOAD = Path(__file__).parents[1] / "support" / "load.py"
_PATIENCE = 60.0


@contextlib.contextmanager
def load():
    """Run the process under load, and give the port of its metrics."""
    port = free_port()
    command = [sys.executable, str(_LOAD), str(port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            wait_for(
                lambda: "ragaccel_batch_size_bucket" in get(f"http://127.0.0.1:{port}/metrics")
            )
            yield port
        finally:
            process.stdin.close()
            assert process.wait(_PATIENCE) == 0


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read().decode()


def wait_for(found):
    """Return what `found` returns once that is something; a server may not be there yet."""
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            if answer := found():
                return answer
        time.sleep(0.2)
    raise AssertionError("waited in vain")


@pytest.fixture(scope="module")
def page() -> str:
    """What Prometheus reads of a process that has been under load for a while."""
    with load() as port:
        return wait_for(lambda: _with_hits(get(f"http://127.0.0.1:{port}/metrics")))


def _with_hits(page: str) -> str:
    return page if _lookups(page).keys() >= {("memory", "hit"), ("disk", "hit")} else ""


def _lookups(page: str) -> dict[tuple[str, str], float]:
    pattern = r'lookups_total\{.*cache_level="(\w+)".*cache_result="(\w+)".*\} (\S+)$'
    return {
        (level, result): float(count)
        for level, result, count in re.findall(pattern, page, re.MULTILINE)
    }


def test_names_have_their_units_and_endings(page):
    """Seconds and bytes stand in the name; counters end in `_total`."""
    families = {
        name: kind
        for name, kind in re.findall(r"^# TYPE (\S+) (\w+)$", page, re.MULTILINE)
        if name.startswith("ragaccel_")
    }
    assert families == {
        "ragaccel_stage_duration_seconds": "histogram",
        "ragaccel_cache_lookups_total": "counter",
        "ragaccel_cache_refused_total": "counter",
        "ragaccel_cache_bypasses_total": "counter",
        "ragaccel_cache_faults_total": "counter",
        "ragaccel_cache_breakers": "gauge",
        "ragaccel_cache_refreshes_total": "counter",
        "ragaccel_cache_saved_seconds_total": "counter",
        "ragaccel_cache_saved_tokens_total": "counter",
        "ragaccel_cache_evictions_total": "counter",
        "ragaccel_cache_size_bytes": "gauge",
        "ragaccel_cache_entries": "gauge",
        "ragaccel_reuse_lookups_total": "counter",
        "ragaccel_reuse_labels_total": "counter",
        "ragaccel_batch_size": "histogram",
        "ragaccel_batch_wait_seconds": "histogram",
        "ragaccel_batch_queue_depth": "gauge",
        "ragaccel_index_vectors": "gauge",
        "ragaccel_index_memory_bytes": "gauge",
        "ragaccel_index_recall": "gauge",
    }


def test_latencies_spread_over_their_buckets(page):
    """The SDK's own buckets would put everything into the first one, which ends at 5 seconds."""
    pattern = r'^ragaccel_stage_duration_seconds_bucket\{.*le="(\S+?)".*stage="query".*\} (\S+)$'
    counts = {
        float(bound): float(count) for bound, count in re.findall(pattern, page, re.MULTILINE)
    }
    assert min(counts) == 5e-5
    assert len(set(counts.values())) > 3


def test_hit_rates_are_left_to_the_reader(page):
    """There are look-ups by level and result, and no rate that could not be added up."""
    found = _lookups(page)
    assert found.keys() == {
        ("memory", "hit"), ("disk", "hit"), ("none", "miss"), ("none", "coalesced"),
    }  # fmt: skip
    assert found["none", "miss"] > found["disk", "hit"] > 0
    assert "rate" not in page.replace("generate", "").replace("calibrated", "")


def test_nothing_that_was_asked_is_a_label(page):
    """Neither questions nor keys are to be seen."""
    assert "question" not in page
    labels = {
        one
        for line in page.splitlines()
        if line.startswith("ragaccel_")
        for one in re.findall(r'(\w+)="', line)
        if not one.startswith("otel_scope_")
    }
    assert labels == {
        "le", "error_type", "ragaccel_stage", "ragaccel_cache_namespace", "ragaccel_cache_level",
        "ragaccel_cache_result", "ragaccel_cache_reason", "ragaccel_cache_outcome",
        "ragaccel_cache_breaker", "ragaccel_index_name", "gen_ai_token_type",
    }  # fmt: skip
