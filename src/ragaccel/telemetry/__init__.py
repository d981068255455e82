"""Spans for every stage of a RAG request, and metrics, next to free while nothing is configured.

`configure()` sends the spans to any OTLP collector (Jaeger, Phoenix, Tempo ...). An application
that has set up OpenTelemetry by itself needs no call at all: the stages join its traces.
"""

from ragaccel.telemetry.configure import configure, flush
from ragaccel.telemetry.content import answered, asked
from ragaccel.telemetry.metrics import Figure, measure
from ragaccel.telemetry.stage import (
    OFF,
    Listener,
    Place,
    Stage,
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
    "answered",
    "asked",
    "configure",
    "flush",
    "here",
    "listen",
    "measure",
    "recording",
    "stage",
    "unlisten",
]
