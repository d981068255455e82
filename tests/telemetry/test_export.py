"""Traces as files: what `export_trace` writes is what Jaeger's UI takes as OTLP JSON."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from opentelemetry import trace

from ragaccel import telemetry
from ragaccel.errors import ConfigurationError
from ragaccel.telemetry import export_trace
from tests.support.otlp import problems, to_jaeger
from tests.support.traces import from_file, outlines, recorder

_ROOT = Path(__file__).parents[2]


@pytest.fixture
def file(tmp_path):
    return tmp_path / "trace.jsonl"


@pytest.fixture
def recorded():
    """What the process's exporter was given: the same spans by another way."""
    spans = recorder()
    spans.clear()
    yield spans
    spans.clear()


def ask(count=1):
    """Some requests, each with a failing part and a link."""
    for _ in range(count):
        with telemetry.stage("query", {"ragaccel.index.rows": 2**62, "text": "näher"}) as query:
            with telemetry.stage("embed"):
                pass
            with pytest.raises(ValueError, match="no"), telemetry.stage("retrieve"):
                raise ValueError("no")
            query.span.add_link(query.span.get_span_context(), {"ragaccel.batch.wait": 0.5})


def test_a_file_has_what_a_collector_gets(file, recorded):
    """Names, ids, times, attributes, events, links and errors are the same by both ways."""
    with export_trace(file):
        ask()
    assert sorted(from_file(file), key=lambda one: one.span_id) == sorted(
        recorded.spans(), key=lambda one: one.span_id
    )
    assert outlines(from_file(file)) == ["query(embed retrieve)"]
    assert problems(from_file(file)) == []
    assert to_jaeger(from_file(file))["data"][0]["spans"]


def test_lines_are_otlp_json_to_the_letter(file):
    """Ids are hex, times and integers strings, kinds and states numbers, names in camel case."""
    with export_trace(file):
        ask()
    (line,) = file.read_text(encoding="utf-8").splitlines()
    (resource,) = json.loads(line)["resourceSpans"]
    services = [one for one in resource["resource"]["attributes"] if one["key"] == "service.name"]
    assert services[0]["value"]["stringValue"]
    (scope,) = resource["scopeSpans"]
    assert scope["scope"]["name"] == "ragaccel"
    embed, retrieve, query = scope["spans"]
    assert int(query["traceId"], 16) > 0
    assert (len(query["traceId"]), len(query["spanId"])) == (32, 16)
    assert embed["parentSpanId"] == retrieve["parentSpanId"] == query["spanId"]
    assert query["links"][0]["spanId"] == query["spanId"]
    assert query["kind"] == 1
    assert retrieve["status"]["code"] == 2
    assert isinstance(query["startTimeUnixNano"], str)
    values = {one["key"]: one["value"] for one in query["attributes"]}
    assert values["ragaccel.index.rows"] == {"intValue": str(2**62)}
    assert values["text"] == {"stringValue": "näher"}
    assert "näher" in line


def test_nothing_is_written_before_and_after(file, caplog):
    """The file has what ended inside; afterwards no processor is left in the provider."""
    ask()
    before = trace.get_tracer_provider()._active_span_processor._span_processors
    threads = threading.active_count()
    with export_trace(file) as written:
        ask()
    ask()
    written.close()
    assert len(from_file(file)) == 3
    assert trace.get_tracer_provider()._active_span_processor._span_processors == before
    assert threading.active_count() == threads
    assert caplog.records == []


def test_several_files_at_once(tmp_path):
    """Each has what ended while it was open."""
    with export_trace(tmp_path / "outer"):
        ask()
        with export_trace(tmp_path / "inner"):
            ask()
    assert len(from_file(tmp_path / "outer")) == 6
    assert len(from_file(tmp_path / "inner")) == 3


def test_a_file_is_appended_to(file):
    """What an earlier run wrote stays."""
    for _ in range(2):
        with export_trace(file):
            ask()
    assert outlines(from_file(file)) == ["query(embed retrieve)"] * 2


def test_threads_write_whole_lines(file):
    """Spans of many threads are all there, none twice, each in its own trace."""
    with export_trace(file), ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, [25] * 8))
    spans = from_file(file)
    assert outlines(spans) == ["query(embed retrieve)"] * 200
    assert problems(spans) == []


