"""What the operating system lends: forks, and files that SQLite holds open."""

from ragaccel.resources.connections import Connections, DamagedFileError
from ragaccel.resources.forks import Forkable

__all__ = ["Connections", "DamagedFileError", "Forkable"]
