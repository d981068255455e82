"""What looking costs: stages alone, and retrievers of both frameworks beside other instrumentors.

    python -m tests.benchmarks.telemetry [--quick]

Every configuration is measured in processes of its own, because a process has one tracer provider;
rounds of all configurations take turns. In a process short loops of both sides take turns; a ratio
is the median of all pairs of loops, and times are those of the best loop. Instrumentors cannot be
taken away again, so their bare call is measured just before they come, and the best loops are
compared. Spans that wait are sent between the loops, and none of the calls waits for anything: what
is measured is the time of the caller's thread, which others on the machine do not add to. `CPU` is
what the whole process spends on a call, with the export.

The bars in microseconds were set on a machine where OpenTelemetry's no-op span took 2.5 µs. Every
process measures that too, and the last table shows its figures also at that machine's speed.

Needs `uv sync --extra all --group test --group bench` and the `langchain` package, which the
official GenAI instrumentor asks for; instrumentors that are not installed are left out with a
message.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from opentelemetry import metrics, trace
from rich.console import Console
from rich.table import Table

from ragaccel import MultiLevelCache, accelerate, telemetry
from tests.benchmarks.ratios import per_call

if TYPE_CHECKING:
    from collections.abc import Callable

    Call = Callable[[], Any]
    Figures = dict[str, list[float]]

MARK: Final = "ragaccel-bench "
LOOP_SECONDS: Final = 0.005
LONGEST_LOOP: Final = 400  # spans: the batch processor exports by itself from 512 waiting ones
STAGES_OF_A_REQUEST: Final = 7
SPANS_OF_A_CALL: Final = 4  # at most, of any tool
NO_OP: Final = trace.NoOpTracer()
NO_OP_MICROSECONDS: Final = 2.5  # where the bars were set
QUERY: Final = "what does a request cost?"
TEXTS: Final = [f"{row:03} {'passage ' * 62}" for row in range(10)]  # 500 characters each
#: How coroutines and generators say that they are over, which is no fault.
ENDS: Final = (StopIteration, StopAsyncIteration, GeneratorExit)

NOTHING: Final = "nothing configured"
BATCH: Final = "SDK, batch export"
ALWAYS_OFF: Final = "sampled out, ALWAYS_OFF"
RATIO: Final = "sampled out, ratio 0.01"
PROVIDERS: Final = (
    NOTHING, "OTEL_SDK_DISABLED", ALWAYS_OFF, RATIO, BATCH, "a listener", "a meter provider",
)  # fmt: skip

RAGACCEL: Final = "ragaccel"
#: Framework -> tool -> module and class of its instrumentor.
INSTRUMENTORS: Final = {
    "LangChain": {
        "OpenInference": "openinference.instrumentation.langchain:LangChainInstrumentor",
        "OpenLLMetry": "opentelemetry.instrumentation.langchain:LangchainInstrumentor",
        "official GenAI": "opentelemetry.instrumentation.genai.langchain:LangChainInstrumentor",
    },
    "LlamaIndex": {
        "OpenInference": "openinference.instrumentation.llama_index:LlamaIndexInstrumentor",
        "OpenLLMetry": "opentelemetry.instrumentation.llamaindex:LlamaIndexInstrumentor",
        "official GenAI": "opentelemetry.instrumentation.genai.llama_index:LlamaIndexInstrumentor",
    },
}
console = Console(width=None if sys.stdout.isatty() else 150)


class Case(NamedTuple):
    """One configuration: stages alone or a framework, who makes the spans, and where they go."""

    part: str
    tool: str
    provider: str


class Found(NamedTuple):
    """What was measured of one case; `plain` is what it is compared with.

    Attributes:
        taken: Microseconds per call of each loop.
        told: Other figures.
        raised: The exceptions that nothing but the telemetry raises.
    """

    taken: Figures
    told: dict[str, float]
    raised: dict[str, int]

    def and_(self, other: Found) -> Found:
        """Return it with the loops of another round, and the lesser of the other figures."""
        taken = {name: loops + other.taken[name] for name, loops in self.taken.items()}
        told = {name: min(value, other.told[name]) for name, value in self.told.items()}
        return Found(taken, told, self.raised)

    def best(self, name: str) -> float:
        """Return the microseconds of the best loop."""
        return min(self.taken[name])

    def ratio(self, name: str, side: str = "plain") -> float:
        """Return the median ratio to the other side."""
        pairs = zip(self.taken[name], self.taken[f"{side} {name}"], strict=True)
        return statistics.median(one / other for one, other in pairs)

    def figure(self, name: str) -> float:
        """Return a figure that has a bar."""
        if name == "ratio":
            return self.ratio("call")
        if name == "exceptions":
            return sum(self.raised.values())
        return self.best(name) if name in self.taken else self.told[name]


class Bar(NamedTuple):
    """What a figure of a case must not exceed."""

    case: Case
    figure: str
    most: float
    unit: str


STAGES: Final = "stages"
BARS: Final = (
    Bar(Case(STAGES, RAGACCEL, NOTHING), "stage", 0.5, "µs"),
    Bar(Case(STAGES, RAGACCEL, NOTHING), "request", 2, "µs"),
    Bar(Case(STAGES, RAGACCEL, NOTHING), "exceptions", 0, ""),
    Bar(Case(STAGES, RAGACCEL, ALWAYS_OFF), "request", 10, "µs"),
    Bar(Case(STAGES, RAGACCEL, RATIO), "request", 10, "µs"),
    Bar(Case(STAGES, RAGACCEL, BATCH), "stage", 25, "µs"),
    Bar(Case(STAGES, RAGACCEL, BATCH), "request", STAGES_OF_A_REQUEST * 25, "µs"),
    *(
        bar
        for framework, most in (("LangChain", 3), ("LlamaIndex", 1.7))
        for bar in (
            Bar(Case(framework, RAGACCEL, NOTHING), "exceptions", 0, ""),
            Bar(Case(framework, RAGACCEL, BATCH), "ratio", most, "x"),
            Bar(Case(framework, RAGACCEL, BATCH), "bytes", 1000, "B"),
            Bar(Case(framework, RAGACCEL, BATCH), "bytes of a miss", 1000, "B"),
            Bar(Case(framework, RAGACCEL, BATCH), "bytes of a hit", 1000, "B"),
        )
    ),
)


# -- in the process of one case --------------------------------------------------------------------


class Deaf:
    """A listener that does nothing with what it hears."""

    def started(self, stage: telemetry.Stage) -> None: ...

    def ended(self, stage: telemetry.Stage) -> None: ...


def provide(name: str, endpoint: str) -> Call | None:
    """Set up who hears of spans and stages, and return what sends the spans that wait, if any."""
    if name == "a listener":
        telemetry.listen(Deaf())
    elif name == "a meter provider":
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader

        metrics.set_meter_provider(MeterProvider([InMemoryMetricReader()]))
    elif name != NOTHING:
        flush = _provide_tracer(name, endpoint)
        return flush if name == BATCH else None
    return None


def _provide_tracer(name: str, endpoint: str) -> Call:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import RandomIdGenerator, TracerProvider, sampling
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    class Unlucky(RandomIdGenerator):
        """Makes ids that no ratio below a half samples."""

        def generate_trace_id(self) -> int:
            return super().generate_trace_id() | 1 << 63

    if name == "OTEL_SDK_DISABLED":
        os.environ[name] = "true"
    samplers = {ALWAYS_OFF: sampling.ALWAYS_OFF, RATIO: sampling.ParentBasedTraceIdRatio(0.01)}
    provider = TracerProvider(
        samplers.get(name, sampling.DEFAULT_ON),
        Resource.create({"service.name": "benchmark"}),
        id_generator=Unlucky() if name == RATIO else None,
    )
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{endpoint}/v1/traces")))
    trace.set_tracer_provider(provider)
    return provider.force_flush


def in_turn(calls: dict[str, Call], loops: int, spans: int, flush: Call | None) -> Figures:
    """Return the microseconds of its thread that each call took in loops that took turns.

    Args:
        calls: What is measured; one that is named no-op makes no spans.
        loops: How many of each.
        spans: How many one call may make.
        flush: Sends the spans that wait, if any do.
    """
    times, taken = {}, {name: [] for name in calls}
    for name, call in calls.items():
        per_call(call, 20)
        times[name] = max(1, int(LOOP_SECONDS / per_call(call, 20)))
        if flush is not None and not name.startswith("no-op"):
            times[name] = min(LONGEST_LOOP // spans, times[name])
    for _ in range(loops):
        for name, call in calls.items():
            if flush is not None:
                flush()
            started = time.thread_time()
            per_call(call, times[name])
            taken[name].append((time.thread_time() - started) / times[name] * 1e6)
    return taken


def processor_time(call: Call, loops: int, spans: int, flush: Call | None) -> float:
    """Return the microseconds of CPU that the process spends on a call, with the export."""
    times = LONGEST_LOOP // spans
    started = time.process_time()
    for _ in range(loops):
        per_call(call, times)
        if flush is not None:
            flush()
    return (time.process_time() - started) / (loops * times) * 1e6


def exceptions(call: Call) -> Counter[str]:
    """Return which exceptions are raised in a call that raises none itself."""
    call()
    raised: dict[int, BaseException] = {}

    def local(_: Any, event: str, told: Any) -> Any:
        if event == "exception" and not issubclass(told[0], ENDS):
            raised[id(told[1])] = told[1]
        return local

    before = sys.gettrace()
    sys.settrace(lambda *_: local)
    try:
        call()
    finally:
        sys.settrace(before)
    return Counter(type(one).__name__ for one in raised.values())


def otlp_bytes(calls: dict[str, Call]) -> dict[str, float]:
    """Return how many bytes of OTLP each call is, sent by itself."""
    from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    sent: dict[str, float] = {}
    exporter = InMemorySpanExporter()
    provider: Any = trace.get_tracer_provider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    for name, call in calls.items():
        call()
        spans = exporter.get_finished_spans()
        sent[name] = len(encode_spans(spans).SerializeToString())
        sent[name.replace("bytes", "spans")] = len(spans)
        exporter.clear()
    return sent


def stage() -> None:
    with telemetry.stage("embed", {"gen_ai.request.model": "small"}):
        pass


def request() -> None:
    with telemetry.stage("query", {"ragaccel.component": "Retriever"}) as query:
        with telemetry.stage("preprocess"):
            pass
        with telemetry.stage("cache.lookup") as lookup:
            lookup.set({"ragaccel.cache.hit": False})
        with telemetry.stage("retrieve"):
            with telemetry.stage("embed", {"gen_ai.request.model": "small"}):
                pass
            with telemetry.stage("search", {"gen_ai.retrieval.top_k": 10}):
                pass
        with telemetry.stage("rerank"):
            pass
        query.set({"ragaccel.documents.count": 10})


def plain_spans() -> tuple[Call, Call]:
    """Return the same stage and the same request as an application would write them."""
    span = trace.get_tracer("benchmark").start_as_current_span

    def stage() -> None:
        with span("embed", attributes={"gen_ai.request.model": "small"}):
            pass

    def request() -> None:
        with span("query", attributes={"ragaccel.component": "Retriever"}) as query:
            with span("preprocess"):
                pass
            with span("cache.lookup") as lookup:
                lookup.set_attribute("ragaccel.cache.hit", False)
            with span("retrieve"):
                with span("embed", attributes={"gen_ai.request.model": "small"}):
                    pass
                with span("search", attributes={"gen_ai.retrieval.top_k": 10}):
                    pass
            with span("rerank"):
                pass
            query.set_attribute("ragaccel.documents.count", 10)

    return stage, request


def no_op() -> None:
    with NO_OP.start_as_current_span("embed"):
        pass


def measure_stages(case: Case, endpoint: str, loops: int) -> Found:
    """Return the figures of stages alone."""
    flush = provide(case.provider, endpoint)
    plain_stage, plain_request = plain_spans()
    one = {"stage": stage, "plain stage": plain_stage, "no-op stage": no_op}
    seven = {"request": request, "plain request": plain_request, "no-op request": no_op}
    taken = {**in_turn(one, loops, 1, flush), **in_turn(seven, loops, STAGES_OF_A_REQUEST, flush)}
    told = {
        name: processor_time(call, loops, STAGES_OF_A_REQUEST, flush) / STAGES_OF_A_REQUEST
        for name, call in (("CPU", request), ("plain CPU", plain_request))
    }
    return Found(taken, told, exceptions(request))


def langchain_retriever() -> Any:
    """Return a retriever that costs nothing itself."""
    from langchain_core.documents import Document
    from langchain_core.retrievers import BaseRetriever

    class Retriever(BaseRetriever):
        documents: list[Document]

        def _get_relevant_documents(self, query, *, run_manager):
            return self.documents

    return Retriever(documents=[Document(text, id=text[:3]) for text in TEXTS])


def llamaindex_retriever() -> Any:
    """Return a retriever that costs nothing itself."""
    from llama_index.core.base.base_retriever import BaseRetriever
    from llama_index.core.schema import NodeWithScore, TextNode

    class Retriever(BaseRetriever):
        def _retrieve(self, query_bundle):
            return nodes

    nodes = [NodeWithScore(node=TextNode(text=text, id_=text[:3]), score=0.5) for text in TEXTS]
    return Retriever()


def asking(framework: str, retriever: Any) -> Call:
    """Return a call that asks the retriever."""
    ask = retriever.invoke if framework == "LangChain" else retriever.retrieve
    return lambda: ask(QUERY)


def instrumentor_of(case: Case) -> Any:
    """Return the instrumentor of a tool for a framework."""
    module, _, name = INSTRUMENTORS[case.part][case.tool].partition(":")
    return getattr(importlib.import_module(module), name)()


def measure_retriever(case: Case, endpoint: str, loops: int) -> Found:
    """Return the figures of a framework's retriever that is traced."""
    plain = langchain_retriever() if case.part == "LangChain" else llamaindex_retriever()
    bare = asking(case.part, plain)
    own = exceptions(bare)
    if case.tool == RAGACCEL:
        flush = provide(case.provider, endpoint)
        call = asking(case.part, accelerate(plain))
        taken = in_turn({"call": call, "plain call": bare}, loops, SPANS_OF_A_CALL, flush)
    else:
        instrumentor = instrumentor_of(case)
        taken = in_turn({"plain call": bare}, loops, SPANS_OF_A_CALL, None)
        flush = provide(case.provider, endpoint)
        instrumentor.instrument()
        if not instrumentor.is_instrumented_by_opentelemetry:
            raise ImportError("it misses a package, or refuses this version of the framework")
        call = asking(case.part, plain)
        taken |= in_turn({"call": call}, loops, SPANS_OF_A_CALL, flush)
    told = {"CPU": processor_time(call, loops, SPANS_OF_A_CALL, flush)}
    if case.provider == BATCH:
        told |= _sent(case, plain, call)
    return Found(taken, told, exceptions(call) - own)


