"""Span attribute names, in one place because the conventions they follow still move.

Where OpenTelemetry's GenAI conventions or OpenInference have a name it is theirs; `ragaccel.*`
names what no convention covers (cache, index). A reranker's model stands under OpenInference's name
only: viewers take a span with `gen_ai.request.model` for a generation.
Source: open-telemetry/semantic-conventions-genai v0.1.0; OpenInference semantic conventions 0.1.
"""

from __future__ import annotations

from typing import Final

SPAN_KIND: Final = "openinference.span.kind"
OPERATION: Final = "gen_ai.operation.name"
TOP_K: Final = "gen_ai.retrieval.top_k"
QUERY_TEXT: Final = "gen_ai.retrieval.query.text"
FOUND_DOCUMENTS: Final = "gen_ai.retrieval.documents"
MODEL: Final = "gen_ai.request.model"
INPUT_MESSAGES: Final = "gen_ai.input.messages"
OUTPUT_MESSAGES: Final = "gen_ai.output.messages"
INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
INPUT: Final = "input.value"
OUTPUT: Final = "output.value"
RERANKER: Final = "reranker.model_name"
RERANKER_TOP: Final = "reranker.top_k"
FIRST_CHUNK: Final = "gen_ai.response.time_to_first_chunk"

STAGE: Final = "ragaccel.stage"
COMPONENT: Final = "ragaccel.component"
CACHE_HIT: Final = "ragaccel.cache.hit"
CACHE_COALESCED: Final = "ragaccel.cache.coalesced"
CACHE_LEVEL: Final = "ragaccel.cache.level"
CACHE_BYPASS: Final = "ragaccel.cache.bypass"
CACHE_AGE: Final = "ragaccel.cache.age"
CACHE_HIT_KIND: Final = "ragaccel.cache.hit_kind"
CACHE_SIMILARITY: Final = "ragaccel.cache.similarity"
STREAM_CHUNKS: Final = "ragaccel.stream.chunks"
STREAM_ABANDONED: Final = "ragaccel.stream.abandoned"
BATCH_SIZE: Final = "ragaccel.batch.size"
BATCH_WAIT: Final = "ragaccel.batch.wait"
ITEMS: Final = "ragaccel.items.count"
SENT: Final = "ragaccel.items.sent"
DOCUMENTS: Final = "ragaccel.documents.count"
CANDIDATES: Final = "ragaccel.search.candidates"
QUERIES: Final = "ragaccel.search.queries"
SELECTIVITY: Final = "ragaccel.search.selectivity"
CODEC: Final = "ragaccel.index.codec"
ROWS: Final = "ragaccel.index.rows"

#: What every span of a stage carries from its start, so that samplers see it.
OF_STAGE: Final[dict[str, dict[str, str]]] = {
    "query": {SPAN_KIND: "CHAIN"},
    "preprocess": {SPAN_KIND: "CHAIN"},
    "cache.lookup": {SPAN_KIND: "CHAIN"},
    "embed": {SPAN_KIND: "EMBEDDING", OPERATION: "embeddings"},
    "retrieve": {SPAN_KIND: "RETRIEVER", OPERATION: "retrieval"},
    "ingest": {SPAN_KIND: "CHAIN"},
    "compact": {SPAN_KIND: "CHAIN"},
    "generate": {SPAN_KIND: "LLM", OPERATION: "chat"},
    "rerank": {SPAN_KIND: "RERANKER"},
    "batch": {SPAN_KIND: "CHAIN"},
}
