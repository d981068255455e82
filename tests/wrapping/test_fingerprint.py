"""What tells components apart, and what does not."""

from __future__ import annotations

import enum
import threading
from functools import partial
from typing import Any

import pytest
from langchain_core.language_models import FakeListChatModel
from llama_index.core.output_parsers import PydanticOutputParser
from pydantic import BaseModel, Field, PrivateAttr, create_model
from pydantic_core import core_schema

from ragaccel import accelerate, unwrap
from ragaccel.cache import Uncacheable
from ragaccel.wrapping.fingerprint import fingerprint, visible
from tests.llamaindex.embeddings import HashEmbedding
from tests.llamaindex.retrievers import WordRetriever


class Mode(enum.Enum):
    """A setting of a component."""

    FAST = "fast"
    SLOW = "slow"


class Part(BaseModel):
    """A component within a component."""

    size: int = 1
    api_key: str = "secret"
    aws_access_key: str = "secret"
    client: Any = Field(default=None, exclude=True)


class Whole(BaseModel):
    """A component with everything that components have."""

    name: str = "whole"
    level: float = 0.5
    date_key: str = "made"
    part: Any = Part()
    parts: list[Any] = []
    options: dict[str, Any] = {}
    messages_to_prompt: Any = Field(default=None, exclude=True)
    _engine: Any = PrivateAttr(default=None)
    _api_key: Any = PrivateAttr(default=None)

    def with_private(self, value):
        self._engine = value
        return self

    def method(self):
        return self.level


def upper(text):
    return text.upper()


def lower(text):
    return text.lower()


DIFFERENT = {
    "nothing": Whole,
    "name": lambda: Whole(name="another"),
    "number": lambda: Whole(level=1.0),
    "type of a number": lambda: Whole(level=1.0, options={"n": 1}),
    "another type of it": lambda: Whole(level=1.0, options={"n": True}),
    "key of what is looked at": lambda: Whole(date_key="changed"),
    "component within": lambda: Whole(part=Part(size=2)),
    "class of it": lambda: Whole(part=Whole()),
    "dict for it": lambda: Whole(part=Part().model_dump()),
    "in a list": lambda: Whole(parts=[Part()]),
    "deep in a dict": lambda: Whole(options={"a": [{"b": Part(size=3)}]}),
    "enum": lambda: Whole(part=Mode.FAST),
    "another member": lambda: Whole(part=Mode.SLOW),
    "its value": lambda: Whole(part="fast"),
    "function": lambda: Whole(part=upper),
    "another function": lambda: Whole(part=lower),
    "class": lambda: Whole(part=Part),
    "another class": lambda: Whole(part=Whole),
    "prompt function that dumps leave out": lambda: Whole(messages_to_prompt=upper),
    "output parser": lambda: Whole(part=PydanticOutputParser(Part)),
    "another output parser": lambda: Whole(part=PydanticOutputParser(Whole)),
    "private text": lambda: Whole().with_private("one"),
    "another private text": lambda: Whole().with_private("two"),
    "private switch": lambda: Whole().with_private(value=True),
    "private enum": lambda: Whole().with_private(Mode.FAST),
    "private function": lambda: Whole().with_private(upper),
    "private class": lambda: Whole().with_private(Part),
    "private class of another sort": lambda: Whole().with_private(WordRetriever),
    "private component": lambda: Whole().with_private(Part()),
    "another private component": lambda: Whole().with_private(Part(size=2)),
}


def test_components_that_differ_have_different_fingerprints():
    """Wherever they differ, and whatever the type; equal ones have equal fingerprints."""
    found = {name: fingerprint(made()) for name, made in DIFFERENT.items()}
    assert len(set(found.values())) == len(DIFFERENT)
    assert found == {name: fingerprint(made()) for name, made in DIFFERENT.items()}


SAME = {
    "secret within": lambda: Whole(part=Part(api_key="another")),
    "key that opens something": lambda: Whole(part=Part(aws_access_key="another")),
    "private secret": lambda: setattr(made := Whole(), "_api_key", "another") or made,
    "client within": lambda: Whole(part=Part(client=threading.Lock())),
    "private client": lambda: Whole().with_private(threading.Lock()),
    "private counter": lambda: Whole().with_private(7),
    "private log": lambda: Whole().with_private(["asked"]),
}


