"""Checking what is stored: the database, the slab against its checksums, and the segment."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np
import xxhash

from ragaccel.vectors import blocks, database
from ragaccel.vectors.slab import SLAB

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ragaccel.vectors.blocks import Block

SEGMENT: Final = "segment.faiss"
_MOST: Final = 20


def damage(db: sqlite3.Connection, folder: Path | None) -> list[str]:
    """Return in words what is damaged of the truth.

    Args:
        db: A connection that sees one state of the collection.
        folder: Where the slab lies; None in memory.
    """
    found: list[str] = []
    try:
        found += _database(db)
        found += _rows(db)
        if folder is not None:
            found += _slab(db, folder / SLAB)
    except sqlite3.DatabaseError as error:
        found.append(f"collection.sqlite: {error}")
    return found


def damage_of_codes(folder: Path | None) -> list[str]:
    """Return in words what is damaged of the codes, which the next opening makes anew."""
    if folder is None or not (folder / SEGMENT).exists():
        return []
    head = head_of_codes(folder / SEGMENT)
    if head is not None and head["is_whole"]:
        return []
    return [f"{SEGMENT}: the codes are not what was stored; they are made anew when needed"]


def head_of_codes(file: Path) -> dict[str, Any] | None:
    """Return what a segment's file tells of itself, and whether its checksum `is_whole`.

    Returns:
        None if it is no segment.
    """
    with contextlib.suppress(OSError, ValueError, KeyError, msgspec.DecodeError):
        magic, line, body = file.read_bytes().split(b"\n", 2)
        if magic.startswith(b"ragaccel-segment-"):
            head: dict[str, Any] = msgspec.json.decode(line, type=dict[str, Any])
            unsealed = msgspec.json.encode({**head, "checksum": 0})
            is_whole = head["checksum"] == xxhash.xxh3_64_intdigest(unsealed + body)
            return {**head, "is_whole": is_whole}
    return None


def _database(db: sqlite3.Connection) -> Iterator[str]:
    for (line,) in db.execute(f"PRAGMA integrity_check({_MOST})"):
        if line != "ok":
            yield f"collection.sqlite: {line}"


def _rows(db: sqlite3.Connection) -> Iterator[str]:
    """Tell of rows whose vector is nowhere."""
    meta = database.meta(db)
    end, size = meta.get("slab_end", 0), 4 * (meta.get("dim") or 0)
    (lost,) = db.execute(
        "SELECT count(*) FROM doc LEFT JOIN fresh USING (slot) "
        "WHERE doc.slot >= ? AND (vector IS NULL OR length(vector) <> ?)",
        (end, size),
    ).fetchone()
    if lost:
        yield f"collection.sqlite: {lost} recent rows have no vector"
    for block in blocks.stored(db):
        if block.dead is not None:
            gone = (np.flatnonzero(block.given_back) + block.first).tolist()
            between = db.execute(
                "SELECT slot FROM doc WHERE slot >= ? AND slot < ?", (block.first, block.end)
            )
            back = {slot for (slot,) in between}.intersection(gone)
            if back:
                yield f"vectors.bin: {len(back)} rows lie where deleted ones were given back"


def _slab(db: sqlite3.Connection, path: Path) -> Iterator[str]:
    meta = database.meta(db)
    dim, end = meta.get("dim") or 0, meta.get("slab_end", 0)
    if not end:
        return
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError as error:
        yield f"vectors.bin: {error.strerror}"
        return
    try:
        size = os.fstat(file).st_size
        if size < end * dim * 4:
            yield f"vectors.bin: {size} bytes where {end * dim * 4} were stored"
        for block in blocks.stored(db):
            if block.first < end:
                yield from _block(file, block, dim)
    finally:
        os.close(file)


def _block(file: int, block: Block, dim: int) -> Iterator[str]:
    where = f"vectors.bin: rows {block.first} to {block.end - 1}"
    rows = np.zeros((block.end - block.first, dim), dtype=np.float32)
    try:
        read = os.preadv(file, [rows.reshape(-1).view(np.uint8).data], block.first * dim * 4)
    except OSError as error:
        yield f"{where} cannot be read: {error.strerror}"
        return
    if read < rows.nbytes:
        yield f"{where} are cut off"
    elif not block.is_whole(rows):
        yield f"{where} are not what was stored"
