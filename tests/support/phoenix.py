"""A real Arize Phoenix server, in a virtual environment of its own: it has 150 packages."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from datetime import datetime
from typing import TYPE_CHECKING, Any

from tests.support.otlp import ReceivedSpan

if TYPE_CHECKING:
    from pathlib import Path

    from typing_extensions import Self

_START_SECONDS = 120
# Phoenix's gRPC port listens on every interface and cannot be told otherwise, so its listening
# call is. Source: arize-phoenix 20.26, phoenix/server/grpc_server.py.
_ON_LOOPBACK = """
import sys
from grpc.aio import _server
listen = _server.Server.add_insecure_port
_server.Server.add_insecure_port = lambda self, address: listen(
    self, address.replace("[::]", "127.0.0.1")
)
from phoenix.server.main import main
sys.argv = ["phoenix", "serve"]
main()
"""


class UnavailableError(Exception):
    """Phoenix cannot be installed here."""


def install(folder: Path) -> Path:
    """Install Phoenix into a folder and return its Python.

    Raises:
        UnavailableError: There is no uv, or no package index.
    """
    uv = shutil.which("uv")
    if uv is None:
        raise UnavailableError("uv is not installed")
    python = folder / "bin" / "python"
    for command in (
        ["venv", "--quiet", str(folder)],
        ["pip", "install", "--quiet", "--python", str(python), "arize-phoenix"],
    ):
        done = subprocess.run([uv, *command], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise UnavailableError(done.stderr.strip().splitlines()[-1])
    return python


class Phoenix:
    """Phoenix, listening on loopback while its context is open.

    Args:
        python: See `install`.
        folder: Where it keeps its database and its log.
    """

    def __init__(self, python: Path, folder: Path) -> None:
        self._python, self._folder = python, folder

    def endpoint(self, protocol: str) -> str:
        """Return where it takes OTLP by a protocol."""
        return self._grpc if protocol == "grpc" else self._http

    def spans(self, project: str) -> list[ReceivedSpan]:
        """Return the spans of a project; Phoenix tells neither kind, scope, resource nor links."""
        try:
            told = self._get(f"/v1/projects/{project}/spans?limit=1000")
        except urllib.error.HTTPError as error:
            with error:
                return []  # nothing has arrived yet
        return [_received(one) for one in told["data"]]

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        http, grpc = _free_ports()
        self._http, self._grpc = f"http://127.0.0.1:{http}", f"http://127.0.0.1:{grpc}"
        self._log = (self._folder / "log").open("wb")
        self._process = subprocess.Popen(
            [self._python, "-c", _ON_LOOPBACK],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env={
                **os.environ,
                "PHOENIX_WORKING_DIR": str(self._folder),
                "PHOENIX_HOST": "127.0.0.1",
                "PHOENIX_PORT": str(http),
                "PHOENIX_GRPC_PORT": str(grpc),
                "PHOENIX_TELEMETRY_ENABLED": "false",
            },
        )
        try:
            self._wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exit_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def _wait(self) -> None:
        ends = time.monotonic() + _START_SECONDS
        while time.monotonic() < ends and self._process.poll() is None:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self._http}/healthz"):
                return
            time.sleep(0.5)
        raise RuntimeError((self._folder / "log").read_text(encoding="utf-8")[-2000:])

    def _get(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self._http}{path}", timeout=30) as answer:
            return json.load(answer)


def _received(told: dict[str, Any]) -> ReceivedSpan:
    """Return a span as it was sent, as far as Phoenix tells it."""
    kind = {"openinference.span.kind": told["span_kind"]} if told["span_kind"] != "UNKNOWN" else {}
    return ReceivedSpan(
        name=told["name"],
        trace_id=told["context"]["trace_id"],
        span_id=told["context"]["span_id"],
        parent_id=told["parent_id"],
        kind=1,
        start_ns=_ns(told["start_time"]),
        end_ns=_ns(told["end_time"]),
        attributes=told["attributes"] | kind,
        events=[(one["name"], one["attributes"]) for one in told["events"]],
        links=[],
        status_code=2 if told["status_code"] == "ERROR" else 0,
        scope="",
        scope_version="",
        service=None,
        status_message=told["status_message"],
    )


def _ns(text: str) -> int:
    """Return nanoseconds since the epoch; Phoenix keeps microseconds."""
    told = datetime.fromisoformat(text)
    return int(told.replace(microsecond=0).timestamp()) * 10**9 + told.microsecond * 1000


def _free_ports() -> tuple[int, int]:
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_server(("127.0.0.1", 0)) as other,
    ):
        return one.getsockname()[1], other.getsockname()[1]