def _sent(case: Case, plain: Any, call: Call) -> dict[str, float]:
    if case.tool != RAGACCEL:
        return otlp_bytes({"bytes": call})
    with MultiLevelCache.open() as cache:
        cached = asking(case.part, accelerate(plain, cache=cache, identity="benchmark"))
        return otlp_bytes({"bytes": call, "bytes of a miss": cached, "bytes of a hit": cached})


def child(case: Case, endpoint: str, loops: int) -> None:
    """Print what was measured of one case, or what is missing for it."""
    measure = measure_stages if case.part == STAGES else measure_retriever
    try:
        told: Any = measure(case, endpoint, loops)
    except ImportError as error:
        told = str(error)
    print(MARK + json.dumps(told), flush=True)  # noqa: T201


# -- in the process of the command -----------------------------------------------------------------


def cases() -> list[Case]:
    """Return every configuration."""
    return [
        *(Case(STAGES, RAGACCEL, provider) for provider in PROVIDERS),
        *(
            Case(framework, tool, provider)
            for framework, instrumentors in INSTRUMENTORS.items()
            for tool in (RAGACCEL, *instrumentors)
            for provider in (NOTHING, BATCH)
        ),
    ]


def measured(case: Case, endpoint: str, loops: int) -> Found | str:
    """Measure one case in a process of its own, or tell what is missing for it.

    Raises:
        RuntimeError: The process failed.
    """
    module = "tests.benchmarks.telemetry"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", module, "--child", *case, endpoint, str(loops)],
        capture_output=True,
        text=True,
        check=False,
    )
    for line in done.stdout.splitlines():
        if line.startswith(MARK):
            told = json.loads(line.removeprefix(MARK))
            return told if isinstance(told, str) else Found(*told)
    raise RuntimeError(f"{' / '.join(case)} failed:\n{done.stderr}")


