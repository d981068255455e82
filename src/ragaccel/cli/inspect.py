"""`ragaccel inspect`: what lies in a cache."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ragaccel.cache.keys import namespace_mark
from ragaccel.cache.levels.disk.file import VERSION
from ragaccel.cache.levels.disk.report import report

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

inspect = typer.Typer(no_args_is_help=True, help="Look into what ragaccel stores.")


@inspect.callback()
def main() -> None:
    """Look into what ragaccel stores."""


@inspect.command()
def cache(
    where: Annotated[
        str, typer.Argument(help="The cache's folder or file, or a server's redis:// URL.")
    ],
    namespace: Annotated[
        list[str] | None,
        typer.Option(help="A namespace to show by its name; may be given several times."),
    ] = None,
    *,
    check: Annotated[
        bool, typer.Option("--check", help="Look at the checksum of every entry on disk.")
    ] = False,
) -> None:
    """Show what a cache holds. Namespaces are stored as marks, which do not tell their names."""
    if "://" in where:
        from ragaccel.cache.levels.redis import RedisLevel

        level = RedisLevel(where, timeout=5.0)
        title, found = "cache on a server", _described(level)
    else:
        path = Path(where)
        file = path / "cache.sqlite" if path.is_dir() else path
        if not file.is_file():
            typer.echo(f"there is no cache file at {file}.", err=True)
            raise typer.Exit(1)
        title, found = f"cache in {file}", _read(file, check=check)
        found["set_aside"] = len(list(file.parent.glob(f"{file.name}.damaged-*")))
    _draw(title, found, ["default", *(namespace or ())])
    if found.get("damaged"):
        raise typer.Exit(1)


def _described(level: Any) -> dict[str, Any]:
    with _telling():
        try:
            found: dict[str, Any] = level.describe()
        finally:
            level.close()
    return found


def _read(file: Path, *, check: bool) -> dict[str, Any]:
    """Look into a cache file without the right to change it, or to make one beside it."""
    with _telling(), contextlib.closing(sqlite3.connect(_address(file), uri=True)) as db:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version != VERSION:
            typer.echo(f"{file} is no cache file of this version of ragaccel.", err=True)
            raise typer.Exit(1)
        return report(db, check=check)


def _address(file: Path) -> str:
    """Return how SQLite opens a file to look only.

    It would make a log and its index where there are none: then nobody writes, and what lies in
    the file is all there is.
    """
    beside = [file.with_name(f"{file.name}{ending}") for ending in ("-wal", "-shm")]
    in_use = any(path.exists() for path in beside)
    return f"{file.absolute().as_uri()}?{'mode=ro&readonly_shm=1' if in_use else 'immutable=1'}"


@contextlib.contextmanager
def _telling() -> Iterator[None]:
    """Say what went wrong, and end with an exit code."""
    try:
        yield
    except typer.Exit:
        raise
    except Exception as error:  # noqa: BLE001 - said
        typer.echo(f"the cache cannot be read: {type(error).__name__}: {error}", err=True)
        raise typer.Exit(1) from None


def _draw(title: str, found: dict[str, Any], names: Sequence[str]) -> None:
    console = Console()
    console.print(Text(title), soft_wrap=True)  # paths can be copied
    table = Table(show_header=False)
    namespaces = found.pop("namespaces", {})
    for name, value in found.items():
        table.add_row(name.replace("_", " "), f"{value:,.0f}" if _is_number(value) else str(value))
    console.print(table)
    if namespaces:
        marks = {namespace_mark(name).hex(): name for name in names}
        held = Table("namespace", "entries", "bytes")
        for mark, counts in namespaces.items():
            held.add_row(
                Text(marks.get(mark, mark)), f"{counts['entries']:,}", f"{counts['bytes']:,}"
            )
        console.print(held)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
