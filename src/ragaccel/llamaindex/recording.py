"""Recording what LlamaIndex retrievers are asked, as a span handler."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index_instrumentation import get_dispatcher
from llama_index_instrumentation.span import BaseSpan
from llama_index_instrumentation.span_handlers import BaseSpanHandler
from pydantic import PrivateAttr

if TYPE_CHECKING:
    import inspect

    from llama_index_instrumentation.dispatcher import Dispatcher
    from typing_extensions import Self

    from ragaccel.tuning.recorder import TrafficRecorder

#: Spans of abandoned coroutines never end; this many are remembered at most.
_MOST_OPEN: Final = 10_000
_METHODS: Final = (".retrieve-", ".aretrieve-")
_SETTINGS: Final = (("similarity_top_k", "_similarity_top_k"),)


class _Begun(NamedTuple):
    query: str
    arguments: dict[str, Any]
    since: float


class TrafficHandler(BaseSpanHandler[BaseSpan]):
    """Records every retrieval of this process, but none inside another one.

    It hears of them as a span handler: a span tells the query, the retriever, the nodes and the
    error, and its parents tell what is inside another retrieval. Ids are those of the nodes.

    Args:
        recorder: Where to. The handler does not close it.

    Example:
        >>> with TrafficHandler(recorder):  # doctest: +SKIP
        ...     query_engine.query("What is a tombstone?")
    """

    _recorder: TrafficRecorder = PrivateAttr()
    _begun: dict[str, _Begun] = PrivateAttr()
    _inside: dict[str, None] = PrivateAttr()

    def __init__(self, recorder: TrafficRecorder) -> None:
        super().__init__()
        self._recorder, self._begun, self._inside = recorder, {}, {}

    @classmethod
    def class_name(cls) -> str:
        """Return the name that LlamaIndex knows it by."""
        return "RagaccelTraffic"

    def attach(self, dispatcher: Dispatcher | None = None) -> Self:
        """Record from now on.

        Args:
            dispatcher: Whose spans; None for the root, which hears of all.
        """
        heard = get_dispatcher() if dispatcher is None else dispatcher
        if not any(one is self for one in heard.span_handlers):
            heard.add_span_handler(self)
        return self

    def detach(self, dispatcher: Dispatcher | None = None) -> None:
        """Record no more.

        Args:
            dispatcher: See `attach`.
        """
        heard = get_dispatcher() if dispatcher is None else dispatcher
        heard.span_handlers = [one for one in heard.span_handlers if one is not self]

    def __enter__(self) -> Self:
        return self.attach()

    def __exit__(self, *exit_: object) -> None:
        self.detach()

    def new_span(
        self,
        id_: str,
        bound_args: inspect.BoundArguments,
        instance: Any = None,
        parent_span_id: str | None = None,
        tags: dict[str, Any] | None = None,  # noqa: ARG002
        **_: Any,
    ) -> None:
        """Note that a retrieval begins; there is no span to keep."""
        if parent_span_id in self._begun or parent_span_id in self._inside:
            _remember(self._inside, id_, None)
        elif isinstance(instance, BaseRetriever) and any(one in id_ for one in _METHODS):
            asked = bound_args.arguments.get("str_or_query_bundle", "")
            query = asked if isinstance(asked, str) else asked.query_str
            _remember(self._begun, id_, _Begun(query, _arguments(instance), time.perf_counter()))

    def prepare_to_exit_span(
        self,
        id_: str,
        bound_args: inspect.BoundArguments,  # noqa: ARG002
        instance: Any = None,  # noqa: ARG002
        result: Any = None,
        **_: Any,
    ) -> None:
        """Record a retrieval."""
        begun = self._forget(id_)
        if begun is not None:
            self._record(begun, ids=[one.node.node_id for one in result or ()])

    def prepare_to_drop_span(
        self,
        id_: str,
        bound_args: inspect.BoundArguments,  # noqa: ARG002
        instance: Any = None,  # noqa: ARG002
        err: BaseException | None = None,
        **_: Any,
    ) -> None:
        """Record a retrieval that failed, by the name of what was raised."""
        begun = self._forget(id_)
        if begun is not None:
            self._record(begun, error=type(err).__name__)

    def _forget(self, id_: str) -> _Begun | None:
        self._inside.pop(id_, None)
        return self._begun.pop(id_, None)

    def _record(self, begun: _Begun, **outcome: Any) -> None:
        seconds = time.perf_counter() - begun.since
        self._recorder.record(begun.query, seconds=seconds, arguments=begun.arguments, **outcome)


def _remember(kept: dict[str, Any], id_: str, value: Any) -> None:
    if len(kept) >= _MOST_OPEN:
        kept.pop(next(iter(kept)), None)
    kept[id_] = value


def _arguments(retriever: BaseRetriever) -> dict[str, Any]:
    told: dict[str, Any] = {"retriever": type(retriever).__name__}
    for name, attribute in _SETTINGS:
        value = getattr(retriever, attribute, None)
        if value is not None:
            told[name] = value
    return told