def run(rounds: int, loops: int) -> dict[Case, Found]:
    """Return what was measured of each case that is installed."""
    from tests.support.otlp import HttpReceiver

    class Sink(HttpReceiver):
        """Receives spans and keeps none."""

        def accept(self, request: Any) -> Any:
            answer = super().accept(request)
            self.resource_spans.clear()
            return answer

    found: dict[Case, Found] = {}
    left_out: set[Case] = set()
    with Sink() as sink, console.status("") as status:
        for number, case in itertools.product(range(rounds), cases()):
            if case in left_out:
                continue
            status.update(f"round {number + 1} of {rounds}: {' / '.join(case)}")
            told = measured(case, sink.endpoint, loops)
            if isinstance(told, str):
                left_out.add(case)
                console.print(f"left out {' / '.join(case)}: {told}")
            else:
                found[case] = found[case].and_(told) if case in found else told
    return found


def table_of_stages(found: dict[Case, Found]) -> Table:
    """Show stages alone beside OpenTelemetry's own way."""
    table = Table(
        "", "stage", "OTel's", "ratio", "request of 7", "OTel's", "ratio", "CPU/stage", "OTel's",
        title="Stages alone beside start_as_current_span, µs", title_justify="left",
    )  # fmt: skip
    for case, one in found.items():
        if case.part == STAGES:
            table.add_row(
                case.provider,
                f"{one.best('stage'):.2f}", f"{one.best('plain stage'):.2f}",
                f"{one.ratio('stage'):.2f}x",
                f"{one.best('request'):.2f}", f"{one.best('plain request'):.2f}",
                f"{one.ratio('request'):.2f}x",
                f"{one.told['CPU']:.1f}", f"{one.told['plain CPU']:.1f}",
            )  # fmt: skip
    return table


