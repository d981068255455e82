"""What a search returns, against exact search in numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ragaccel import CompressionSpec, VectorCollection
from ragaccel.cli.demo.corpus import load_xquad, stdlib_passages
from ragaccel.cli.demo.models import load_model
from ragaccel.vectors import And, Field, Ids, Not
from tests.vectors.data import METRICS, clustered, exact_scores, names, nearest, places, recall

XQUAD = Path(__file__).parents[2] / "examples" / "data" / "xquad_en"
MANY = 50_000


def filled(rows, metric="cosine", **options):
    """Open a collection in memory whose ids tell the places of its rows."""
    collection = VectorCollection.open(metric=metric, **options)
    collection.upsert(names(len(rows)), rows)
    return collection


# -- scores ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("length", [1e-3, 1.0, 1e3])
def test_scores_equal_exact_numpy(metric, length):
    """Every score is the metric's own value, whatever the vectors' lengths."""
    rows = clustered(300, seed=1) * np.float32(length)
    queries = clustered(5, seed=2) * np.float32(length)

    found = filled(rows, metric).search(queries, k=300)

    for hits, scores in zip(found, exact_scores(metric, queries, rows), strict=True):
        near_zero = 1e-6 * np.abs(scores).max()
        np.testing.assert_allclose(
            [hit.score for hit in hits], scores[places(hits)], rtol=1e-5, atol=near_zero
        )
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("compression", ["int8", "pq"])
def test_scores_of_compressed_rows_are_exact(metric, compression):
    """Codes only choose candidates: the scores come from the raw vectors."""
    rows, queries = clustered(1500, seed=1), clustered(5, seed=2)
    collection = filled(rows, metric, compression=compression)
    assert collection.stats().compression.codec == compression

    found = collection.search(queries, k=10)

    for hits, scores in zip(found, exact_scores(metric, queries, rows), strict=True):
        np.testing.assert_allclose([hit.score for hit in hits], scores[places(hits)], rtol=1e-5)


@pytest.mark.parametrize("metric", METRICS)
def test_zero_vectors(metric):
    """A zero vector can be stored and asked for: it is like nothing, and nothing breaks."""
    rows = np.array([[0, 0, 0], [1, 0, 0], [0, 2, 0]], dtype=np.float32)
    collection = filled(rows, metric)
    for query in ([0, 0, 0], [0, 1, 0]):
        (hits,) = collection.search(query, k=3)

        scores = exact_scores(metric, np.array([query]), rows)[0]
        assert [hit.score for hit in hits] == pytest.approx(scores[places(hits)])
        assert places(hits) == nearest(metric, [query], rows, 3)[0].tolist()


def test_distances_between_near_rows_far_from_the_origin():
    """Squared distances are right where rows are much nearer to each other than to the origin."""
    generator = np.random.default_rng(1)
    rows = (generator.standard_normal((500, 64)) + 100).astype(np.float32)
    query = (generator.standard_normal(64) + 100).astype(np.float32)

    (hits,) = filled(rows, "l2").search(query, k=500)

    scores = exact_scores("l2", query, rows)[0]
    np.testing.assert_allclose([hit.score for hit in hits], scores[places(hits)], rtol=1e-5)


def test_distances_between_near_duplicates():
    """Near-duplicates of a text are ordered by their real distances, not by rounding errors."""
    generator = np.random.default_rng(1)
    query = clustered(1, seed=1)[0] / np.float32(10)
    noise = generator.standard_normal((50, 64)).astype(np.float32)
    rows = query + np.float32(1e-4) * noise

    (hits,) = filled(rows, "l2").search(query, k=50)

    assert places(hits)[:10] == nearest("l2", query, rows, 10)[0].tolist()


@pytest.mark.parametrize("length", [1e-30, 1e30])
def test_cosine_does_not_depend_on_lengths(length):
    """The cosine of vectors is the same however short or long they are."""
    rows = np.array([[1, 0], [1, 1]], dtype=np.float32) * np.float32(length)

    (hits,) = filled(rows).search(rows[0], k=2)

    assert [(hit.id, hit.score) for hit in hits] == [
        ("row-0", pytest.approx(1.0)),
        ("row-1", pytest.approx(np.sqrt(0.5))),
    ]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dim", [3, 64, 65])
def test_equal_vectors_score_equally_and_in_order(metric, dim):
    """Rows with one and the same vector have one score and come in the order of writing."""
    generator = np.random.default_rng(dim)
    unlike = generator.standard_normal((5, dim)).astype(np.float32)
    for rows in (7, 33, 513):
        which = generator.integers(0, 5, rows)
        collection = filled(unlike[which], metric)
        for queries in (1, 2, 5):
            for hits in collection.search(generator.standard_normal((queries, dim)), k=rows):
                for one in range(5):
                    group = [hit for hit in hits if which[places([hit])[0]] == one]
                    assert len({hit.score for hit in group}) <= 1
                    assert places(group) == sorted(places(group))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("length", [1.0, 1e3])
def test_fewer_results_are_the_first_of_more(metric, length):
    """A search for fewer rows gives the beginning of a search for more, ties included."""
    generator = np.random.default_rng(1)
    unlike = generator.standard_normal((20, 64)).astype(np.float32) * np.float32(length)
    collection = filled(unlike[generator.integers(0, 20, 400)], metric)
    queries = generator.standard_normal((5, 64)) * length
    everything = collection.search(queries, k=400)

    for k in (1, 7, 100, 200, 399):
        assert collection.search(queries, k=k) == [hits[:k] for hits in everything]


# -- shapes and options ----------------------------------------------------------------------------


def test_more_rows_asked_than_there_are():
    """`k` may be larger than the collection: all rows come back."""
    rows = clustered(20, seed=1)
    with filled(rows) as collection:
        assert sorted(places(collection.search(rows[0], k=1000)[0])) == list(range(20))

    rows = clustered(1500, seed=1)
    with filled(rows, compression="pq") as collection:
        assert sorted(places(collection.search(rows[0], k=2000)[0])) == list(range(1500))


@pytest.mark.parametrize("metric", ["cosine", "ip"])
@pytest.mark.parametrize("where", [None, Field("even", "eq", True)], ids=["all", "filtered"])
def test_a_query_of_zeros_finds_rows(metric, where):
    """As many as of any query, though no code is nearer to it than another one."""
    rows = clustered(4_000, seed=1)
    with VectorCollection.open(metric=metric, compression="pq") as collection:
        even = [{"even": at % 2 == 0} for at in range(len(rows))]
        collection.upsert(names(len(rows)), rows, metadata=even)
        one, zeros = collection.search([rows[0], np.zeros(64)], k=10, where=where)
        assert len(one) == len(zeros) == 10
        assert zeros == collection.search(np.zeros(64), k=10, where=where, exact=True)[0]


def test_a_graph_gives_rows_that_no_way_leads_to():
    """All rows come back, where so many are asked for."""
    lengths = np.geomspace(1, 1e3, 3_000, dtype=np.float32)[:, None]
    spec = CompressionSpec("int8", structure="hnsw")
    with filled(clustered(3_000, seed=1) * lengths, "ip", compression=spec) as collection:
        (found,) = collection.search(clustered(1, seed=2), k=3_000)
        assert sorted(places(found)) == list(range(3_000))


@pytest.mark.parametrize("compression", ["float32", "pq"])
def test_several_queries_in_one_call(compression):
    """Queries asked together are answered as if they were asked one by one."""
    rows, queries = clustered(1500, seed=1), clustered(20, seed=2)
    collection = filled(rows, compression=compression)

    together = collection.search(queries, k=7)

    assert len(together) == 20
    for query, hits in zip(queries, together, strict=True):
        (alone,) = collection.search(query, k=7)
        assert places(hits) == places(alone)
        assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in alone])
    assert collection.search(np.zeros((0, 64)), k=7) == []


@pytest.mark.parametrize("metric", METRICS)
def test_exact_search_of_compressed_rows(metric):
    """`exact=True` finds what numpy finds, though the codes alone would not."""
    rows, queries = clustered(2000, seed=1), clustered(20, seed=2)
    collection = filled(rows, metric, compression=CompressionSpec("pq", oversample=1))
    truth = nearest(metric, queries, rows, 10)

    assert recall([places(hits) for hits in collection.search(queries)], truth) < 0.9
    found = [places(hits) for hits in collection.search(queries, exact=True)]
    assert found == truth.tolist()


@pytest.mark.parametrize("compression", ["float32", "int8", "pq"])
def test_raw_vectors_are_what_was_put(tmp_path, compression):
    """`vectors=True` gives back every bit, from the buffer, the slab and after a reopening."""
    rows = clustered(1600, seed=1) * np.float32(3)
    with VectorCollection.open(tmp_path, compression=compression) as collection:
        collection.upsert(names(1500), rows[:1500])
        collection.upsert(names(1600)[1500:], rows[1500:])
        found = collection.search(rows[::100], k=20, vectors=True)
        found.append(collection.get(names(1600), vectors=True))
        assert all(hit.vector is None for hit in collection.search(rows[0])[0])
    with VectorCollection.open(tmp_path, compression=compression) as collection:
        found += collection.search(rows[::100], k=20, vectors=True)

    assert len(found) == 33
    for hits in found:
        assert np.stack([hit.vector for hit in hits]).tobytes() == rows[places(hits)].tobytes()


def test_an_empty_collection():
    """A collection without rows answers every question with nothing."""
    for collection in (
        VectorCollection.open(),
        VectorCollection.open(dim=3),
        VectorCollection.open(compression="pq"),
    ):
        assert collection.search([1, 2, 3]) == [[]]
        assert collection.search([[1, 2, 3], [4, 5, 6]], exact=True) == [[], []]
        assert collection.search([1, 2, 3], where=Field("a", "eq", 1), vectors=True) == [[]]
        assert collection.get(["a"]) == collection.select() == list(collection.scan()) == []
        assert len(collection) == collection.count(Not(Ids(("a",)))) == 0
        assert collection.delete(["a"]) == collection.delete_where(Ids(("a",))) == 0
        assert collection.measure_recall() == 1.0
        assert (collection.stats().rows, collection.stats().bytes_per_vector) == (0, 0.0)
        collection.flush()
        collection.compact()
        collection.clear()


@pytest.mark.parametrize("dim", [1, 3, 10, 65])
@pytest.mark.parametrize("compression", ["float32", "float16", "int8", "pq"])
def test_dimensions_that_no_codec_divides(dim, compression):
    """Any dimension can be compressed, also one that is no multiple of four."""
    generator = np.random.default_rng(dim)
    rows = generator.standard_normal((1200, dim)).astype(np.float32)
    queries = generator.standard_normal((20, dim)).astype(np.float32)
    collection = filled(rows, "l2", compression=compression)
    assert collection.stats().compression.codec == compression

    found = collection.search(queries, k=10)

    truth = nearest("l2", queries, rows, 10)
    assert recall([places(hits) for hits in found], truth) >= 0.95


def test_rows_that_are_all_the_same():
    """A codec can be trained on equal rows, which are then found in the order of writing."""
    collection = filled(np.ones((1500, 8), np.float32), compression="pq")

    (hits,) = collection.search(np.ones(8), k=5)

    assert [hit.score for hit in hits] == pytest.approx([1.0] * 5)
    assert len(set(places(hits))) == 5


# -- filters ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many():
    """Many compressed rows, numbered from 0 to 999 again and again."""
    rows = clustered(MANY, seed=1)
    with VectorCollection.open(compression="pq") as collection:
        collection.upsert(names(MANY), rows, metadata=[{"n": at % 1000} for at in range(MANY)])
        collection.flush()
        yield collection, rows


@pytest.mark.parametrize("percent", [0.1, 1, 10, 50])
def test_filters_apply_before_the_search(many, percent):
    """However few rows pass a filter, `k` come back and they are the nearest of those."""
    collection, rows = many
    allowed = np.flatnonzero(np.arange(MANY) % 1000 < percent * 10)
    where, queries = Field("n", "lt", percent * 10), clustered(50, seed=2)

    found = collection.search(queries, k=10, where=where)

    assert collection.count(where) == len(allowed) == MANY * percent / 100
    assert all(len(hits) == 10 for hits in found)
    assert all(hit.metadata["n"] < percent * 10 for hits in found for hit in hits)
    truth = allowed[nearest("cosine", queries, rows[allowed], 10)]
    assert recall([places(hits) for hits in found], truth) >= 0.99


@pytest.mark.parametrize("k", [49, 50, 51, 200])
def test_a_filter_with_about_k_rows(many, k):
    """All rows that pass a filter come back if no more than `k` do."""
    collection, _ = many

    (hits,) = collection.search(clustered(1, seed=3), k=k, where=Field("n", "eq", 7))

    assert len(hits) == min(k, 50)
    assert {hit.metadata["n"] for hit in hits} == {7}


def test_a_filter_that_passes_nothing(many):
    """A filter that no row passes gives no hits."""
    collection, _ = many
    query = clustered(1, seed=3)

    assert collection.search(query, where=Field("n", "gt", 999)) == [[]]
    assert collection.search(query, where=Ids(())) == [[]]
    contradiction = And((Field("n", "lt", 600), Field("n", "gt", 600)))
    assert collection.search(query, where=contradiction) == [[]]


# -- recall ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Real questions, and the vectors of their passages among the standard library's prose."""
    model = load_model("wordllama")
    passages, questions = load_xquad(XQUAD)
    rows = model.embed([one.text for one in (*passages, *stdlib_passages(5_000))])
    with VectorCollection.open(tmp_path_factory.mktemp("real")) as collection:
        collection.upsert(names(len(rows)), rows)
        collection.flush()
        yield collection, rows, model.embed([one.text for one in questions])


