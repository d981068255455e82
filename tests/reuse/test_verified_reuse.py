"""`VerifiedReuse` around a chat model: what is reused, what never is, and what it learns.

With a bound of a fifth twenty labels are enough, so that a dozen topics teach it.
"""

from __future__ import annotations

import asyncio
import copy
import pickle
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage

from ragaccel import MultiLevelCache, accelerate
from ragaccel.errors import ConfigurationError
from ragaccel.reuse import VerifiedReuse, similar_text
from tests.langchain.embeddings import HashEmbeddings
from tests.reuse.clerk import EMBED, NEW, TOPICS, Clerk, questions, teach


@pytest.fixture
def cache():
    """A cache in memory."""
    with MultiLevelCache.open() as cache:
        yield cache


def reuse(**options) -> VerifiedReuse:
    """Make one that learns from few labels and never audits, unless asked to."""
    return VerifiedReuse(**{"delta": 0.2, "embed": EMBED, "audit": 1e-9, "seed": 1, **options})


@pytest.fixture
def semantic() -> VerifiedReuse:
    return reuse()


@pytest.fixture
def model(cache, semantic) -> Clerk:
    return accelerate(Clerk(), cache=cache, semantic=semantic)


@pytest.fixture
def taught(model) -> Clerk:
    teach(model)
    return model


def hits_of(semantic, ask) -> int:
    """Return how many questions of a new wording are hits."""
    before = semantic.stats().hits
    for topic in TOPICS:
        ask(NEW.format(topic))
    return semantic.stats().hits - before


def test_it_answers_other_wordings_once_it_has_learned_to(taught, semantic):
    """First the model is asked everything; then a question is answered as a similar one was."""
    assert semantic.stats().misses >= len(TOPICS)
    asked = len(taught.asked)
    answers = [taught.invoke(NEW.format(topic)).content for topic in TOPICS]
    assert answers == [f"about {topic.split()[-1]}" for topic in TOPICS]
    assert len(taught.asked) == asked
    assert semantic.stats().hits >= len(TOPICS)


def test_nothing_is_reused_unless_it_is_asked_for(cache):
    """Without `semantic` every new wording is asked of the model."""
    model = accelerate(Clerk(), cache=cache)
    teach(model)
    assert len(model.asked) == len(questions())


def test_the_exact_answer_comes_first(taught, semantic):
    """What was asked word by word is found without a look at similar questions."""
    before, asked = semantic.stats(), len(taught.asked)
    assert taught.invoke(questions()[0]).content == "about shoe"
    assert semantic.stats() == before
    assert len(taught.asked) == asked


def test_a_reused_answer_is_not_kept_as_the_questions_own(taught, cache):
    """A hit is given out and no more: when the similar answer goes, so does what it answered."""
    asked = len(taught.asked)
    taught.invoke(NEW.format(TOPICS[1]))
    assert len(taught.asked) == asked
    cache.invalidate(namespace="default")
    taught.invoke(NEW.format(TOPICS[1]))
    assert len(taught.asked) == asked + 1


OTHERS = {
    "system prompt": lambda ask: lambda q: ask([SystemMessage("Be brief."), HumanMessage(q)]),
    "history": lambda ask: (
        lambda q: ask([HumanMessage("hello"), AIMessage("hello"), HumanMessage(q)])
    ),
    "arguments": lambda ask: lambda q: ask(q, stop=["."]),
    "name of the speaker": lambda ask: lambda q: ask([HumanMessage(q, name="Ada")]),
}


@pytest.mark.parametrize("what", OTHERS)
def test_nothing_is_reused_across_what_else_is_said(taught, semantic, what):
    """Another system prompt, history, speaker or argument is another question."""
    assert not hits_of(semantic, OTHERS[what](taught.invoke))


@pytest.mark.parametrize("what", ["namespace", "model", "temperature"])
def test_nothing_is_reused_across_namespaces_and_models(taught, cache, semantic, what):
    """Tenants and settings of models share no answer, though they share what is learned."""
    names = {"model": "name_of_model", "temperature": "temperature"}
    other = Clerk(**({names[what]: 0.5 if what == "temperature" else "x"} if what in names else {}))
    fast = accelerate(
        other, cache=cache, semantic=semantic, cache_sampled=True,
        namespace="else" if what == "namespace" else None,
    )  # fmt: skip
    assert not hits_of(semantic, fast.invoke)
    assert len(fast.asked) == len(TOPICS)


def test_a_known_threshold_serves_a_new_namespace(taught, cache, semantic):
    """What is learned of all is the prior of a namespace: it has less to learn."""
    other = accelerate(Clerk(), cache=cache, semantic=semantic, namespace="else")
    teach(other)
    assert len(other.asked) < 0.8 * len(taught.asked)


