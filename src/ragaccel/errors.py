"""Everything a user of ragaccel can catch.

RagaccelError
├── ConfigurationError (ValueError)          an argument that cannot be used
│   ├── InvalidVectorError                   wrong shape, NaN or infinity
│   │   └── DimensionMismatchError           vectors of another dimension than the collection's
│   ├── InvalidRecordError                   an id, text or metadata that cannot be stored
│   └── FilterError                          a filter that cannot be understood
├── UnsupportedComponentError (TypeError)    an object that `accelerate` cannot wrap
├── MissingExtraError (ImportError)          an optional package is not installed
├── IngestionError                           a document that an ingestion stops at
├── BatchError                               a batched call gave too few or too many results
│   └── BatchTimeoutError (TimeoutError)     no batch took it before its deadline
├── CacheClosedError                         the cache was closed
├── InvalidationError                        an invalidation could not be written down
└── CollectionError
    ├── CollectionNotFoundError (FileNotFoundError)
    ├── CollectionClosedError                the collection was closed
    ├── CollectionLockedError (TimeoutError) another writer holds it
    └── CorruptCollectionError               the stored truth is damaged

Cache, Redis and telemetry faults are never raised into a caller's request: they are counted, and
logged once per change of state under "ragaccel.cache". A ttl policy of the user's own that fails is
warned about as a `RagaccelWarning`.
"""

from __future__ import annotations


class RagaccelError(Exception):
    """Base of every error that ragaccel raises on purpose."""


class RagaccelWarning(UserWarning):
    """A fault that ragaccel survived: the request went on without the faulty part."""


class ConfigurationError(RagaccelError, ValueError):
    """An argument is outside what can work; the message says what to write instead."""


class InvalidVectorError(ConfigurationError):
    """Vectors of the wrong shape, or with NaN or infinite components."""


class DimensionMismatchError(InvalidVectorError):
    """Vectors whose dimension is not the collection's."""


class InvalidRecordError(ConfigurationError):
    """An id, text or metadata value that cannot be stored faithfully."""


class FilterError(ConfigurationError):
    """A metadata filter with an unknown operator or an unfit value."""


class UnsupportedComponentError(RagaccelError, TypeError):
    """The object is not one that `accelerate` can wrap."""


class MissingExtraError(RagaccelError, ImportError):
    """A package of an optional extra is not installed."""

    def __init__(self, extra: str, package: str) -> None:
        """Name the missing package and the line that installs it."""
        super().__init__(
            f'{package} is needed here and is not installed: pip install "ragaccel[{extra}]"'
        )


class BatchError(RagaccelError):
    """A call with several items gave another number of results, or the batcher was closed."""


class BatchTimeoutError(BatchError, TimeoutError):
    """What was asked was in no batch before its deadline, and was not sent."""


class IngestionError(RagaccelError):
    """A document could not be ingested, and it was asked to stop at the first, or too many are."""


class CacheClosedError(RagaccelError):
    """The cache was used after `close()`."""


class InvalidationError(RagaccelError):
    """An invalidation could not be written down where the cache's sharers would see it."""


class CollectionError(RagaccelError):
    """Base of the errors of a vector collection."""


class CollectionNotFoundError(CollectionError, FileNotFoundError):
    """There is no collection at the path."""


class CollectionClosedError(CollectionError):
    """The collection was used after `close()`."""


class CollectionLockedError(CollectionError, TimeoutError):
    """Another process or object already writes to the collection."""


class CorruptCollectionError(CollectionError):
    """The stored truth (documents or raw vectors) is damaged; the message says where."""
