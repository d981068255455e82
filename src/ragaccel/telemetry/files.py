"""`export_trace(path)`: spans in a file that Jaeger's UI opens, without any collector."""

from __future__ import annotations

import base64
import json
import logging
import os
from contextlib import suppress
from errno import ENOSPC
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import trace

from ragaccel.errors import ConfigurationError, MissingExtraError
from ragaccel.telemetry.configure import add_processors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Self

#: How many spans may wait to be written; where more come at once, the oldest are lost.
_MAX_WAITING: Final = 32_768
_DELAY_MS: Final = 1000
_IDS: Final = frozenset(("traceId", "spanId", "parentSpanId"))
_log = logging.getLogger("ragaccel.telemetry")


def export_trace(path: str | os.PathLike[str]) -> TraceFile:
    """Write every span of this process that ends from now on to a file, as lines of OTLP JSON.

    Jaeger's UI opens it under "Upload", "JSON File". A thread in the background writes, about once
    a second. Tracing is set up as `configure()` does it where the application has not.

    Args:
        path: The file. What it holds already stays; it is made if there is none.

    Returns:
        The open file. Close it, or use it as a context manager, to stop; the end of the process
        closes it too.

    Raises:
        MissingExtraError: The SDK or the OTLP encoder is not installed.
        ConfigurationError: The file cannot be opened, or the process has a tracer provider that
            takes no processors.

    Example:
        >>> with export_trace("trace.jsonl"):  # doctest: +SKIP
        ...     retriever.invoke("What is a tombstone?")
    """
    try:
        import opentelemetry.exporter.otlp.proto.common.trace_encoder  # noqa: F401
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise MissingExtraError("otel", "opentelemetry-exporter-otlp-proto-http") from error
    lines: Any = _Lines(path)
    processor: Any = BatchSpanProcessor(lines, _MAX_WAITING, _DELAY_MS)
    try:
        add_processors([processor], "ragaccel", None)
    except ConfigurationError:
        processor.shutdown()
        raise
    return TraceFile(processor)


class TraceFile:
    """A file that spans are written to until it is closed; see `export_trace`."""

    def __init__(self, processor: Any) -> None:
        self._processor, self._provider = processor, trace._TRACER_PROVIDER

    def close(self) -> None:
        """Write what has ended so far, and no more."""
        processors: Any = getattr(self._provider, "_active_span_processor", None)
        with suppress(AttributeError), processors._lock:  # the SDK has no public way to take it out
            processors._span_processors = tuple(
                one for one in processors._span_processors if one is not self._processor
            )
        self._processor.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exit_: object) -> None:
        self.close()


class _Lines:
    """A span exporter that appends lines to a file; several processes may write the same one.

    Spans that cannot be written, as on a full disk, are left out; the first such time is logged.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        try:
            self._file = Path(path).open("ab", buffering=0)  # noqa: SIM115 - `shutdown` closes it
        except OSError as error:
            raise ConfigurationError(
                f"no trace can be written to {str(path)!r}: {error.strerror}; give the path of a "
                "file, in a folder that exists."
            ) from error
        self._is_failing = False

    def export(self, spans: Sequence[Any]) -> None:
        """Append a line."""
        line = _line(spans)
        try:
            self._append(line)
        except OSError as error:
            if not self._is_failing:
                _log.warning("%s lacks spans: %s", self._file.name, error.strerror)
            self._is_failing = True
        else:
            self._is_failing = False

    def _append(self, line: bytes) -> None:
        written = self._file.write(line)
        if written != len(line):  # half a line would spoil the file
            self._file.truncate(self._file.tell() - written)
            raise OSError(ENOSPC, os.strerror(ENOSPC))

    def shutdown(self) -> None:
        """Close the file."""
        self._file.close()


def _line(spans: Sequence[Any]) -> bytes:
    """Return spans as a line of OTLP JSON.

    Source: OpenTelemetry Protocol 1.5, "JSON Protobuf Encoding": Protobuf's own JSON, but for ids,
    which are hex, and enumerations, which are numbers.
    """
    from google.protobuf.json_format import MessageToDict  # type: ignore[import-untyped]
    from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

    told = MessageToDict(encode_spans(spans), use_integers_for_enums=True)
    for resource in told["resourceSpans"]:
        for scope in resource["scopeSpans"]:
            for span in scope["spans"]:
                for one in (span, *span.get("links", ())):
                    for name in _IDS.intersection(one):
                        one[name] = base64.b64decode(one[name]).hex()
    return json.dumps(told, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
