"""What other processes do in the tests; run as a script with a role and a folder.

Each role tells on its standard output how far it is.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
from pathlib import Path

import numpy as np

from ragaccel import RagaccelError, VectorCollection
from ragaccel.errors import CollectionError

DIM = 8
ROWS = 200


def row_vector(row, version):
    """Return the vector that a row has in a version."""
    return np.random.default_rng([row, version]).standard_normal(DIM).astype(np.float32)


def put(collection, rows, version):
    """Write rows in a version that their metadata tells."""
    collection.upsert(
        [f"row-{row}" for row in rows],
        np.stack([row_vector(row, version) for row in rows]),
        metadata=[{"row": int(row), "version": version} for row in rows],
    )


# -- writing until the end -------------------------------------------------------------------------


def batch(number):
    """Return the rows that a call of `write` upserts, and those that it deletes first."""
    generator = np.random.default_rng(number)
    upserted = np.unique(generator.integers(0, 3000, int(generator.choice([1, 20, 300, 1100]))))
    deleted = generator.integers(0, 3000, 100) if number % 3 == 0 else np.zeros(0, np.int64)
    return upserted, deleted


def write(folder, first):
    """Write batch after batch, each acknowledged by its number, until somebody ends it."""
    collection = VectorCollection.open(folder, compression="int8")
    for number in range(int(first), 1_000_000):
        upserted, deleted = batch(number)
        if len(deleted):
            collection.delete([f"row-{row}" for row in deleted])
            _tell(f"{number} deleted")
        put(collection, upserted, number)
        _tell(f"{number} upserted")
        if number % 7 == 0:
            collection.flush()
        if number % 11 == 0:
            collection.compact()


# -- a full disk -----------------------------------------------------------------------------------


def fill(folder, kilobytes):
    """Write until the disk is full, which a limit of the file size stands for; then go on."""
    with VectorCollection.open(folder, compression="int8") as collection:
        _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(kilobytes) * 1024, most))
        done = _until_full(collection, 0)
        _tell(f"full {done}")
        for refused in (collection.flush, collection.compact):
            with contextlib.suppress(CollectionError):
                refused()
        _tell(f"rows {len(collection)} {len(collection.select(vectors=True))}")
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        for number in range(done, done + 5):
            put(collection, range(number * 40, number * 40 + 40), number)
        collection.flush()
        collection.verify()
    _tell("ended")


def _until_full(collection, number):
    """Write rows, 40 per call, and return how many calls were acknowledged."""
    while True:
        try:
            put(collection, range(number * 40, number * 40 + 40), number)
        except CollectionError as error:
            _tell(f"error {error}")
            return number
        number += 1
        if number % 9 == 0:
            with contextlib.suppress(CollectionError):
                collection.flush()


# -- others ----------------------------------------------------------------------------------------


def hold(folder):
    """Hold the right to write until standard input ends."""
    collection = VectorCollection.open(folder)
    collection.upsert(["held"], np.ones((1, DIM)))
    _tell("held")
    sys.stdin.read()
    collection.close()


def churn(folder, calls):
    """Write a fixed set of rows anew, again and again."""
    generator = np.random.default_rng(0)
    with VectorCollection.open(folder) as collection:
        for version in range(2, 2 + int(calls)):
            put(collection, generator.permutation(ROWS)[: generator.integers(1, 80)], version)
            if version % 5 == 0:
                collection.flush()


def follow(folder):
    """For each line on standard input, tell what a read-only collection holds."""
    with VectorCollection.open(folder, read_only=True) as collection:
        _tell("following")
        for line in sys.stdin:
            query = json.loads(line)
            (hits,) = collection.search(query, k=10_000)
            found = {hit.id: hit.metadata["version"] for hit in hits}
            counts = [len(collection), len(collection.select()), len(collection.get(list(found)))]
            _tell(json.dumps({"found": found, "counts": counts}))


def fork(folder):
    """Use a collection in a forked child of the process that opened it."""
    with VectorCollection.open(folder) as collection:
        put(collection, [0, 1], 1)
        child = os.fork()
        if not child:
            _tell(f"child finds {len(collection.search(row_vector(0, 1))[0])}")
            try:
                put(collection, [2], 1)
            except RagaccelError:
                _tell("child is refused")
            os._exit(0)
        os.waitpid(child, 0)
        put(collection, [3], 1)
        _tell(f"parent has {sorted(row.id for row in collection.select())}")


def _tell(line):
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    {one.__name__: one for one in (write, fill, hold, churn, follow, fork)}[sys.argv[1]](
        Path(sys.argv[2]), *sys.argv[3:]
    )
