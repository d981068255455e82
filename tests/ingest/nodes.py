"""A LlamaIndex transformation that worker processes can import."""

from __future__ import annotations

import itertools

from llama_index.core.schema import (
    NodeRelationship,
    RelatedNodeInfo,
    TextNode,
    TransformComponent,
)

from tests.ingest import texts


class Sentences(TransformComponent):
    """Splits at full stops, and links the chunks of a document to each other."""

    def __call__(self, nodes, **kwargs):
        return [chunk for node in nodes for chunk in self._chunks(node)]

    def _chunks(self, node):
        chunks = [
            TextNode(text=part, metadata=dict(node.metadata)) for part in texts.parts(node.text)
        ]
        for before, after in itertools.pairwise(chunks):
            info = RelatedNodeInfo(node_id=before.node_id)
            after.relationships[NodeRelationship.PREVIOUS] = info
        return chunks


def shouted(node):
    """Return the text of a node in capitals."""
    return [node.get_content().upper()]
