"""How a fault is told on the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape

if TYPE_CHECKING:
    from rich.console import Console

    from ragaccel.errors import RagaccelError


def show(console: Console, error: RagaccelError) -> None:
    """Print an error's class and its message, which may hold square brackets."""
    console.print(f"[red]{type(error).__name__}[/red]: {escape(str(error))}")
