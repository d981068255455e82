"""A LangChain text splitter that worker processes can import."""

from __future__ import annotations

from langchain_text_splitters import TextSplitter

from tests.ingest import texts


class Sentences(TextSplitter):
    """Splits at full stops."""

    def split_text(self, text):
        return texts.parts(text)
