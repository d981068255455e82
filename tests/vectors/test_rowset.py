"""A set of rows against Python's own sets."""

from __future__ import annotations

import faiss
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ragaccel.vectors.rowset import RowSet

slots = st.one_of(
    st.sets(st.integers(0, 40)),
    st.sets(st.integers(0, 5000), max_size=20),
    st.builds(lambda end, step: set(range(0, end, step)), st.integers(0, 300), st.integers(1, 3)),
)


def array(numbers):
    """Return numbers ascending, as slots are."""
    return np.array(sorted(numbers), dtype=np.int64)


def check(rows, wanted):
    """Compare every form of a set of rows with what should be in it."""
    asked = np.arange(6000)
    assert len(rows) == len(wanted)
    assert asked[rows.contains(asked)].tolist() == sorted(wanted)
    selector = faiss.IDSelectorBitmap(rows.bitmap)
    assert {slot for slot in range(400) if selector.is_member(slot)} == {*range(400)} & wanted
    assert not selector.is_member(6000)
    assert rows.slots.dtype == np.int64
    assert rows.slots.tolist() == asked[rows.contains(asked)].tolist()


@settings(deadline=None)
@given(slots, slots, st.sets(st.integers(1, 70), max_size=5))
def test_sets_of_rows(held, gone, above):
    """The forms of a set agree, and a changed one lost and gained what it should."""
    rows = RowSet(array(held))
    added = {max(held, default=0) + one for one in above}

    changed = rows.changed(array(gone), array(added))

    check(changed, held - gone | added)
    check(rows, held)
    check(changed.changed(array(added), array([])), held - gone - added)


def test_the_smaller_form_is_kept():
    """Many rows are kept as bits, few as numbers."""
    assert RowSet(np.arange(80_000)).bytes_used == 10_000
    assert RowSet(np.array([80_000])).bytes_used == 8
