"""Whole pipelines of both frameworks, small enough for a test and with every stage in them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from langchain_core.documents import BaseDocumentCompressor
from langchain_core.language_models import FakeListChatModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableParallel, RunnablePassthrough
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import TextNode

from ragaccel.llamaindex import CompressedVectorStore
from tests.langchain.stores import opened
from tests.llamaindex.embeddings import TEXTS, HashEmbedding
from tests.llamaindex.models import Provider

if TYPE_CHECKING:
    from llama_index.core.base.base_query_engine import BaseQueryEngine


class Shorter(BaseNodePostprocessor):
    """Keeps the first node."""

    def _postprocess_nodes(self, nodes, query_bundle=None):
        return nodes[:1]


class ShorterDocuments(BaseDocumentCompressor):
    """Keeps the first document."""

    def compress_documents(self, documents, query, callbacks=None):
        return documents[:1]


def llamaindex_index() -> VectorStoreIndex:
    """Return an index over six texts in a store of ours."""
    return VectorStoreIndex(
        [TextNode(text=text) for text in TEXTS],
        storage_context=StorageContext.from_defaults(vector_store=CompressedVectorStore.open()),
        embed_model=HashEmbedding(),
    )


def llamaindex_engine(**options: Any) -> BaseQueryEngine:
    """Return an engine that retrieves, reranks and answers."""
    return llamaindex_index().as_query_engine(
        llm=Provider(), node_postprocessors=[Shorter()], similarity_top_k=2, **options
    )


def langchain_chain() -> Any:
    """Return a chain that retrieves and answers; the retriever runs in a thread of its own."""
    retriever = opened().as_retriever(search_kwargs={"k": 2})
    return (
        RunnableParallel(context=retriever, question=RunnablePassthrough())
        | ChatPromptTemplate.from_template("{context} {question}")
        | FakeListChatModel(responses=["a red tree"])
        | StrOutputParser()
    )
