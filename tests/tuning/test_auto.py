"""The tuner on real collections, caches and framework objects."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from ragaccel import (
    AutoTuner,
    CompressionSpec,
    Goal,
    Knob,
    MicroBatcher,
    MultiLevelCache,
    VectorCollection,
)
from ragaccel.cache import MemoryLevel
from ragaccel.errors import ConfigurationError
from ragaccel.tuning import Asked, Traffic, tunables

DIM, ROWS = 48, 4500


def vectors(count, seed):
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(0).standard_normal((60, DIM))
    return (
        centres[random.integers(60, size=count)] + 0.6 * random.standard_normal((count, DIM))
    ).astype("f4")


@pytest.fixture
def collection():
    with VectorCollection.open(dim=DIM, compression=CompressionSpec("int8", oversample=48)) as made:
        made.upsert([str(at) for at in range(ROWS)], vectors(ROWS, 1))
        yield made


def values(components):
    return {knob.name: knob.get() for knob in tunables(components)}


class Planted:
    """A pipeline whose value decides how long it takes, by counting instead of waiting."""

    def __init__(self, value=1):
        self.value = value
        self.seen = []

    def __call__(self, query):
        self.seen.append(self.value)
        sum(range(10_000 * self.value))
        return [query]


def knob_of(pipeline, values=(1, 4)):
    return Knob(
        "work", values, lambda: pipeline.value, lambda value: setattr(pipeline, "value", value)
    )


def tuner(pipeline, *goals, **options):
    return AutoTuner(
        [pipeline], goals or [Goal.minimize("latency_p50")], knobs=[knob_of(pipeline)],
        progress=False, **options,
    )  # fmt: skip


QUERIES = [f"query {at}" for at in range(60)]


def test_better_settings_are_applied():
    """A planted value that takes four times as long is turned back, and callbacks hear of it."""
    heard = []

    async def applied(report):
        heard.append(report)

    pipeline = Planted(4)
    report = tuner(pipeline, on_apply=applied).run(QUERIES)
    assert pipeline.value == 1
    assert report.is_applied
    assert report.gain.low > 0
    assert heard == [report]
    assert report.to_toml() == '[settings]\n"work" = 1\n'


@pytest.mark.parametrize(("share", "monotone"), [(1, False), (1, True), (4, False)])
def test_settings_that_fail_are_not_taken_for_fast_ones(share, monotone):
    """All queries or every fourth fail with the least value; the next one is what is best."""

    class Failing(Planted):
        def __call__(self, query):
            found = super().__call__(query)
            if not self.value and int(query.split()[1]) % share == 0:
                raise ConnectionError("down")
            return found

    pipeline = Failing(8)
    knob = replace(knob_of(pipeline, (0, 2, 8)), monotone=monotone)
    goals = [Goal.minimize("latency_p50")]
    AutoTuner([pipeline], goals, knobs=[knob], progress=False).run(QUERIES)
    assert pipeline.value == 2


def test_what_is_best_stays():
    """Settings that are the best already are kept, and that is told."""
    heard = []
    pipeline = Planted(1)
    report = tuner(pipeline, on_rollback=heard.append).run(QUERIES)
    assert pipeline.value == 1
    assert not report.is_applied
    assert heard == [report]


def test_an_impossible_goal_is_named_with_how_close_it_came():
    """No setting has a quality of 2; the report says which goal, and that .9 was reached."""
    pipeline = Planted(4)
    report = tuner(
        pipeline, Goal.at_least("quality", 2.0), metrics={"quality": lambda *_: 0.9}
    ).run(QUERIES)
    assert pipeline.value == 4
    assert not report.is_applied
    assert "quality at least 2" in report.reason
    assert "0.9" in report.reason


def test_a_bound_is_never_traded_for_speed():
    """The faster setting with a lower quality is not taken."""
    pipeline = Planted(4)
    report = tuner(
        pipeline,
        Goal.minimize("latency_p50"),
        Goal.at_least("quality", 0.9),
        metrics={"quality": lambda *_: 0.95 if pipeline.value == 4 else 0.5},
    ).run(QUERIES)
    assert pipeline.value == 4
    assert not report.is_applied


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_what_was_is_put_back_after_an_exception(error):
    """Ctrl-C, or a metric that raises, in the middle leaves the knobs as they were."""
    pipeline = Planted(4)

    def broken(*_):
        if 1 in pipeline.seen:
            raise error
        return 1.0

    with pytest.raises(error):
        tuner(pipeline, Goal.at_least("quality", 0.5), metrics={"quality": broken}).run(QUERIES)
    assert 1 in pipeline.seen
    assert pipeline.value == 4


def test_improvements_are_told():
    """Each is better than all before, and keeps the bounds; measurements are told of all."""
    trials, better = [], []
    pipeline = Planted(4)
    goals = [Goal.minimize("price"), Goal.at_least("quality", 0.9)]
    metrics = {
        "price": lambda *_: float(10 - pipeline.value),
        "quality": lambda *_: 0.5 if pipeline.value == 4 else 1.0,
    }
    knob = knob_of(pipeline, (1, 2, 3, 4))
    report = AutoTuner(
        [pipeline], goals, knobs=[knob], metrics=metrics, progress=False,
        on_trial=trials.append, on_improvement=better.append,
    ).run(QUERIES)  # fmt: skip
    prices = [row.metrics["price"].value for row in better]
    assert prices == sorted(set(prices), reverse=True)
    assert prices[-1] == 7.0
    assert {row.settings["work"] for row in trials} == {1, 2, 3, 4}
    assert [row.settings["work"] for row in report.rows] == [3, 2, 1, 4]
    assert pipeline.value == 3


def test_no_more_is_asked_than_allowed():
    """The budget of the search is the user's."""
    assert 0 < tuner(Planted(4), budget=150).run(QUERIES).spent <= 150


