"""A vector store whose rows are in a SQLite file that processes share."""

from __future__ import annotations

import json
import sqlite3
from typing import Any

import numpy as np
from llama_index.core.schema import MetadataMode, TextNode
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    VectorStoreQuery,
    VectorStoreQueryResult,
)


class SharedVectorStore(BasePydanticVectorStore):
    """Keeps texts, and searches all rows by their cosines."""

    stores_text: bool = True
    path: str
    scale: float = 1.0

    @property
    def client(self) -> Any:
        return None

    def _do(self, statement: str, rows: Any = ((),)) -> list[Any]:
        db = sqlite3.connect(self.path, timeout=30)
        try:
            db.execute("CREATE TABLE IF NOT EXISTS row (id PRIMARY KEY, document, text, vector)")
            found = [one for row in rows for one in db.execute(statement, row).fetchall()]
            db.commit()
            return found
        finally:
            db.close()

    def add(self, nodes, **kwargs):
        self._do(
            "REPLACE INTO row VALUES (?, ?, ?, ?)",
            [
                (one.node_id, one.ref_doc_id, one.get_content(MetadataMode.NONE),
                 json.dumps(one.embedding))
                for one in nodes
            ],
        )  # fmt: skip
        return [one.node_id for one in nodes]

    def delete(self, ref_doc_id, **kwargs):
        self._do("DELETE FROM row WHERE document = ?", [(ref_doc_id,)])

    def delete_nodes(self, node_ids=None, filters=None, **kwargs):
        self._do("DELETE FROM row WHERE id = ?", [(one,) for one in node_ids or ()])

    def reset_collection(self):
        """Delete every row; no method that LlamaIndex knows."""
        self._do("DELETE FROM row")

    def query(self, query: VectorStoreQuery, **kwargs):
        rows = self._do("SELECT id, text, vector FROM row")
        asked = np.asarray(query.query_embedding)
        found = []
        for row, text, vector in rows:
            one = np.asarray(json.loads(vector))
            cosine = asked @ one / np.linalg.norm(asked) / np.linalg.norm(one)
            found.append((float(cosine) * self.scale, row, text))
        found.sort(reverse=True)
        found = found[: query.similarity_top_k]
        return VectorStoreQueryResult(
            nodes=[TextNode(id_=row, text=text) for _, row, text in found],
            similarities=[score for score, _, _ in found],
            ids=[row for _, row, _ in found],
        )
