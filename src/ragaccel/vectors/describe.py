"""What lies in a collection's folder, told from its files without opening the collection."""

from __future__ import annotations

import contextlib
import sqlite3
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ragaccel.errors import CollectionError, CollectionNotFoundError, CorruptCollectionError
from ragaccel.vectors import blocks, database, fields, integrity
from ragaccel.vectors.integrity import SEGMENT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_DATABASE: Final = "collection.sqlite"
_TRIES: Final = 5
_BLOCK_BYTES: Final = 512  # of st_blocks, whatever the file system


def describe(folder: Path, *, check: bool = False) -> dict[str, Any]:
    """Describe a collection; nothing is written, and another process may be writing it.

    Args:
        folder: The collection's folder.
        check: Read everything and compare it with its checksums.

    Returns:
        JSON values by name; with `check` what is damaged of the truth under "damaged", and what of
        the codes, which are made anew when needed, under "damaged_codes".

    Raises:
        CollectionNotFoundError: There is no collection.
        CorruptCollectionError: The database cannot be read.
        CollectionError: The collection changes too fast to be looked at.
    """
    if not (folder / _DATABASE).is_file():
        raise CollectionNotFoundError(f"there is no collection at {folder}.")
    try:
        for _ in range(_TRIES):
            before = _state(folder)
            with _reading(folder, before) as db:
                found = _described(db, folder)
                if check:
                    found["damaged"] = integrity.damage(db, folder)
                    found["damaged_codes"] = integrity.damage_of_codes(folder)
            if _is_settled(folder, before, found["given_back"]):
                return found
    except sqlite3.DatabaseError as error:
        raise CorruptCollectionError(f"{folder / _DATABASE} cannot be read: {error}") from error
    raise CollectionError(f"{folder} changes faster than it can be read; look again later.")


class _State(NamedTuple):
    """Whether a process has the database open or left it so, and what changes when one writes."""

    is_open: bool
    stamp: tuple[int, int, int]


def _state(folder: Path) -> _State:
    found = (folder / _DATABASE).stat()
    is_open = (folder / f"{_DATABASE}-wal").exists()
    return _State(is_open, (found.st_mtime_ns, found.st_size, found.st_ino))


@contextlib.contextmanager
def _reading(folder: Path, state: _State) -> Iterator[sqlite3.Connection]:
    """Give a connection that sees one state; a database that nobody has open is not even locked."""
    how = "mode=ro" if state.is_open else "mode=ro&immutable=1"
    target = f"{(folder / _DATABASE).absolute().as_uri()}?{how}"
    with contextlib.closing(sqlite3.connect(target, uri=True, isolation_level=None)) as db:
        db.execute("BEGIN")
        yield db


def _is_settled(folder: Path, before: _State, given_back: int) -> bool:
    """Tell whether what was read is one state: nobody wrote under it or took rows away."""
    if not before.is_open:
        return _state(folder) == before
    with _reading(folder, before) as db:
        return database.given_back(db) == given_back


def _described(db: sqlite3.Connection, folder: Path) -> dict[str, Any]:
    meta = database.meta(db)
    (rows,) = db.execute("SELECT count(*) FROM doc").fetchone()
    (recent,) = db.execute("SELECT count(*) FROM fresh JOIN doc USING (slot)").fetchone()
    oldest, entries = db.execute("SELECT min(seq), count(*) FROM change").fetchone()
    stored = meta.get("slab_end", 0)
    return {
        "rows": rows,
        "dim": meta.get("dim"),
        "metric": meta.get("metric"),
        "format": db.execute("PRAGMA user_version").fetchone()[0],
        "position": database.position(db).seq,
        "log_entries": entries,
        "log_from": oldest,
        "slots": meta.get("next_slot", 0),
        "recent_rows": recent,
        "deleted_in_slab": stored - (rows - recent),
        "without_checksum": stored - sum(one.end - one.first for one in blocks.stored(db)),
        "given_back": database.given_back(db),
        "codes": _codes(folder),
        "files": _files(folder),
        "documents": _count(db, "SELECT count(DISTINCT document_id) FROM doc"),
        "metadata": _fields(db),
        "indexes": list(fields.indexed(db)),
    }


def _count(db: sqlite3.Connection, sql: str) -> int:
    return int(db.execute(sql).fetchone()[0])


def _codes(folder: Path) -> dict[str, Any] | None:
    """Return what the segment tells of itself; None if searches compare with the raw vectors."""
    head = integrity.head_of_codes(folder / SEGMENT)
    if head is None:
        return None
    told = ("codec", "structure", "oversample", "probes", "recall", "floor", "end")
    return {name: head[name] for name in told if name in head}


def _files(folder: Path) -> dict[str, int]:
    """Return the bytes that each file takes on disk; holes take none."""
    found = {}
    for file in sorted(folder.iterdir()):
        with contextlib.suppress(FileNotFoundError):  # a writer replaces files meanwhile
            stat = file.stat()
            found[file.name] = min(stat.st_size, stat.st_blocks * _BLOCK_BYTES)
    return found


def _fields(db: sqlite3.Connection) -> dict[str, dict[str, int]]:
    """Return by metadata field how many rows have it, by the JSON type of their value."""
    found: dict[str, dict[str, int]] = {}
    sql = (
        "SELECT key, CASE WHEN type IN ('true', 'false') THEN 'boolean' ELSE type END AS kind, "
        "count(*) FROM doc, json_each(doc.metadata) GROUP BY key, kind ORDER BY key, kind"
    )
    for name, kind, rows in db.execute(sql):
        found.setdefault(name, {})[kind] = rows
    return found
