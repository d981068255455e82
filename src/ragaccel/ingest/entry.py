"""`ingest` and `aingest`: documents in, a report out."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import AsyncIterable, Iterable, Iterator, Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from ragaccel.batching.progress import bar
from ragaccel.errors import CollectionError, ConfigurationError
from ragaccel.ingest.adapter import Reader, adapter_of
from ragaccel.ingest.cluster import Cluster, Job, OnCluster
from ragaccel.ingest.embedding import Embedder, Stopped
from ragaccel.ingest.flow import Ingestion
from ragaccel.ingest.report import Tally, error_file
from ragaccel.ingest.storage import Storage
from ragaccel.ingest.workers import Workers

if TYPE_CHECKING:
    import os
    from threading import Event

    from ragaccel.ingest.adapter import Adapter, Key
    from ragaccel.ingest.report import IngestReport

OnError = Literal["collect", "raise"]

_END: Final = object()


def ingest(
    documents: Iterable[Any],
    into: Any,
    *,
    embed: Any = None,
    transform: Any = None,
    workers: int | Cluster | None = None,
    resume: bool = True,
    prune: bool = False,
    key: Key = None,
    on_error: OnError = "collect",
    errors_file: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> IngestReport:
    """Split, embed and store documents; those that are stored as they are now are passed over.

    It may be killed at any moment: run again with the same documents, it goes on where it was. A
    document is complete or as it was before. A changed one replaces its old chunks, and those of
    its texts that have not changed are not embedded again; equal texts are embedded once. A
    document with an id that came before in the input replaces that one.

    Documents are read as they are used up, and held in some 100 MB however many there are.

    Args:
        documents: LlamaIndex documents or nodes, LangChain documents, or (id, text, metadata) for
            a collection: any iterable. Their ids must be the same in each run; see `key`.
        into: A `CompressedVectorStore` of the documents' framework, or a `VectorCollection`.
        embed: The embedding model, or a function that gives the vectors of a list of texts. By
            default the store's own; of LlamaIndex, `Settings.embed_model`. Another model embeds
            all anew, where there is a `transform`.
        transform: Makes the chunks of a document: a LlamaIndex `TransformComponent`, such as
            `SentenceSplitter`, or several in a list; a LangChain text splitter; or a function of a
            document that returns chunks of the framework, or texts. Another transformation makes
            all chunks anew. Without, a document is its own chunk under its own id.
        workers: How many processes transform: they need a function that stands in a module, and a
            script whose doing stands under `if __name__ == "__main__":`. 0 is for none. By default
            one for each core as soon as transformations have taken a second, if that can be.
            Or the workers of a cluster, `RayWorkers` or `DaskWorkers`, which embed, too.
        resume: Whether to pass over what is stored; otherwise all is transformed and embedded.
        prune: Delete every row of the store that is no chunk of these documents, at the end, unless
            the input broke off or had things in it that are no documents. By default, what is not
            in the input is kept. Documents that failed keep what was stored of them.
        key: A metadata field, or a function of a document, that gives its id in place of its own.
            LlamaIndex gives random ids to documents that were given none. LangChain documents
            without an id are known by their content: a changed one is another one.
        on_error: "collect" lists documents that fail in the report, until 1,000 in a row do;
            "raise" ends with the first.
        errors_file: A file for all failures, a JSON object in each line; it is written anew.
        progress: Show a bar with rate and remaining time on stderr if that is a terminal.

    Returns:
        The report.

    Raises:
        ConfigurationError: An argument cannot be used, or there can be no worker processes.
        IngestionError: A document failed and `on_error` is "raise", or 1,000 in a row did.
        CollectionError: The store cannot be written.
        Exception: What the iterable raised; what it gave before is stored.
    """
    options = _Options(
        into, embed, transform, workers, resume, prune, key, on_error, errors_file, progress
    )
    return _ingest(documents, options, threading.Event())


async def aingest(
    documents: Iterable[Any] | AsyncIterable[Any],
    into: Any,
    *,
    embed: Any = None,
    transform: Any = None,
    workers: int | Cluster | None = None,
    resume: bool = True,
    prune: bool = False,
    key: Key = None,
    on_error: OnError = "collect",
    errors_file: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> IngestReport:
    """Do what `ingest` does, in a thread, with an iterable that may be asynchronous.

    A cancellation ends it as soon as the model and the store have answered.
    """
    options = _Options(
        into, embed, transform, workers, resume, prune, key, on_error, errors_file, progress
    )
    stopped = threading.Event()
    source: Any = documents
    if isinstance(documents, AsyncIterable):
        source = _Awaited(documents, asyncio.get_running_loop(), stopped)
    work = asyncio.ensure_future(asyncio.to_thread(_ingest, source, options, stopped))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        stopped.set()
        if isinstance(source, _Awaited):
            source.cancel()
        await asyncio.wait([work])
        work.exception()
        raise


@dataclass(frozen=True)
class _Options:
    """The arguments of `ingest`."""

    into: Any
    embed: Any
    transform: Any
    workers: int | Cluster | None
    resume: bool
    prune: bool
    key: Key
    on_error: OnError
    errors_file: str | os.PathLike[str] | None
    progress: bool


def _ingest(documents: Iterable[Any], options: _Options, stopped: Event) -> IngestReport:
    _check(documents, options)
    adapter = adapter_of(options.into, options.embed, options.transform, options.key)
    if adapter.collection.read_only:
        raise CollectionError(
            "the store is open for reading only; open it without read_only to ingest into it."
        )
    reader = Reader(adapter)
    workers, embedder = _workers(adapter, options, stopped)
    storage = Storage(adapter, embedder, reader.model if options.resume else None)
    total = len(documents) if isinstance(documents, Sized) else None
    try:
        with (
            error_file(options.errors_file) as file,
            bar("documents", total, shown=options.progress) as tell,
        ):
            tally = Tally(file, stops=options.on_error == "raise")
            Ingestion(
                adapter, reader, workers, storage, tally,
                tell=tell, stopped=stopped, resume=options.resume, prune=options.prune,
            ).run(documents)  # fmt: skip
    except BaseException:
        workers.close(kill=True)
        raise
    workers.close()
    return tally.report(embedder.sent)


def _workers(
    adapter: Adapter, options: _Options, stopped: Event
) -> tuple[Workers | OnCluster, Embedder]:
    if isinstance(options.workers, Cluster):
        away = OnCluster(options.workers, Job(adapter.split, adapter.model))
        return away, Embedder(adapter.model, away.embed, stopped, away.count)
    here = Workers(adapter.split, options.workers if options.transform is not None else 0)
    return here, Embedder(adapter.model, adapter.embed, stopped)


def _check(documents: Any, options: _Options) -> None:
    given: Any = options.workers
    is_count = isinstance(given, int) and given >= 0
    if not (given is None or is_count or isinstance(given, Cluster)):
        raise ConfigurationError(
            f"workers must be a whole number, RayWorkers, DaskWorkers or None, got {given!r}."
        )
    if options.on_error not in get_args(OnError):
        raise ConfigurationError(f"on_error must be collect or raise, got {options.on_error!r}.")
    if isinstance(documents, (str, bytes, dict)) or not isinstance(documents, Iterable):
        hint = "; write `await aingest(...)`" if isinstance(documents, AsyncIterable) else ""
        raise ConfigurationError(
            f"documents is an iterable of documents, got {type(documents).__name__}{hint}."
        )


class _Awaited(Iterator[Any]):
    """Takes documents out of an asynchronous iterable in a thread that is not the loop's.

    Args:
        documents: The iterable.
        loop: The loop that it belongs to.
        stopped: Whether to end.
    """

    def __init__(
        self, documents: AsyncIterable[Any], loop: asyncio.AbstractEventLoop, stopped: Event
    ) -> None:
        self._documents = aiter(documents)
        self._loop, self._stopped = loop, stopped
        self._pending: concurrent.futures.Future[Any] | None = None

    def __next__(self) -> Any:
        self._pending = asyncio.run_coroutine_threadsafe(self._next(), self._loop)
        if self._stopped.is_set():  # after `cancel` looked for something to cancel
            self.cancel()
        try:
            found = self._pending.result()
        except concurrent.futures.CancelledError:
            raise Stopped from None
        if found is _END:
            raise StopIteration
        return found

    def cancel(self) -> None:
        """End the waiting for a document."""
        if self._pending is not None:
            self._pending.cancel()

    async def _next(self) -> Any:
        return await anext(self._documents, _END)
