"""What the operating system lends: memory, processors, forks, and files that SQLite holds open."""

from ragaccel.resources.collector import tame_gc
from ragaccel.resources.connections import Connections, DamagedFileError
from ragaccel.resources.container import cpu_limit, memory_limit_bytes, memory_used_bytes
from ragaccel.resources.errands import Errands
from ragaccel.resources.forks import Forkable
from ragaccel.resources.guard import MemoryEvent, MemoryGuard
from ragaccel.resources.heap import anonymous_bytes
from ragaccel.resources.lazy import Lazy
from ragaccel.resources.living import Living
from ragaccel.resources.process import ProcessReading, ProcessTree
from ragaccel.resources.relief import Relief, Relievable

__all__ = [
    "Connections",
    "DamagedFileError",
    "Errands",
    "Forkable",
    "Lazy",
    "Living",
    "MemoryEvent",
    "MemoryGuard",
    "ProcessReading",
    "ProcessTree",
    "Relief",
    "Relievable",
    "anonymous_bytes",
    "cpu_limit",
    "memory_limit_bytes",
    "memory_used_bytes",
    "tame_gc",
]
