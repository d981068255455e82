"""`ragaccel bench`: profile a pipeline over queries, and hold it against goals."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path  # noqa: TC003 - typer reads it
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.console import Console

from ragaccel.cli.faults import show
from ragaccel.errors import ConfigurationError, RagaccelError
from ragaccel.observe import Profile, Profiler, targets
from ragaccel.observe.live import fetch, place_of

if TYPE_CHECKING:
    from ragaccel.observe import Snapshot

_MISSED = 1
_WRONG = 2


def bench(
    pipeline: Annotated[
        str,
        typer.Argument(
            help="What answers queries, as module:name, or module:make() to call make for it: a "
            "function, a retriever, an engine or a chain. Or the number or socket of a running "
            "process whose monitor serves."
        ),
    ],
    queries: Annotated[
        Path | None, typer.Option(help='A query per line; in .jsonl under "query" or "text".')
    ] = None,
    goals: Annotated[
        Path | None, typer.Option(help="Targets to check, as TOML; see ragaccel.observe.targets.")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Queries at a time.")] = 1,
    warmup: Annotated[
        int, typer.Option(min=0, help="Queries that are asked before, and not counted.")
    ] = 0,
    html: Annotated[Path | None, typer.Option(help="Write the report to this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print figures as JSON.")] = False,  # noqa: FBT002
) -> None:
    """Profile a pipeline, or look at a running one; end with 1 if a goal is missed."""
    console = Console(stderr=as_json)
    found: Profile | Snapshot
    try:
        wanted = [] if goals is None else targets.read_targets(goals)
        if ":" in pipeline:
            found = _profile(pipeline, queries, concurrency, warmup)
            if html is not None:
                found.to_html(html)
        else:
            found = fetch(place_of(pipeline))
    except RagaccelError as error:
        show(console, error)
        raise typer.Exit(_WRONG) from error
    verdicts = targets.check(wanted, found.figures())
    console.print(found)
    if verdicts:
        console.print(targets.table(verdicts))
    if as_json:
        told = found.to_dict() if isinstance(found, Profile) else msgspec.to_builtins(found)
        missed = [one.target.figure for one in verdicts if not one.is_met]
        typer.echo(json.dumps({**told, "missed": missed}))
    if not all(one.is_met for one in verdicts):
        raise typer.Exit(_MISSED)


def _profile(name: str, queries: Path | None, concurrency: int, warmup: int) -> Profile:
    if queries is None:
        raise ConfigurationError("a pipeline needs --queries, a file with a query per line.")
    asked, answer = _queries(queries), pipeline_of(name)
    if warmup:
        Profiler().profile(answer, asked[:warmup], concurrency=concurrency)
    return Profiler(resources=True).profile(answer, asked, concurrency=concurrency)


def _queries(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeError) as error:
        raise ConfigurationError(f"the queries in {path} cannot be read: {error}.") from error
    found = [line for line in lines if line.strip()]
    if path.suffix == ".jsonl":
        found = [_query(path, at, line) for at, line in enumerate(found, 1)]
    if not found:
        raise ConfigurationError(f"there are no queries in {path}; write one per line.")
    return found


def _query(path: Path, at: int, line: str) -> str:
    try:
        row = json.loads(line)
        return str(row["query"] if "query" in row else row["text"])
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigurationError(
            f'line {at} of {path} is no JSON object with "query" or "text".'
        ) from error


def pipeline_of(name: str) -> Any:
    """Return what is named as module:name, or made by module:make().

    Raises:
        ConfigurationError: There is none.
    """
    module, _, attribute = name.partition(":")
    is_made = attribute.endswith("()")
    sys.path.insert(0, "")
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.removesuffix("()").split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigurationError(
            f"the pipeline {name!r} cannot be had ({error}); name it as module:name or "
            "module:make()."
        ) from error
    return found() if is_made else found
