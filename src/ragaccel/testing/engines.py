"""What every engine of compressed codes must do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ragaccel.vectors.engines import Codes, Engine
    from ragaccel.vectors.spec import CompressionSpec

_ROWS, _DIM, _K = 2_000, 24, 10
_LEAST_RECALL = 0.9


class EngineContract:
    """Tests of an `Engine`.

    A subclass gives it in a fixture named `engine`, and one of its specs in a fixture `spec`; it
    may be parametrised. What is asked of the codes is that rescoring finds the right rows among
    their candidates, whatever they are made of.
    """

    @pytest.fixture(params=["cosine", "ip", "l2"])
    def metric(self, request: pytest.FixtureRequest) -> str:
        """How vectors are scored."""
        return str(request.param)

    @pytest.fixture
    def rows(self) -> NDArray[np.float32]:
        """Vectors of unit length, as a metric of cosine hands them to an engine."""
        return _clustered(_ROWS, seed=1)

    @pytest.fixture
    def slots(self) -> NDArray[np.int64]:
        """Slots with gaps: those of deleted rows never come back."""
        return np.arange(_ROWS, dtype=np.int64) * 3 + 5

    @pytest.fixture
    def codes(
        self,
        engine: Engine,
        spec: CompressionSpec,
        metric: str,
        rows: NDArray[np.float32],
        slots: NDArray[np.int64],
    ) -> Codes:
        """Codes of all rows."""
        made = engine.train(spec, metric, rows, _ROWS)  # type: ignore[arg-type]
        made.add(slots, rows)
        return made

    def test_the_nearest_rows_are_among_the_candidates(
        self, codes: Codes, rows: NDArray[np.float32], slots: NDArray[np.int64]
    ) -> None:
        """With a fifth of the rows as candidates, nine of ten right ones are among them."""
        queries = _clustered(50, seed=2)
        found = codes.search(queries, _ROWS // 5, codes.most_probes, None)
        assert found.shape == (50, _ROWS // 5)
        assert found.dtype == np.int64
        right = slots[np.argsort(-(queries @ rows.T), axis=1)[:, :_K]]
        shares = [np.isin(one, among).mean() for one, among in zip(right, found, strict=True)]
        assert np.mean(shares) >= _LEAST_RECALL

    def test_only_slots_that_were_added_are_found_and_each_once(
        self, codes: Codes, slots: NDArray[np.int64]
    ) -> None:
        """Row numbers are the caller's, whatever the library numbers by."""
        for found in codes.search(_clustered(5, seed=3), 100, codes.most_probes, None):
            known = found[found >= 0]
            assert np.isin(known, slots).all()
            assert len(set(known.tolist())) == len(known)

    def test_more_candidates_than_rows_end_with_minus_one(
        self, engine: Engine, spec: CompressionSpec, metric: str, rows: NDArray[np.float32]
    ) -> None:
        """Where there are no more rows, there is no slot."""
        few = engine.train(spec, metric, rows, 7)  # type: ignore[arg-type]
        few.add(np.arange(7, dtype=np.int64), rows[:7])
        found = few.search(rows[:1], 20, few.most_probes, None)[0]
        assert sorted(found[:7].tolist()) == list(range(7))
        assert (found[7:] == -1).all()

    def test_more_probes_read_more(self, codes: Codes) -> None:
        """Efforts are set by what they cost."""
        read = [codes.bytes_read(probes) for probes in range(1, min(codes.most_probes, 20) + 1)]
        assert read == sorted(read)
        assert read[0] > 0

    def test_a_bitmap_is_kept_to_and_loses_nothing(
        self, codes: Codes, rows: NDArray[np.float32], slots: NDArray[np.int64]
    ) -> None:
        """Only allowed slots are found, as many as there are."""
        allowed = slots[::40]
        bits = np.zeros(int(slots[-1]) + 1, dtype=bool)
        bits[allowed] = True
        bitmap = np.packbits(bits, bitorder="little")
        found = codes.search(rows[:5], len(allowed), codes.most_probes, bitmap)
        for one in found:
            assert set(one.tolist()) == set(allowed.tolist())

    def test_codes_come_back_from_their_bytes(
        self, engine: Engine, spec: CompressionSpec, codes: Codes
    ) -> None:
        """What is stored answers as before, and takes in more rows."""
        stored = bytearray()
        codes.write(stored.extend)
        again = engine.load(spec, _DIM, np.frombuffer(stored, dtype=np.uint8))
        queries = _clustered(5, seed=4)
        for probes in (1, codes.most_probes):
            np.testing.assert_array_equal(
                again.search(queries, 20, probes, None), codes.search(queries, 20, probes, None)
            )
        assert again.rows == codes.rows
        assert again.bytes_used == codes.bytes_used
        new = np.array([10**9], dtype=np.int64)
        again.add(new, queries[:1])
        assert new[0] in again.search(queries[:1], 50, again.most_probes, None)[0]

    def test_rows_are_counted_and_take_bytes(self, codes: Codes) -> None:
        """What is in memory is told."""
        before = codes.bytes_used
        assert codes.rows == _ROWS
        codes.add(np.array([10**6], dtype=np.int64), _clustered(1, seed=5))
        assert codes.rows == _ROWS + 1
        assert codes.bytes_used > before > _ROWS

    def test_a_query_is_answered_alike_alone_and_among_others(self, codes: Codes) -> None:
        """A batch is nothing but its queries."""
        queries = _clustered(9, seed=6)
        many = codes.search(queries, 30, codes.most_probes, None)
        for at in range(len(queries)):
            alone = codes.search(queries[at : at + 1], 30, codes.most_probes, None)[0]
            assert len(np.intersect1d(alone, many[at])) > len(alone) - _K  # equal codes may differ


def _clustered(rows: int, *, seed: int) -> NDArray[np.float32]:
    centres = np.random.default_rng(0).standard_normal((40, _DIM))
    draw = np.random.default_rng(seed)
    made = centres[draw.integers(40, size=rows)] + 0.7 * draw.standard_normal((rows, _DIM))
    unit: NDArray[np.float32] = made / np.linalg.norm(made, axis=1, keepdims=True)
    return unit.astype(np.float32)
