"""A collection that is opened at its first use, shared by the copies of an adapter."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

from ragaccel.errors import CollectionClosedError, UnsupportedComponentError
from ragaccel.vectors.collection import VectorCollection

if TYPE_CHECKING:
    from typing_extensions import Self


class CollectionHandle:
    """Opens a collection when it is first asked for; after `close` it stays closed.

    Args:
        path: The collection's folder; None for memory.
        options: What `VectorCollection.open` takes besides.
    """

    def __init__(self, path: str | os.PathLike[str] | None, options: dict[str, Any]) -> None:
        self.path = None if path is None else os.fspath(path)
        self.options = options
        self._lock = threading.Lock()
        self._collection: VectorCollection | None = None
        self._closed = False

    def get(self) -> VectorCollection:
        """Return the collection.

        Raises:
            CollectionClosedError: It was closed.
        """
        if self._collection is None:
            with self._lock:
                if self._closed:
                    raise CollectionClosedError("the collection is closed; open it again.")
                if self._collection is None:
                    self._collection = VectorCollection.open(self.path, **self.options)
        return self._collection

    def close(self) -> None:
        """Close the collection, or see to it that it is never opened."""
        with self._lock:
            self._closed = True
            if self._collection is not None:
                self._collection.close()

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the place; the process that it came from may still be writing there."""
        if self.path is None and self._collection is not None:
            raise UnsupportedComponentError(
                "a collection in memory cannot be pickled; give it a path."
            )
        options = self.options if self.path is None else {**self.options, "read_only": True}
        return CollectionHandle, (self.path, options)
