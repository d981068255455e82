"""`ragaccel top`: a running process, live."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.live import Live

from ragaccel.errors import ConfigurationError
from ragaccel.observe.live import fetch, place_of

if TYPE_CHECKING:
    from pathlib import Path

    from ragaccel.observe.snapshot import Snapshot


def top(
    where: Annotated[
        str,
        typer.Argument(
            metavar="PID_OR_SOCKET",
            help="The number of the process, or the socket that its monitor serves at.",
        ),
    ],
    *,
    once: Annotated[bool, typer.Option("--once", help="Print one table and end.")] = False,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 2.0,
) -> None:
    """Watch the stages of a running process, whose monitor was told to serve()."""
    path = place_of(where)
    console = Console()
    if once:
        console.print(_fetched(path))
        return
    with contextlib.suppress(KeyboardInterrupt), Live(_fetched(path), console=console) as live:
        while True:
            time.sleep(interval)
            live.update(_fetched(path))


def _fetched(path: Path) -> Snapshot:
    try:
        return fetch(path)
    except ConfigurationError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