def test_recall_on_real_questions(real):
    """Real questions find what numpy finds, in an eighth of the memory."""
    collection, rows, questions = real
    assert len(collection) >= 5_000
    assert len(questions) > 1_000

    found = collection.search(questions, k=10)

    truth = nearest("cosine", questions, rows, 10)
    assert recall([places(hits) for hits in found], truth) >= 0.98
    assert collection.stats().bytes_per_vector <= rows[0].nbytes / 8


def test_measured_recall_is_the_real_one(real):
    """`measure_recall` of the questions, and of stand-ins for them, tells what numpy tells."""
    collection, rows, questions = real
    found = [places(hits) for hits in collection.search(questions, k=10)]
    real_recall = recall(found, nearest("cosine", questions, rows, 10))

    assert collection.measure_recall(questions) == pytest.approx(real_recall, abs=0.005)
    assert collection.measure_recall() == pytest.approx(real_recall, abs=0.02)
    assert collection.stats().recall == pytest.approx(real_recall, abs=0.02)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("goal", [0.9, 0.99])
def test_the_asked_recall_is_kept(metric, goal):
    """Rescoring is set so that the asked recall is reached, for every metric."""
    rows, queries = clustered(6000, seed=1), clustered(200, seed=2)
    collection = filled(rows, metric, recall=goal)
    assert collection.stats().compression.codec == "pq"

    found = collection.search(queries, k=10)

    truth = nearest(metric, queries, rows, 10)
    assert recall([places(hits) for hits in found], truth) >= goal - 0.02


