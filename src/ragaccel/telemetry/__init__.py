"""Spans for every stage of a RAG request, and metrics, next to free while nothing is configured.

`configure()` sends the spans to any OTLP collector (Jaeger, Phoenix, Tempo ...). An application
that has set up OpenTelemetry by itself needs no call at all: the stages join its traces.
"""

from ragaccel.telemetry.configure import configure, flush
from ragaccel.telemetry.content import answered, asked
from ragaccel.telemetry.files import TraceFile, export_trace
from ragaccel.telemetry.metrics import Figure, measure
from ragaccel.telemetry.stage import (
    OFF,
    Listener,
    Place,
    Stage,
    below,
    here,
    listen,
    recording,
    stage,
    unlisten,
)

__all__ = [
    "OFF",
    "Figure",
    "Listener",
    "Place",
    "Stage",
    "TraceFile",
    "answered",
    "asked",
    "below",
    "configure",
    "export_trace",
    "flush",
    "here",
    "listen",
    "measure",
    "recording",
    "stage",
    "unlisten",
]
