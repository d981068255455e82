"""`tame_gc`: fewer and shorter pauses of the garbage collector beside a large heap.

The collector looks for objects that refer to each other in a circle, and for that it walks all
containers that live long, in the middle of some request. Measured with `tests/benchmarks/memory.py`
(CPython 3.11, 500,000 cached documents, requests that make 300 each; medians of three runs):

    ==========================  =======  =======  ========
    collector                   mean µs  p99 µs   worst ms
    ==========================  =======  =======  ========
    as Python has it            401      854      722
    `gc.freeze` alone           415      875      52
    a higher threshold alone    236      695      1.2
    `tame_gc`                   235      714      1.6
    forced every 100 requests   6,366    6,513    691
    ==========================  =======  =======  ========

The threshold makes collections rare, and freezing makes the rare full one short. Where requests
make few containers at once the collector hardly runs, and taming it gains nothing.

What was measured and does not help is not here. Collecting by force: see above. Pools of arrays: a
lock and a copy take 6 times as long as the allocator, which is a pool by itself, or longer. One
buffer for assembling batches gains nothing up to 10 MiB, and a quarter at 50 MiB, which nothing
here assembles. Weak references to results find them gone, as they are freed at their last use. What
helps most is not to have the objects: a cache's entries are bytes, which the collector skips.
"""

from __future__ import annotations

import contextlib
import gc
from typing import TYPE_CHECKING

from ragaccel.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def tame_gc(threshold: int = 50_000) -> Iterator[None]:
    """Keep the garbage collector off what has been loaded so far, and let it run seldom.

    Enter it once what lives long is loaded and a few requests were answered. Where more and more is
    kept later on, leave it and enter it again now and then. Objects of before that refer to each
    other in a circle are not freed until it is left. It concerns the whole process, so it is for
    applications, not for libraries. CPython only.

    Args:
        threshold: How many more containers are made than freed before the youngest are looked at;
            Python's own is 700 to 2,000.

    Raises:
        ConfigurationError: `threshold` is less than 1.
    """
    if threshold < 1:
        raise ConfigurationError(f"threshold must be at least 1, got {threshold}.")
    before, was_frozen = gc.get_threshold(), gc.get_freeze_count()
    gc.collect()
    gc.freeze()
    gc.set_threshold(threshold, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
        if not was_frozen:  # else it is others' to do, and it would be all that is frozen
            gc.unfreeze()
