"""A callback handler that writes down what LangChain tells it."""

from __future__ import annotations

from langchain_core.callbacks import BaseCallbackHandler


class Recorder(BaseCallbackHandler):
    """Keeps events in a form that is the same for every run: run ids become numbers."""

    raise_error = True

    def __init__(self):
        self.events = []
        self._runs = {}

    def keep(self, event, *what, run_id, parent_run_id=None, **details):
        self.events.append(
            (event, self._number(run_id), self._number(parent_run_id), what, details)
        )

    def on_retriever_start(self, serialized, query, **details):
        self.keep("retriever start", serialized, query, **details)

    def on_retriever_end(self, documents, **details):
        self.keep("retriever end", [one.model_copy(deep=True) for one in documents], **details)

    def on_retriever_error(self, error, **details):
        self.keep("retriever error", error, **details)

    def on_chain_start(self, serialized, inputs, **details):
        self.keep("chain start", serialized, inputs, **details)

    def on_chain_end(self, outputs, **details):
        self.keep("chain end", outputs, **details)

    def on_text(self, text, **details):
        self.keep("text", text, **details)

    def _number(self, run_id):
        return None if run_id is None else self._runs.setdefault(run_id, len(self._runs))