def table_of_retrievers(found: dict[Case, Found]) -> Table:
    """Show our retrievers beside those of instrumentors."""
    table = Table(
        "framework", "traced by", "", "bare µs", "call µs", "ratio", "CPU µs", "spans",
        "OTLP bytes", "exceptions swallowed",
        title="A retriever that returns 10 documents of 500 characters", title_justify="left",
    )  # fmt: skip
    for case, one in found.items():
        if case.part != STAGES:
            best, bare = one.best("call"), one.best("plain call")
            ratio = one.ratio("call") if case.tool == RAGACCEL else best / bare
            raised = ", ".join(f"{count} {name}" for name, count in one.raised.items())
            table.add_row(
                *case, f"{bare:.1f}", f"{best:.1f}", f"{ratio:.2f}x", f"{one.told['CPU']:.0f}",
                *(f"{one.told[key]:.0f}" if key in one.told else "" for key in ("spans", "bytes")),
                raised or "none",
            )  # fmt: skip
    return table


def table_of_bars(found: dict[Case, Found]) -> Table:
    """Show which bars are kept."""
    table = Table(
        "bar", "at most", "measured", "kept", "at the reference's speed", "kept",
        title="Bars", title_justify="left",
    )  # fmt: skip
    for case, figure, most, unit in BARS:
        if case in found:
            values = [found[case].figure(figure)]
            if unit == "µs":
                values.append(found[case].ratio(figure, "no-op") * NO_OP_MICROSECONDS)
            shown = [(f"{it:.4g} {unit}", "yes" if it <= most else "NO") for it in values]
            name = f"{case.part}, {case.provider}: {figure}"
            table.add_row(name, f"{most:g} {unit}", *itertools.chain(*shown))
    return table


def main() -> None:
    """Measure every case in turn, and print the tables and whether the bars are kept."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        *case, endpoint, loops = asked.child
        child(Case(*case), endpoint, int(loops))
        return
    found = run(1, 15) if asked.quick else run(3, 60)
    for table in (table_of_stages(found), table_of_retrievers(found), table_of_bars(found)):
        console.print(table)


if __name__ == "__main__":
    main()