@pytest.mark.parametrize("made", SAME.values(), ids=SAME)
def test_what_decides_no_answer_is_left_out(made):
    """Secrets, clients, counters and logs tell nothing apart."""
    assert fingerprint(made()) == fingerprint(Whole())


def test_what_tracing_calls_a_runnable_is_left_out():
    """LangChain's models have a name, tags and metadata for it; of others these may decide."""
    model = FakeListChatModel(responses=["yes"])
    labels = {"name": "another", "tags": ["a"], "metadata": {"run": 1}}
    assert fingerprint(model.model_copy(update=labels)) == fingerprint(model)


def local():
    def function(text):
        return text

    class Local(BaseModel):
        pass

    return function, Local


def circular():
    made = Whole()
    made.part = made
    return made


class Lock:
    """Something that pydantic has no schema for."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source, handler):
        return core_schema.is_instance_schema(cls)


UNTELLABLE = {
    "lambda": lambda: Whole(part=lambda text: text),
    "local function": lambda: Whole(part=local()[0]),
    "local class": lambda: Whole(part=local()[1]),
    "partial": lambda: Whole(part=partial(upper, "text")),
    "method": lambda: Whole(part=Whole().method),
    "object": lambda: Whole(part=object()),
    "deep in a list": lambda: Whole(parts=[{"a": [Part(size=1), object()]}]),
    "prompt function": lambda: Whole(messages_to_prompt=lambda messages: messages),
    "output parser of a local class": lambda: Whole(part=PydanticOutputParser(local()[1])),
    "private lambda": lambda: Whole().with_private(lambda text: text),
    "private partial": lambda: Whole().with_private(partial(upper, "text")),
    "private method": lambda: Whole().with_private(Whole().method),
    "private component with one": lambda: Whole().with_private(Whole(part=object())),
    "class without a schema": lambda: Whole(part=BaseModel),
    "field without a schema": lambda: Whole(part=create_model("Answer", lock=(Lock, ...))),
    "circle": circular,
}


@pytest.mark.parametrize("made", UNTELLABLE.values(), ids=UNTELLABLE)
def test_what_cannot_be_told_apart_has_no_fingerprint(made):
    """There is none, rather than one that two components share."""
    with pytest.raises(Uncacheable):
        fingerprint(made())


def test_what_is_visible_is_told_without_the_rest():
    """Settings that have a canonical form are told by name; the others are left out."""
    found = visible(Whole(part=object(), level=0.7))
    assert set(found) == {"name", "level", "date_key", "parts", "options", "messages_to_prompt"}
    assert found["level"] != visible(Whole())["level"]


def test_classes_of_one_name_differ_by_their_schema():
    """A class that is defined again with other fields is another one."""
    first = create_model("Answer", __module__=__name__, text=(str, ...))
    second = create_model("Answer", __module__=__name__, number=(int, ...))
    assert fingerprint(Whole(part=first)) != fingerprint(Whole(part=second))


@pytest.mark.parametrize(
    "plain",
    [HashEmbedding(seed=1), Whole(part=HashEmbedding(seed=1)), WordRetriever([])],
    ids=["pydantic", "within another", "plain class"],
)
def test_a_wrapped_component_has_the_fingerprint_of_its_plain_self(plain):
    """What is wrapped, or has something wrapped within, answers as the plain one does."""
    within = isinstance(plain, Whole)
    wrapped = Whole(part=accelerate(plain.part)) if within else accelerate(plain)
    assert unwrap(wrapped.part if within else wrapped) is (plain.part if within else plain)
    assert fingerprint(wrapped) == fingerprint(plain)
    assert visible(wrapped) == visible(plain)


def test_sets_are_told_apart_by_what_is_in_them():
    """In whatever order they give it."""

    class Settings(BaseModel):
        allowed: set = set()

    prints = [
        fingerprint(Settings(allowed=allowed))[1]
        for allowed in ({"a", "b"}, {"b", "a"}, {"a"}, set(), {1}, {"1"})
    ]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 5
