"""A bar on the terminal."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def on_terminal() -> bool:
    """Tell whether stderr is a terminal."""
    stderr: Any = sys.stderr  # None in a program without a console
    return stderr is not None and stderr.isatty()


@contextlib.contextmanager
def bar(title: str, total: int | None, *, shown: bool) -> Iterator[Callable[[int], None]]:
    """Show how much is done, with rate and remaining time, if stderr is a terminal.

    Yields:
        A function that is told how much is done.
    """
    if not (shown and on_terminal()):
        yield lambda _: None
        return
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn("{task.fields[rate]}"),
        progress.TimeRemainingColumn(),
    )
    started = time.monotonic()
    with progress.Progress(*columns, console=Console(stderr=True)) as shown_bar:
        task = shown_bar.add_task(title, total=total, rate="")

        def tell(done: int) -> None:
            per_second = done / max(time.monotonic() - started, 1e-3)
            shown_bar.update(task, completed=done, rate=f"{per_second:,.1f}/s")

        yield tell