def test_a_value_that_no_knob_names_is_one_to_keep():
    """What is set now is tried beside the others, and told as what was."""
    pipeline = Planted(2)
    report = tuner(pipeline).run(QUERIES)
    assert report.was == {"work": 2}
    assert {row.settings["work"] for row in report.rows} == {1, 2, 4}


def test_a_study_is_of_one_traffic_and_pace(tmp_path):
    """The same one is gone on with; of other queries, or another concurrency, nothing is known."""
    file = tmp_path / "study.log"
    quality = Goal.at_least("quality", 0.5)

    def spent(queries, **options):
        goals = [Goal.minimize("quality"), quality]
        metrics = {"quality": lambda *_: 1.0}
        return tuner(
            Planted(4), *goals, metrics=metrics, storage=file, budget=150, **options
        ).run(queries).spent  # fmt: skip

    first = spent(QUERIES)
    assert spent(QUERIES) < first
    assert spent([f"other {query}" for query in QUERIES]) == first
    assert spent(QUERIES, concurrency=2) == first


def test_batches_are_not_tried_one_query_at_a_time():
    """The report says so."""
    batcher, pipeline = MicroBatcher(max_size=8), Planted(1)
    report = AutoTuner(
        [batcher, pipeline], knobs=[knob_of(pipeline)], ask=pipeline, progress=False
    ).run(QUERIES)
    assert "batch.max_size" not in report.settings
    assert any(note.startswith("batch.max_size: not tried") for note in report.notes)


def test_a_cache_does_not_answer_while_it_is_tuned():
    """Each query is asked anew, and nothing is kept of it; afterwards the cache is there again."""
    from langchain_core.embeddings import DeterministicFakeEmbedding
    from langchain_core.vectorstores import InMemoryVectorStore

    from ragaccel import accelerate

    store = InMemoryVectorStore(DeterministicFakeEmbedding(size=8))
    store.add_texts(["east", "west"])
    level = MemoryLevel(2**20)
    retriever = accelerate(store.as_retriever(), cache=MultiLevelCache([level]))
    unused = Planted(1)
    AutoTuner(retriever, knobs=[knob_of(unused)], progress=False, budget=150).run(QUERIES[:40])
    assert len(level) == 0
    retriever.invoke("which way?")
    assert len(level) > 0


def test_a_callback_that_raises_touches_nothing(caplog):
    """The study goes on, and the fault is logged."""

    def broken(_):
        raise ValueError("mine")

    pipeline = Planted(4)
    report = tuner(pipeline, on_trial=broken).run(QUERIES)
    assert report.is_applied
    assert "broken failed: ValueError" in caplog.text


def test_a_collection_is_tuned_to_its_goal(collection, tmp_path):
    """Needless candidates go, the recall stays, and the report is one page."""
    before = values(collection)
    goals = [Goal.minimize("latency_mean"), Goal.at_least("recall@10", 0.9)]
    report = AutoTuner(collection, goals, progress=False).run(vectors(200, 2))
    page = report.to_html(tmp_path / "report.html")
    assert before == {"search.oversample": 48}
    assert values(collection) == report.settings
    assert all(row.metrics["recall@10"].value > 0.9 for row in report.rows if row.is_kept)
    assert report.pareto
    assert (tmp_path / "report.html").read_text() == page
    assert not re.search(r"(src|href)=", page)


def test_the_report_escapes_names(tmp_path):
    """A knob's name is text, not markup."""
    pipeline = Planted(4)
    knob = Knob(
        "<b>", (1, 4), lambda: pipeline.value, lambda value: setattr(pipeline, "value", value)
    )
    page = AutoTuner([pipeline], knobs=[knob], progress=False).run(QUERIES).to_html()
    assert "<b>" not in page
    assert "&lt;b&gt;" in page


def test_knobs_of_a_collection_take_effect(collection):
    """Fewer candidates are rescored after the knob was turned."""
    knob = tunables(collection)[0]
    knob.set(2)
    assert knob.get() == 2
    assert collection._store.index.candidates(10) == 20


