"""What making codes takes of memory beside them."""

from __future__ import annotations

import tracemalloc

import numpy as np

from ragaccel import VectorCollection


def test_codes_are_chosen_and_made_in_little_memory(tmp_path):
    """Rows stay in the file, and are compared with queries some thousands at a time."""
    rows = np.random.default_rng(7).standard_normal((20_000, 32)).astype(np.float32)
    with VectorCollection.open(tmp_path, compression="float32") as collection:
        collection.upsert([f"{number}" for number in range(len(rows))], rows)
    tracemalloc.start()
    with VectorCollection.open(tmp_path, recall=0.5) as collection:  # which compresses them
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert collection.stats().compression is not None
    assert peak < 24e6
