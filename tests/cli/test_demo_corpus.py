"""The demo's corpus is complete, has no text twice and is the same in every run."""

from itertools import islice
from pathlib import Path

import pytest

from ragaccel.cli.demo.corpus import load_corpus, load_xquad, stdlib_passages

XQUAD = Path(__file__).parents[2] / "examples" / "data" / "xquad_en"


@pytest.fixture(scope="module")
def passages():
    return list(stdlib_passages(20_000))


def test_xquad_is_complete():
    """All paragraphs and questions are read and every question's answer is among them."""
    passages, questions = load_xquad(XQUAD)
    assert (len(passages), len(questions)) == (240, 1_190)
    assert {question.passage_id for question in questions} <= {passage.id for passage in passages}


def test_stdlib_fills_a_corpus(passages):
    """The standard library alone gives many passages with distinct ids and distinct texts."""
    assert 15_000 < len(passages) <= 20_000
    assert len({passage.id for passage in passages}) == len(passages)
    assert len({passage.text for passage in passages}) == len(passages)


def test_passages_are_of_retrievable_size(passages):
    """No passage is a mere word or two and none is longer than what was asked for."""
    sizes = [len(passage.text.split()) for passage in passages]
    assert min(sizes) >= 5
    assert max(sizes) <= 80


def test_passages_repeat_in_every_run(passages):
    """A smaller limit gives the first passages of a larger one."""
    assert list(stdlib_passages(500)) == list(islice(passages, 500))


def test_docstrings_are_found_under_their_name(passages):
    """The docstring of a nested method is titled with its qualified name."""
    texts = {passage.id: passage.text for passage in passages}
    assert "Python representation" in texts["py:json.decoder.JSONDecoder.decode#0"]


def test_passages_keep_the_machine_to_themselves(passages):
    """Build settings, which hold paths of the machine, are not among the passages."""
    assert not any("sysconfigdata" in passage.title for passage in passages)


def test_corpus_puts_answers_before_distractors():
    """A corpus is XQuAD followed by as many distractors as asked for."""
    corpus = load_corpus(XQUAD, distractors=100)
    assert len(corpus.passages) == 340
    assert corpus.passages[:240] == load_xquad(XQUAD)[0]
    assert all(passage.id.startswith("py:") for passage in corpus.passages[240:])