@pytest.mark.parametrize(
    "before",
    [{"recall": 0.5}, {"compression": CompressionSpec("pq", oversample=1)}],
    ids=["lower recall", "own oversampling"],
)
def test_the_asked_recall_is_kept_after_reopening(tmp_path, before):
    """A reopened collection keeps the recall it is asked for now, not that of an earlier time."""
    rows, queries = clustered(6000, seed=1), clustered(200, seed=2)
    with VectorCollection.open(tmp_path, **before) as collection:
        collection.upsert(names(len(rows)), rows)

    with VectorCollection.open(tmp_path, recall=0.99) as collection:
        found = collection.search(queries, k=10)

    truth = nearest("cosine", queries, rows, 10)
    assert recall([places(hits) for hits in found], truth) >= 0.97


def test_compression_begins_by_itself_and_adapts():
    """Rows are searched exactly while they are few, and compressed once there are 4,096."""
    rows = clustered(6000, seed=1)
    collection = VectorCollection.open()
    collection.upsert(names(4095), rows[:4095])
    assert collection.stats().compression.codec == "float32"

    collection.upsert(names(6000)[4095:], rows[4095:])

    assert collection.stats().compression.codec == "pq"
    assert collection.count() == 6000
    collection.delete(names(5000))
    collection.compact()
    assert collection.stats().compression.codec == "float32"
    assert sorted(places(collection.search(rows[0], k=6000)[0])) == list(range(5000, 6000))
