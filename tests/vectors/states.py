"""What a collection of versioned rows holds, checked in every way that it can be read."""

from __future__ import annotations

import functools

from tests.vectors.children import batch, row_vector

QUERY = row_vector(1, 0)


def versions(collection):
    """Return the version of each row, having checked that every read tells the same."""
    records = collection.select(vectors=True)
    for record in records:
        row, version = record.metadata["row"], record.metadata["version"]
        assert record.id == f"row-{row}"
        assert record.vector.tobytes() == row_vector(row, version).tobytes()
    stored = {record.metadata["row"]: record.metadata["version"] for record in records}
    (hits,) = collection.search(QUERY, k=len(records) + 1, exact=True)
    assert len(collection) == len(records) == len(stored) == len(hits)
    assert {hit.metadata["row"]: hit.metadata["version"] for hit in hits} == stored
    return stored


def replay(number, *, delete_only=False, deleted_again=False):
    """Return what is stored once a batch was written, or only its deletions were.

    A batch that is begun again deletes rows that it has written itself.
    """
    upserted, deleted = batch(number)
    gone = set(map(int, deleted))
    stored = {row: version for row, version in _written(number - 1).items() if row not in gone}
    if delete_only:
        return stored
    added = [row for row in map(int, upserted) if not (deleted_again and row in gone)]
    return {**stored, **dict.fromkeys(added, number)}


@functools.lru_cache(maxsize=100)
def _written(number):
    return replay(number) if number >= 0 else {}
