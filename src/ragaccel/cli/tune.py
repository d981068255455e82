"""`ragaccel tune`: find settings from recorded traffic."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - typer reads it
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from ragaccel.cli.bench import pipeline_of
from ragaccel.cli.faults import show
from ragaccel.errors import ConfigurationError, RagaccelError
from ragaccel.tuning import AutoTuner, Traffic, read_goals
from ragaccel.vectors import VectorCollection

if TYPE_CHECKING:
    from collections.abc import Callable

    from ragaccel.tuning import TuningReport

_KEPT = 1
_WRONG = 2


def tune(
    traffic: Annotated[Path, typer.Argument(help="What a TrafficRecorder has recorded.")],
    store: Annotated[
        Path | None, typer.Option(help="The folder of a collection to tune; needs --embed.")
    ] = None,
    embed: Annotated[
        str | None,
        typer.Option(help="What makes a vector of a query, as module:name or module:make()."),
    ] = None,
    pipeline: Annotated[
        str | None,
        typer.Option(help="What answers queries, as module:name or module:make(), to tune it."),
    ] = None,
    goals: Annotated[
        Path | None, typer.Option(help="Goals, as TOML; see ragaccel.tuning.read_goals.")
    ] = None,
    study: Annotated[
        Path | None, typer.Option(help="Keep measurements in this file, and go on with them.")
    ] = None,
    budget: Annotated[int | None, typer.Option(min=1, help="The most queries to ask.")] = None,
    k: Annotated[int, typer.Option(min=1, help="How many rows --store is asked for.")] = 10,
    concurrency: Annotated[int, typer.Option(min=1, help="Queries at a time.")] = 1,
    pace: Annotated[
        Literal["fastest", "recorded"],
        typer.Option(help="Ask as fast as answers come, or when queries came."),
    ] = "fastest",
    seed: Annotated[int, typer.Option(help="Of all that is random.")] = 0,
    html: Annotated[Path | None, typer.Option(help="Write the report to this file.")] = None,
    toml: Annotated[Path | None, typer.Option(help="Write the settings to this file.")] = None,
) -> None:
    """Find settings from recorded traffic; end with 1 if what was stays.

    Those of a store are kept in it. Those of a pipeline end with this process: the report tells
    them as TOML and Python.
    """
    console = Console()
    options: dict[str, Any] = {
        "storage": study, "budget": budget, "concurrency": concurrency, "seed": seed,
    }  # fmt: skip
    try:
        wanted = [] if goals is None else read_goals(goals)
        asked = Traffic.read(traffic)
        if store is not None and embed is not None:
            report = _tune_store(store, pipeline_of(embed), asked, wanted, options, k, pace)
        elif pipeline is not None:
            report = AutoTuner([pipeline_of(pipeline)], wanted, **options).run(asked, pace=pace)
        else:
            raise ConfigurationError("give --store with --embed, or --pipeline.")
        if html is not None:
            report.to_html(html)
        if toml is not None:
            toml.write_text(report.to_toml(), encoding="utf-8")
    except RagaccelError as error:
        show(console, error)
        raise typer.Exit(_WRONG) from error
    console.print(report)
    console.print(report.to_toml(), markup=False)
    if not report.is_applied:
        raise typer.Exit(_KEPT)


def _tune_store(
    path: Path,
    embed: Callable[[str], Any],
    traffic: Traffic,
    goals: list[Any],
    options: dict[str, Any],
    k: int,
    pace: Literal["fastest", "recorded"],
) -> TuningReport:
    queries = [one.query for one in traffic if one.query is not None]
    if len(queries) < len(traffic):
        raise ConfigurationError(
            "the traffic was recorded without its queries (content=False), which cannot be asked "
            "again; record it with content."
        )
    if not path.is_dir():
        raise ConfigurationError(f"there is no collection at {path}; give its folder.")
    vectors = {one: embed(one) for one in dict.fromkeys(queries)}
    with VectorCollection.open(path) as collection:

        def ask(query: str) -> Any:
            return collection.search(vectors[query], k)[0]

        return AutoTuner([collection], goals, ask=ask, **options).run(traffic, pace=pace)
