# /// script
# requires-python = ">=3.10"
# dependencies = ["ragaccel[demo]", "haystack-ai"]
# ///
"""Adapt another framework: Haystack's text embedder and retriever, by one small mixin."""

import os
from typing import Any

os.environ.setdefault("HAYSTACK_TELEMETRY_ENABLED", "False")

from haystack import Document, Pipeline, component
from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
from haystack.document_stores.in_memory import InMemoryDocumentStore

from ragaccel import MultiLevelCache
from ragaccel.cache import PLAIN, flow
from ragaccel.cli.demo.models import load_model
from ragaccel.io import run
from ragaccel.wrapping.seam import Options, serve
from ragaccel.wrapping.transparent import options_of, wrap


class Seam:
    """`run`, in front of the component's own: what it is asked and its name decide the answer."""

    def run(self, **asked: Any) -> Any:
        async def call() -> Any:
            found = super(Seam, self).run(**asked)
            return [one.to_dict() for one in found["documents"]] if "documents" in found else found

        def parts() -> Any:
            return type(self).__qualname__, options_of(self).identity, asked

        answer = run(serve(flow.SYNC, self, options_of(self), PLAIN, parts, call, query=asked))
        if isinstance(answer, list):
            return {"documents": [Document.from_dict(one) for one in answer]}
        return answer


@component
class Embedder:
    @component.output_types(embedding=list[float])
    def run(self, text: str) -> dict:
        return {"embedding": load_model("wordllama").embed([text])[0].tolist()}


texts = ("red apples grow on trees", "the sky is blue", "ships sail the sea")
store = InMemoryDocumentStore()
store.write_documents([Document(content=one, **Embedder().run(one)) for one in texts])
with MultiLevelCache.open() as cache:
    pipeline = Pipeline()
    for name, part in (("embed", Embedder()), ("find", InMemoryEmbeddingRetriever(store, top_k=1))):
        options = Options(cache, identity=f"{name}: three texts, wordllama")
        pipeline.add_component(name, wrap(part, Seam, options, lambda: None))
    pipeline.connect("embed.embedding", "find.query_embedding")
    for _ in range(2):
        (found,) = pipeline.run({"text": "where do apples grow?"})["find"]["documents"]
        print(found.content, cache.stats().hits)
