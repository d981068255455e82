"""The guard on real retrievers of both frameworks, with a bad setting planted."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import InMemoryVectorStore
from llama_index.core import VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import TextNode

from ragaccel import AutoTuner, Goal, MultiLevelCache, accelerate, telemetry
from ragaccel import langchain as for_langchain
from ragaccel.errors import ConfigurationError
from ragaccel.knobs import Knob
from ragaccel.telemetry.stage import recording
from ragaccel.tuning.canary import Terms
from ragaccel.tuning.guard import Guard
from ragaccel.tuning.recorder import TrafficRecorder
from ragaccel.tuning.traffic import Traffic

TERMS = Terms(shares=(0.2,))
SLOW = 0.1  # far more than a request waits for a processor that others use
TEXTS = [f"passage {one}" for one in range(20)]


def vector(text):
    return np.random.default_rng(sum(map(ord, text))).standard_normal(16).tolist()


class Words(Embeddings):
    """Embeds at the speed that it is set to."""

    delay = 0.001

    def embed_documents(self, texts):
        return [vector(one) for one in texts]

    def embed_query(self, text):
        time.sleep(self.delay)
        return vector(text)


class Nodes(BaseEmbedding):
    delay: float = 0.001

    def _get_text_embedding(self, text):
        return vector(text)

    def _get_query_embedding(self, query):
        time.sleep(self.delay)
        return vector(query)

    async def _aget_query_embedding(self, query):
        await asyncio.sleep(self.delay)
        return vector(query)


@pytest.fixture
def cache():
    with MultiLevelCache.open() as opened:
        yield opened


@pytest.fixture
def langchain(cache):
    model = Words()
    store = InMemoryVectorStore(model)
    store.add_texts(TEXTS, ids=TEXTS)
    retriever = accelerate(store.as_retriever(search_kwargs={"k": 3}), cache=cache)
    return model, retriever, retriever.invoke, retriever.ainvoke


@pytest.fixture
def llamaindex(cache):
    model = Nodes()
    index = VectorStoreIndex([TextNode(text=one, id_=one) for one in TEXTS], embed_model=model)
    retriever = accelerate(index.as_retriever(similarity_top_k=3), cache=cache)
    return model, retriever, retriever.retrieve, retriever.aretrieve


@pytest.fixture(params=["langchain", "llamaindex"])
def pipeline(request):
    return request.getfixturevalue(request.param)


def planted(model):
    """A knob whose second value is many times what an embedding takes."""
    return Knob("delay", [0.001, SLOW], lambda: model.delay, lambda to: setattr(model, "delay", to))


def test_a_bad_setting_is_taken_back(pipeline, tmp_path):
    """By calls that change nothing else: the answers are those of the plain retriever."""
    model, retriever, retrieve, _ = pipeline
    expected = retrieve("question 0")
    guard = Guard.attach(retriever, [(planted(model), SLOW)], terms=TERMS, journal=tmp_path / "log")
    for at in range(3000):
        if guard.trial.state != "trying":
            break
        retrieve(f"question {at}")
    assert guard.trial.state == "rolled back"
    assert guard.trial.canaries <= 40
    assert model.delay == 0.001
    assert not recording()
    assert retrieve("question 0") == expected


async def test_a_bad_setting_is_taken_back_among_tasks(pipeline):
    """Four requests at a time, of which one is judged."""
    model, retriever, _, aretrieve = pipeline
    guard = Guard.attach(retriever, [(planted(model), SLOW)], terms=TERMS)
    asked = 0
    while guard.trial.state == "trying" and asked < 6000:
        await asyncio.gather(*(aretrieve(f"question {asked + one}") for one in range(4)))
        asked += 4
    assert guard.trial.state == "rolled back"
    assert model.delay == 0.001


def test_a_good_setting_is_applied(pipeline):
    """It speeds embeddings up, and nobody's request fails for it."""
    model, retriever, retrieve, _ = pipeline
    knob = planted(model)
    model.delay = SLOW
    with Guard.attach(retriever, [(knob, 0.001)], terms=Terms(shares=(0.5,))) as guard:
        for at in range(3000):
            if guard.trial.state != "trying":
                break
            retrieve(f"question {at}")
        assert guard.trial.state == "applied"
    assert model.delay == 0.001


def test_recording_and_guarding_go_together(langchain, tmp_path):
    """The recorder hears of each request, whichever setting it has."""
    model, retriever, retrieve, _ = langchain
    with TrafficRecorder.open(tmp_path / "traffic.jsonl") as recorder:
        config = {"callbacks": [for_langchain.TrafficHandler(recorder)]}
        with Guard.attach(retriever, [(planted(model), SLOW)], terms=TERMS) as guard:
            for at in range(150):
                retrieve(f"question {at}", config=config)
    assert guard.trial.controls + guard.trial.canaries <= 150
    assert [one.query for one in Traffic.read(tmp_path / "traffic.jsonl")] == [
        f"question {at}" for at in range(150)
    ]


def test_other_components_are_no_requests(langchain):
    """What is not of the pipeline is neither judged nor given the setting."""
    model, retriever, _, _ = langchain
    with Guard.attach(retriever, [(planted(model), SLOW)], terms=TERMS) as guard:
        with telemetry.stage("retrieve", {"ragaccel.component": "Another"}):
            pass
        with telemetry.stage("embed"):
            pass
        assert guard.trial.controls == 0


def test_settings_of_a_tuner_are_tried_on_live_traffic(pipeline):
    """Goals and callbacks are the tuner's, and a value that breaks a goal is taken back."""
    model, retriever, retrieve, _ = pipeline
    told = []
    tuner = AutoTuner(
        retriever,
        [Goal.at_most("latency_p95", 0.01), Goal.at_least("recall@10", 0.9)],
        knobs=[planted(model)], on_trial=told.append, on_rollback=told.append,
    )  # fmt: skip
    guard = tuner.attach({"delay": 0.02}, terms=TERMS)
    for at in range(3000):
        if guard.trial.state != "trying":
            break
        retrieve(f"question {at}")
    guard.callbacks.wait()
    assert [one.state for one in told] == ["trying", "rolled back"]
    assert told[0].settings == {"delay": 0.02}
    assert model.delay == 0.001
    with pytest.raises(ConfigurationError, match=r"no knob 'other'; there are .*delay"):
        tuner.attach({"other": 1})


def test_knobs_of_components_can_be_tried_too(langchain, cache):
    """What a report says of a cache is tried by its name."""
    _, retriever, retrieve, _ = langchain
    level = cache.levels[0]
    was = level.max_bytes
    tuner = AutoTuner(retriever)
    with tuner.attach({"cache.memory_bytes": 2**20}, terms=Terms(shares=(0.5,))) as guard:
        for at in range(130):
            retrieve(f"question {at % 3}")
        assert guard.trial.was == {"cache.memory_bytes": was}
        assert guard.trial.canaries > 0
    assert level.max_bytes == was