def test_probes_are_a_knob_of_inverted_lists(tmp_path):
    """Searching fewer lists is a knob where there are lists, and holds when it is opened again."""
    spec = CompressionSpec("int8", "ivf")
    with VectorCollection.open(tmp_path, dim=DIM, compression=spec) as made:
        made.upsert([str(at) for at in range(ROWS)], vectors(ROWS, 1))
        knobs = {knob.name: knob for knob in made.tunables()}
        knobs["search.probes"].set(1)
        few = made.measure_recall()
        knobs["search.probes"].set(knobs["search.probes"].values[-1])
        assert made.measure_recall() > few
        knobs["search.probes"].set(2)
    with VectorCollection.open(tmp_path, compression=spec) as made:
        assert values(made)["search.probes"] == 2


def test_knobs_of_a_cache_take_effect():
    """A smaller level lets entries go, and a new lifetime holds for what comes next."""
    level = MemoryLevel(2**26)
    cache = MultiLevelCache([level], ttl=3600)
    knobs = {knob.name: knob for knob in tunables(cache)}
    for at in range(3000):
        cache.set(at, "x" * 1000)
    knobs["cache.memory_bytes"].set(2**20)
    assert level.bytes_used <= 2**20
    knobs["cache.ttl"].set(60.0)
    assert cache.ttl == 60.0


def test_knobs_of_a_batcher_take_effect_on_those_made_over_it():
    """A batcher that an accelerated component made over the user's follows it."""
    batcher = MicroBatcher(max_size=8)
    over = batcher.over(lambda items: items, None, lambda item: item)
    knobs = {knob.name: knob for knob in tunables(batcher)}
    knobs["batch.max_size"].set(2)
    assert knobs["batch.max_size"].get() == 2
    assert over._limits.max_size == 2


def test_the_size_of_a_cache_is_found_without_a_trial():
    """A level too small for the traffic grows to the least size that hits the most."""
    level = MemoryLevel(2**20)
    cache = MultiLevelCache([level])
    for at in range(100):
        cache.set(at, "x" * 40_000)
    pipeline = Planted(1)
    report = AutoTuner(
        [cache, pipeline], knobs=[knob_of(pipeline)], progress=False, ask=pipeline
    ).run(Traffic.of(QUERIES * 3))
    assert level.max_bytes == report.settings["cache.memory_bytes"] == 4 * 2**20
    assert any("stack distances" in note for note in report.notes)


def test_parts_of_an_accelerated_retriever_are_found(collection):
    """The cache, and the collection in the store, of a LlamaIndex retriever are tunable."""
    from llama_index.core import MockEmbedding, VectorStoreIndex
    from llama_index.core.schema import TextNode

    from ragaccel import accelerate
    from ragaccel.llamaindex import CompressedVectorStore

    store = CompressedVectorStore.open(compression=CompressionSpec("int8"))
    random = np.random.default_rng(0)
    store.add(
        [TextNode(text="x", id_=str(at), embedding=random.random(8).tolist()) for at in range(1100)]
    )
    index = VectorStoreIndex.from_vector_store(store, embed_model=MockEmbedding(8))
    cache = MultiLevelCache.open()
    retriever = accelerate(index.as_retriever(), cache=cache)
    assert {"cache.memory_bytes", "cache.ttl", "search.oversample"} <= set(values(retriever))


def test_too_few_queries_and_no_knobs_are_refused():
    """Nothing can be found from ten queries, or without a knob."""
    with pytest.raises(ConfigurationError, match="at least 40 queries"):
        tuner(Planted()).run(QUERIES[:10])
    with pytest.raises(ConfigurationError, match="no knobs"):
        AutoTuner([Planted()], progress=False).run(QUERIES)
    with pytest.raises(ConfigurationError, match="nobody measures 'quality'"):
        tuner(Planted(), Goal.at_least("quality", 1.0)).run(QUERIES)
    with pytest.raises(ConfigurationError, match="recorded without its queries"):
        tuner(Planted()).run(Traffic(Asked(float(at), None, b"key") for at in range(60)))
    twice = [knob_of(Planted()), knob_of(Planted())]
    with pytest.raises(ConfigurationError, match="the same name"):
        AutoTuner([Planted()], knobs=twice, progress=False).run(QUERIES)


def test_a_report_shows_values_as_they_are():
    """Such as prompts with brackets, which are not read as rich's markup."""
    prompts = {"[/INST] [red]answer:": 1, "[bold]A:": 4}
    chosen = ["[bold]A:"]
    work = Planted()

    def ask(query):
        work.value = prompts[chosen[0]]
        return work(query)

    knob = Knob("prompt", list(prompts), lambda: chosen[0], lambda new: chosen.__setitem__(0, new))
    goals = [Goal.minimize("latency_p50")]
    report = AutoTuner([], goals=goals, knobs=[knob], ask=ask).run([str(at) for at in range(60)])
    screen = Console(file=io.StringIO(), width=200)
    screen.print(report)
    for prompt in prompts:
        assert prompt in screen.file.getvalue()
