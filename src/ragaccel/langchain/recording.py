"""Recording what LangChain retrievers are asked, as a callback handler."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from langchain_core.callbacks import BaseCallbackHandler

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from langchain_core.documents import Document

    from ragaccel.tuning.recorder import TrafficRecorder

#: Runs that were cancelled never end; this many are remembered at most.
_MOST_OPEN: Final = 10_000


class TrafficHandler(BaseCallbackHandler):
    """Records every retrieval that it is a callback of, but none inside another one.

    Ids are those of the documents; documents without one are left out. LangChain does not tell
    callbacks the arguments of a call, so only the retriever's name is recorded of them.

    Args:
        recorder: Where to. The handler does not close it.

    Example:
        >>> handler = TrafficHandler(recorder)  # doctest: +SKIP
        >>> chain.invoke("What is a tombstone?", config={"callbacks": [handler]})  # doctest: +SKIP
        >>> chain = chain.with_config(callbacks=[handler])  # for every call  # doctest: +SKIP
    """

    run_inline = True

    def __init__(self, recorder: TrafficRecorder) -> None:
        self._recorder = recorder
        self._open: dict[UUID, tuple[str, str | None, float]] = {}

    def on_retriever_start(
        self,
        serialized: dict[str, Any],  # noqa: ARG002
        query: str,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        name: str | None = None,
        **_: Any,
    ) -> None:
        """Note that a retrieval begins."""
        if parent_run_id in self._open:
            return
        if len(self._open) >= _MOST_OPEN:
            self._open.pop(next(iter(self._open)), None)
        self._open[run_id] = query, name, time.perf_counter()

    def on_retriever_end(self, documents: Sequence[Document], *, run_id: UUID, **_: Any) -> None:
        """Record a retrieval."""
        self._record(run_id, (one.id for one in documents))

    def on_retriever_error(self, error: BaseException, *, run_id: UUID, **_: Any) -> None:
        """Record a retrieval that failed, by the name of what was raised."""
        self._record(run_id, (), type(error).__name__)

    def _record(self, run_id: UUID, ids: Any, error: str | None = None) -> None:
        begun = self._open.pop(run_id, None)
        if begun is None:
            return
        query, name, since = begun
        self._recorder.record(
            query,
            ids=[one for one in ids if one is not None],
            seconds=time.perf_counter() - since,
            arguments={} if name is None else {"retriever": name},
            error=error,
        )