def test_sampled_out_requests_are_not_written(file):
    """The file has what a collector would get."""
    dropped = trace.SpanContext(1, 1, is_remote=True, trace_flags=trace.TraceFlags(0))
    with (
        export_trace(file),
        trace.use_span(trace.NonRecordingSpan(dropped)),
        telemetry.stage("query"),
    ):
        pass
    assert file.read_bytes() == b""


@pytest.mark.parametrize("path", ["", "missing/trace.jsonl"])
def test_a_path_that_is_no_file_is_refused(tmp_path, path):
    """The error names the path and says what to give; the provider is as it was."""
    before = trace.get_tracer_provider()
    with pytest.raises(ConfigurationError, match="give the path of a file") as error:
        export_trace(tmp_path / path)
    assert str(tmp_path) in str(error.value)
    assert trace.get_tracer_provider() is before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device")
def test_a_full_disk_breaks_no_request(caplog):
    """The spans are left out, and it is said once."""
    with caplog.at_level(logging.WARNING), export_trace("/dev/full"):
        ask()
        telemetry.flush()
        ask()
    told = [record.getMessage() for record in caplog.records]
    assert told == ["/dev/full lacks spans: No space left on device"]


def test_half_a_line_is_taken_back(tmp_path):
    """Where the disk is full in the midst of a line, the file ends with the line before."""
    run(
        """
        import os, resource, sys
        from ragaccel import telemetry
        from ragaccel.telemetry import export_trace
        with export_trace(sys.argv[1]):
            with telemetry.stage("query"):
                pass
            telemetry.flush()
            size = os.stat(sys.argv[1]).st_size
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, resource.RLIM_INFINITY))
            with telemetry.stage("embed"):
                pass
            telemetry.flush()
            resource.setrlimit(resource.RLIMIT_FSIZE, (2**30, resource.RLIM_INFINITY))
            with telemetry.stage("search"):
                pass
        """,
        tmp_path / "trace.jsonl",
    )
    assert outlines(from_file(tmp_path / "trace.jsonl")) == ["query", "search"]


def test_the_end_of_the_process_closes_the_file(file):
    """A script that never closes it has every span; the provider is made where there is none."""
    run(
        """
        import sys
        from ragaccel import telemetry
        from ragaccel.telemetry import export_trace
        export_trace(sys.argv[1])
        with telemetry.stage("query"):
            pass
        """,
        file,
    )
    (span,) = from_file(file)
    assert (span.name, span.service) == ("query", "ragaccel")


def test_processes_share_a_file(file):
    """Lines of several processes do not mix."""
    script = """
        import sys
        from ragaccel import telemetry
        from ragaccel.telemetry import export_trace
        with export_trace(sys.argv[1]):
            for number in range(200):
                with telemetry.stage("query"):
                    pass
                if number % 10 == 0:
                    telemetry.flush()
    """
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: run(script, file), range(3)))
    assert outlines(from_file(file)) == ["query"] * 600


def test_a_missing_sdk_names_its_extra(file):
    """Nothing is written, and the error says which line installs it."""
    run(
        """
        import sys
        sys.modules["opentelemetry.sdk.trace.export"] = None
        from ragaccel.errors import MissingExtraError
        from ragaccel.telemetry import export_trace
        try:
            export_trace(sys.argv[1])
        except MissingExtraError as error:
            assert 'pip install "ragaccel[otel]"' in str(error)
        else:
            raise SystemExit("accepted")
        """,
        file,
    )
    assert not file.exists()


def test_a_provider_of_another_house_is_refused(file):
    """It takes no processors, and the error says whose it is."""
    run(
        """
        import sys
        from opentelemetry import trace
        from ragaccel.errors import ConfigurationError
        from ragaccel.telemetry import export_trace
        trace.set_tracer_provider(trace.NoOpTracerProvider())
        try:
            export_trace(sys.argv[1])
        except ConfigurationError as error:
            assert "NoOpTracerProvider" in str(error)
        else:
            raise SystemExit("accepted")
        """,
        file,
    )


def run(script, path):
    """Run a script in a process of its own, where warnings are errors and nothing is printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script), str(path)],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done
