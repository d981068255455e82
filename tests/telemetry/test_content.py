"""Content in stages: none unless asked for, then cut short, under the conventions' names."""

from __future__ import annotations

import json

import pytest
from langchain_core.documents import Document
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_core.retrievers import BaseRetriever
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.llms import MockLLM
from llama_index.core.retrievers import BaseRetriever as LlamaRetriever
from llama_index.core.schema import NodeWithScore, TextNode

from ragaccel import MultiLevelCache, accelerate, telemetry
from ragaccel.telemetry.content import capture

SECRET = "the launch code is 4711"


class Chain(BaseRetriever):
    def _get_relevant_documents(self, query, *, run_manager):
        return [Document(id="d1", page_content=f"of {query}", metadata={"owner": SECRET})]


class Llama(LlamaRetriever):
    def _retrieve(self, query_bundle):
        return [NodeWithScore(node=TextNode(id_="n1", text=SECRET), score=0.5)]


class Told:
    """Keeps the attributes of stages by name; of several of a name, the last ones."""

    def __init__(self):
        self.of, self.all, self.chats = {}, [], []

    def started(self, stage):
        pass

    def ended(self, stage):
        self.of[stage.name] = stage.attributes
        self.all.append(stage.attributes)
        if stage.name == "generate":
            self.chats.append(stage.attributes)


@pytest.fixture
def told():
    listener = Told()
    telemetry.listen(listener)
    yield listener
    telemetry.unlisten(listener)
    capture(0, openinference=False)


def use_everything(cache):
    chat = accelerate(FakeListChatModel(responses=[SECRET]), cache=cache, identity="fake")
    for _ in range(2):
        chat.invoke([SystemMessage("Be brief."), HumanMessage(SECRET)])
        accelerate(MockLLM(), cache=cache).chat([ChatMessage(SECRET)])
        accelerate(MockEmbedding(embed_dim=4), cache=cache).get_query_embedding(SECRET)
        accelerate(Chain(), cache=cache, identity="c").invoke(SECRET)
        accelerate(Llama(), cache=cache, identity="l").retrieve(SECRET)


def test_nothing_is_told_unless_asked_for(told):
    """On a miss and on a hit, of every sort of component."""
    with MultiLevelCache.open() as cache:
        use_everything(cache)
    assert len(told.all) > 20
    assert "4711" not in str(told.all)


def test_a_chat_is_told_as_messages(told):
    """Roles and texts, on a miss and on a hit."""
    capture(100, openinference=False)
    with MultiLevelCache.open() as cache:
        use_everything(cache)
    assert len(told.chats) == 4
    first = [one for one in told.chats if one["ragaccel.component"] == "FakeListChatModel"]
    assert [one["ragaccel.cache.hit"] for one in first] == [False, True]
    for one in first:
        asked, answer = (json.loads(one[f"gen_ai.{way}.messages"]) for way in ("input", "output"))
        assert [(m["role"], m["parts"][0]["content"]) for m in asked] == [
            ("system", "Be brief."),
            ("user", SECRET),
        ]
        assert [(m["role"], m["parts"][0]["content"]) for m in answer] == [("assistant", SECRET)]
        assert "input.value" not in one


def test_a_retrieval_is_told_as_documents(told):
    """Ids, scores and texts; no metadata, which has secrets of its own."""
    capture(1000, openinference=True)
    with MultiLevelCache.open() as cache:
        accelerate(Llama(), cache=cache, identity="l").retrieve("who?")
        assert json.loads(told.of["query"]["gen_ai.retrieval.documents"]) == [
            {"id": "n1", "score": 0.5, "content": SECRET}
        ]
        accelerate(Chain(), cache=cache, identity="c").invoke("who?")
    assert told.of["query"]["gen_ai.retrieval.query.text"] == "who?"
    assert told.of["query"]["input.value"] == "who?"
    assert told.of["query"]["output.value"] == "of who?"
    assert "4711" not in str(told.of["query"])


def test_texts_are_cut_and_stay_json(told):
    """Each text by itself, before it is put together."""
    capture(5, openinference=False)
    with MultiLevelCache.open() as cache:
        use_everything(cache)
    for one in told.all:
        for name, value in one.items():
            if name.endswith((".messages", ".documents")):
                json.loads(value)
        assert "launch" not in str(one)


def test_half_a_character_loses_no_spans(told, tmp_path):
    """A question that no exporter can encode is told without it, and all spans are written."""
    capture(100, openinference=False)
    with telemetry.export_trace(tmp_path / "trace.jsonl"):
        accelerate(Llama()).retrieve("an emoji cut in two: \ud83d")
    assert told.of["retrieve"]["gen_ai.retrieval.query.text"] == "an emoji cut in two: ?"
    assert "an emoji cut in two" in (tmp_path / "trace.jsonl").read_text(encoding="utf-8")


def test_embeddings_tell_their_texts_only(told):
    """Vectors are no content."""
    capture(100, openinference=True)
    accelerate(MockEmbedding(embed_dim=4)).get_query_embedding("what?")
    assert told.of["embed"]["input.value"] == "what?"
    assert "output.value" not in told.of["embed"]


def test_tokens_are_told_of_calls_that_were_paid_for(told):
    """A hit costs none."""
    from langchain_core.language_models import GenericFakeChatModel
    from langchain_core.messages import AIMessage

    answer = AIMessage(
        "yes", usage_metadata={"input_tokens": 7, "output_tokens": 2, "total_tokens": 9}
    )
    model = GenericFakeChatModel(messages=iter([answer]))
    with MultiLevelCache.open() as cache:
        fast = accelerate(model, cache=cache, identity="fake")
        fast.invoke("Is it?")
        paid = told.of["generate"]
        assert (paid["gen_ai.usage.input_tokens"], paid["gen_ai.usage.output_tokens"]) == (7, 2)
        fast.invoke("Is it?")
    assert told.of["generate"]["ragaccel.cache.hit"] is True
    assert "gen_ai.usage.input_tokens" not in told.of["generate"]