@pytest.mark.parametrize("question", ["do not show me {}", "show me 3 {}", "show me Ada {}"])
def test_a_number_a_negation_or_a_name_more_is_no_hit(taught, question):
    """Near-identical words with another meaning are asked of the model."""
    asked = len(taught.asked)
    taught.invoke(question.format(TOPICS[1]))
    assert len(taught.asked) == asked + 1


def test_a_hit_is_audited_now_and_then(cache):
    """A share of the hits is asked of the model, whose own answer is given."""
    semantic = reuse(audit=0.5)
    model = accelerate(Clerk(), cache=cache, semantic=semantic)
    teach(model)
    hits_of(semantic, model.invoke)
    stats = semantic.stats()
    assert stats.audits > 0
    assert stats.hits > 0
    assert stats.wrong_audits == 0


def test_when_answers_change_it_stops_to_reuse_them(cache):
    """Audits see a drift; the threshold goes up at once and it explores anew."""
    semantic = reuse(audit=0.5)
    model = accelerate(Clerk(), cache=cache, semantic=semantic)
    teach(model)
    assert semantic.threshold() < float("inf")
    model.answer_so("answer {n}")
    for number in range(60):
        for topic in TOPICS[:3]:
            model.invoke(f"word{number} show me {topic}")
        if semantic.threshold() == float("inf"):
            break
    assert semantic.threshold() == float("inf")
    assert semantic.stats().wrong_audits >= 3
    assert not hits_of(semantic, model.invoke)


def failing(*_):
    raise OSError("away")


@pytest.mark.parametrize("part", ["judge", "embed", "split"])
def test_a_part_that_fails_breaks_no_request(cache, part):
    """Every question is answered by the model, the fault is counted, and nothing is reused."""
    semantic = reuse(**{part: failing})
    model = accelerate(Clerk(), cache=cache, semantic=semantic)
    for question in questions():
        assert model.invoke(question).content.startswith("about")
    stats = semantic.stats()
    assert stats.faults > 0
    assert stats.hits == 0
    assert len(model.asked) == len(questions())


def test_a_judge_that_is_never_content_lets_nothing_be_reused(cache):
    """What a judge calls wrong is not given."""
    semantic = reuse(judge=lambda question, kept, answer: False)
    teach(accelerate(Clerk(), cache=cache, semantic=semantic))
    assert semantic.stats().hits == 0


async def ajudge(question, kept, answer):
    """Judge as a model would, over a network."""
    await asyncio.sleep(0)
    return kept == answer


async def aembed(text):
    await asyncio.sleep(0)
    return EMBED.embed_query(text)


@pytest.mark.parametrize("judge", [ajudge, similar_text(EMBED.embed_query), None])
@pytest.mark.parametrize("embed", [EMBED.embed_query, aembed])
async def test_blocking_and_awaited_calls_share_one_memory(cache, judge, embed):
    """Judges and embeddings may block or be awaited, whichever way the model is called."""
    semantic = reuse(embed=embed, **({} if judge is None else {"judge": judge}))
    model = accelerate(Clerk(), cache=cache, semantic=semantic)
    for at, question in enumerate(questions()):
        await model.ainvoke(question) if at % 2 else model.invoke(question)
    asked = len(model.asked)
    assert (await model.ainvoke(NEW.format(TOPICS[1]))).content == "about hat"
    assert model.invoke(NEW.format(TOPICS[6])).content == "about tie"
    assert len(model.asked) == asked
    assert semantic.stats().faults == 0


async def test_learning_in_the_background_comes_to_the_same(cache):
    """A slow judge is not waited for."""
    semantic = reuse(judge=ajudge, background=True)
    model = accelerate(Clerk(), cache=cache, semantic=semantic)
    for question in questions():
        await model.ainvoke(question)
        await asyncio.sleep(0.02)  # the judge has its say
    assert semantic.stats().hits > 0
    assert semantic.stats().right > 0


async def test_a_cancelled_call_leaves_nothing_behind(cache, semantic):
    """Who is cancelled while the model thinks is learned nothing from; the next is served."""
    model = accelerate(Clerk(), cache=cache, semantic=semantic)
    for question in questions()[:24]:
        call = asyncio.create_task(model.ainvoke(question))
        await asyncio.sleep(0)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
    assert semantic.stats().entries == 0
    for question in questions():
        await model.ainvoke(question)
    assert semantic.stats().hits > 0
    assert semantic.stats().faults == 0


