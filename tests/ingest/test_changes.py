"""Documents that come, change, come twice and go: the store holds what was given, and no more."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ragaccel.errors import InvalidRecordError
from ragaccel.ingest import ingest
from tests.ingest import texts
from tests.ingest.kits import KITS

_SENTENCES = st.sampled_from(["one", "two", "three", "four five", "poison", "", "six"])
_DOCUMENT = st.tuples(st.sampled_from("abcdef"), st.lists(_SENTENCES, max_size=4).map(". ".join))
_RUN = st.tuples(st.lists(_DOCUMENT, max_size=12), st.booleans(), st.booleans())


@pytest.fixture(scope="module", params=KITS)
def kit(request):
    """A collection without a framework, and the stores of both."""
    return KITS[request.param]()


@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(runs=st.lists(_RUN, min_size=1, max_size=4))
def test_the_store_holds_the_chunks_of_what_was_given(kit, runs):
    """Each document has its last text that could be taken in, whole or split, and no pruned one."""
    store, state = kit.open(), {}
    for documents, prune, split in runs:
        report = ingest(
            [kit.document(*one) for one in documents], store, embed=kit.model,
            transform=kit.transform if split else None, workers=0, prune=prune,
        )  # fmt: skip
        changes = 0
        for id_, text in documents:
            if not (split and "poison" in text):
                changes += bool(_chunks(text, split)) and state.get(id_) != (text, split)
                state[id_] = text, split
        if prune:
            given_ids = {id_ for id_, _ in documents}
            state = {id_: one for id_, one in state.items() if id_ in given_ids}
        rows = kit.collection(store).select()
        assert Counter((row.metadata["of"], row.text) for row in rows) == Counter(
            (id_, part) for id_, one in state.items() for part in _chunks(*one)
        )
        assert report.stored - report.empty == changes
        assert report.stored + report.unchanged + report.failed == len(documents)
    kit.close(store)


def test_one_more_document_transforms_and_embeds_one(kit):
    """The others are passed over, and so are they where one of them has changed."""
    store, transform = kit.open(), texts.Counted(kit.transform)
    documents = [(id_, text) for id_, text, _ in texts.documents(40)]

    def transformed():
        before = texts.Counted.count
        report = ingest(
            (kit.document(*one) for one in documents), store, embed=kit.model,
            transform=transform, workers=0,
        )  # fmt: skip
        return texts.Counted.count - before, report.stored, report.embedded

    assert transformed()[:2] == (40, 40)
    documents.insert(7, ("new", "a new one. with two sentences"))
    assert transformed() == (1, 1, 2)
    documents[30] = (documents[30][0], f"another first sentence. {documents[30][1]}")
    assert transformed() == (1, 1, 1)
    kit.close(store)


def _chunks(text, split):
    return texts.parts(text) if split else [text] * bool(text.strip())


def test_a_text_is_no_list_of_chunks(kit):
    """A transformation that returns one is told so: its letters are not taken for chunks."""
    store = kit.open()
    report = ingest(
        [kit.document("a", "one")], store, embed=kit.model, transform=lambda _: "One", workers=0
    )
    (failure,) = report.errors
    assert isinstance(failure.error, InvalidRecordError)
    assert "[text]" in str(failure.error)
    assert not len(kit.collection(store))
    kit.close(store)
