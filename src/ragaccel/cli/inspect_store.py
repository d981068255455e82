"""`ragaccel inspect store`: what lies in a vector collection."""

from __future__ import annotations

import json
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ragaccel.errors import CollectionError

if TYPE_CHECKING:
    from collections.abc import Mapping


def store(
    where: Annotated[Path, typer.Argument(help="The collection's folder.")],
    *,
    check: Annotated[
        bool, typer.Option("--check", help="Read everything and compare it with its checksums.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a vector collection holds. Nothing is changed; it may be open elsewhere."""
    from ragaccel.vectors.describe import describe  # with faiss, which other commands do not need

    try:
        found = describe(where, check=check)
    except CollectionError as error:
        typer.echo(f"{error}", err=True)
        raise typer.Exit(1) from None
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        _draw(where, found)
    if found.get("damaged"):
        raise typer.Exit(1)


def _draw(where: Path, found: dict[str, Any]) -> None:
    console = Console()
    files, metadata = found.pop("files"), found.pop("metadata")
    codes = found.pop("codes") or {"codec": "none: searches compare with the raw vectors"}
    told = {name.replace("_", " "): value for name, value in {**found, **codes}.items()}
    _table(console, f"collection in {where}", told)
    _table(console, "bytes on disk", {**files, "all": sum(files.values())})
    if metadata:
        kinds = {
            field: ", ".join(f"{kind} {rows:,}" for kind, rows in held.items())
            for field, held in metadata.items()
        }
        _table(console, "metadata: rows by type", kinds)


def _table(console: Console, title: str, rows: Mapping[str, object]) -> None:
    table = Table(title=Text(title, style="table.title"), show_header=False)
    for name, value in rows.items():
        table.add_row(Text(name), Text(_said(value)))
    console.print(table)


def _said(value: object) -> str:
    if isinstance(value, list):
        return "\n".join(map(str, value)) or "none"
    if isinstance(value, float):
        return f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
