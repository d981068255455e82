"""What the operating system lends: memory, processors, forks, and files that SQLite holds open."""

from ragaccel.resources.connections import Connections, DamagedFileError
from ragaccel.resources.container import cpu_limit, memory_limit_bytes, memory_used_bytes
from ragaccel.resources.forks import Forkable
from ragaccel.resources.process import ProcessReading, ProcessTree

__all__ = [
    "Connections",
    "DamagedFileError",
    "Forkable",
    "ProcessReading",
    "ProcessTree",
    "cpu_limit",
    "memory_limit_bytes",
    "memory_used_bytes",
]