def test_threads_share_it(cache, semantic):
    """Whatever threads ask at once, each gets an answer about its topic."""
    model = accelerate(Clerk(), cache=cache, semantic=semantic)
    start = threading.Barrier(8)

    def work(thread):
        start.wait()
        for question in questions()[thread::2] + questions()[::8]:
            assert model.invoke(question).content == f"about {question.split()[-1]}"

    with ThreadPoolExecutor(8) as pool:
        for one in [pool.submit(work, thread) for thread in range(8)]:
            one.result()
    stats = semantic.stats()
    assert stats.faults == 0
    assert stats.entries <= len(questions())


def test_what_it_has_learned_outlives_the_process(tmp_path):
    """Beside a disk level it begins where it stopped."""
    with MultiLevelCache.open(tmp_path) as cache:
        teach(accelerate(Clerk(), cache=cache, semantic=reuse()))
    with MultiLevelCache.open(tmp_path) as cache:
        semantic = reuse()
        model = accelerate(Clerk(), cache=cache, semantic=semantic)
        assert hits_of(semantic, model.invoke) == len(TOPICS)
        assert not model.asked


@pytest.mark.parametrize("harm", ["lost", "damaged"])
def test_a_lost_or_damaged_file_means_to_learn_anew(tmp_path, harm):
    """Answers come all the same, and a new file is begun."""
    with MultiLevelCache.open(tmp_path) as cache:
        first = reuse()
        teach(accelerate(Clerk(), cache=cache, semantic=first))
        first.close()
    file = next(tmp_path.glob("*verified.sqlite"))
    for one in tmp_path.glob("*verified.sqlite*"):
        one.unlink()
    if harm == "damaged":
        file.write_bytes(b"no database at all" * 500)
    with MultiLevelCache.open(tmp_path) as cache:
        semantic = reuse()
        model = accelerate(Clerk(), cache=cache, semantic=semantic)
        assert not hits_of(semantic, model.invoke)
        assert len(model.asked) == len(TOPICS)
        assert semantic.stats().faults == 0
        semantic.close()
    with sqlite3.connect(file) as db:
        assert db.execute("SELECT count(*) FROM entry").fetchone() == (len(TOPICS),)
    db.close()


def test_vectors_of_another_dimension_are_no_neighbours(tmp_path):
    """Who takes another embedding model over the old file finds nothing, and breaks nothing."""
    with MultiLevelCache.open(tmp_path) as cache:
        teach(accelerate(Clerk(), cache=cache, semantic=reuse()))
        other = reuse(embed=HashEmbeddings(dim=32))
        model = accelerate(Clerk(), cache=cache, semantic=other)
        assert not hits_of(other, model.invoke)
        assert other.stats().faults == 0


def test_memory_is_bounded(cache):
    """The oldest questions go when there are more than is allowed."""
    semantic = reuse(max_entries=5)
    teach(accelerate(Clerk(), cache=cache, semantic=semantic))
    assert semantic.stats().entries == 5


def test_a_prompt_can_be_parted_into_question_and_context(cache):
    """What `split` calls the rest must be equal; a prompt that it does not know is left alone."""
    semantic = reuse(split=lambda prompt: prompt.rsplit("|", 1)[::-1] if "|" in prompt else None)
    model = accelerate(Clerk(), cache=cache, semantic=semantic)
    teach(model)
    assert semantic.stats().entries == 0
    teach(RunnablePrefix(model, "catalogue of spring|"))
    assert semantic.stats().hits > 0
    assert not hits_of(semantic, RunnablePrefix(model, "catalogue of autumn|").invoke)


class RunnablePrefix:
    """Asks with a text before each question."""

    def __init__(self, model, prefix):
        self._model, self._prefix = model, prefix

    def invoke(self, question):
        return self._model.invoke(self._prefix + question)


def test_it_can_be_pickled_with_the_model_and_deep_copied(taught, semantic):
    """A copy shares it; another process makes its own of the same options."""
    assert hits_of(semantic, copy.deepcopy(taught).invoke) == len(TOPICS)
    assert pickle.loads(pickle.dumps(semantic)).stats().entries == 0


@pytest.mark.parametrize(
    "options",
    [{"delta": 0}, {"delta": 0.6}, {"audit": 0}, {"audit": 1.5}, {"doubt": 0}, {"embed": 3},
     {"max_entries": 0}, {"max_labels": -1}],
)  # fmt: skip
def test_bad_options_are_refused(options):
    """A number that cannot be, or no embedding, is told at once."""
    with pytest.raises(ConfigurationError):
        reuse(**options)


def test_it_needs_a_cache(semantic):
    """The answers have to be somewhere."""
    with pytest.raises(ConfigurationError, match="needs a cache"):
        accelerate(Clerk(), semantic=semantic)
