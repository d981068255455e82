"""Reading a trace back from Jaeger, and a stand-in for the part of its query API that does it."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import TYPE_CHECKING, Any

from tests.support.traces import from_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self

    from tests.support.otlp import ReceivedSpan


def spans_of(query_url: str, trace_id: str) -> list[ReceivedSpan]:
    """Return the spans that Jaeger has of a trace, none if it does not know it.

    Args:
        query_url: Where Jaeger's page is, such as `http://localhost:16686`.
        trace_id: In hex.
    """
    url = f"{query_url.rstrip('/')}/api/v3/traces/{trace_id}?raw_traces=true"
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            told = json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == HTTPStatus.NOT_FOUND:
                return []
            raise
    return from_json(json.dumps(told["result"]))


class QueryApi:
    """Answers `GET /api/v3/traces/{id}` as Jaeger does, of lines of OTLP JSON.

    By Jaeger's own snapshot of the answer (jaegertracing/jaeger, apiv3/snapshots/GetTrace.json):
    OTLP JSON below "result", and 404 for what it does not know. It stores nothing, indexes nothing
    and checks nothing, so it says nothing about Jaeger: only that the reader above can read.

    Args:
        lines: Gives what Jaeger would have stored.
    """

    def __init__(self, lines: Callable[[], list[str]]) -> None:
        self._lines = lines

    def __enter__(self) -> Self:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Exchange, self._lines))
        self._server.daemon_threads = False
        self._thread = Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        return self

    def __exit__(self, *exit_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Exchange(BaseHTTPRequestHandler):
    def __init__(self, lines: Callable[[], list[str]], *connection: Any) -> None:
        self._lines = lines
        super().__init__(*connection)

    def do_GET(self) -> None:
        """Give a trace, or say that there is none."""
        asked = re.fullmatch(r"/api/v3/traces/([0-9a-f]{32})\?raw_traces=true", self.path)
        resources = [one for line in self._lines() for one in json.loads(line)["resourceSpans"]]
        for resource in resources:
            for scope in resource["scopeSpans"]:
                scope["spans"] = [
                    span for span in scope["spans"] if asked and span["traceId"] == asked[1]
                ]
        is_known = any(scope["spans"] for one in resources for scope in one["scopeSpans"])
        body = {"result": {"resourceSpans": resources}} if is_known else {"error": {}}
        sent = json.dumps(body).encode()
        self.send_response(HTTPStatus.OK if is_known else HTTPStatus.NOT_FOUND)
        self.send_header("Content-Length", str(len(sent)))
        self.end_headers()
        self.wfile.write(sent)

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""
