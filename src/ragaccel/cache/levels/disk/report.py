"""What lies in a cache file, for a person who looks."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from ragaccel.cache import values

if TYPE_CHECKING:
    import sqlite3


def report(db: sqlite3.Connection, *, check: bool) -> dict[str, Any]:
    """Return counts and sizes; with `check` every entry's checksum is looked at.

    Returns:
        entries, bytes, expired, oldest_seconds, newest_seconds (ages), namespaces (mark in hex ->
        entries and bytes), strikes, ledger_seq, and damaged if it was checked.
    """
    now = time.time()
    entries, size, expired, oldest, newest = db.execute(
        "SELECT count(*), coalesce(sum(size), 0), coalesce(sum(expires <= ?), 0), min(written),"
        " max(written) FROM entry",
        (now,),
    ).fetchone()
    found: dict[str, Any] = {
        "entries": entries,
        "bytes": size,
        "expired": expired,
        "oldest_seconds": now - oldest / 1e9 if entries else None,
        "newest_seconds": now - newest / 1e9 if entries else None,
        "namespaces": {
            namespace.hex(): {"entries": count, "bytes": held}
            for namespace, held, count in db.execute(
                "SELECT namespace, bytes, entries FROM total WHERE namespace != x'' AND entries > 0"
                " ORDER BY bytes DESC"
            )
        },
        "strikes": db.execute("SELECT count(*) FROM strike").fetchone()[0],
        "ledger_seq": db.execute("SELECT seq FROM ledger").fetchone()[0],
    }
    if check:
        rows = db.execute("SELECT key, blob FROM entry")
        found["damaged"] = sum(values.unframe(key, blob) is None for key, blob in rows)
    return found
