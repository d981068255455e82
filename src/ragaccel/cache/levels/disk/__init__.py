"""The disk level: entries, invalidations and leases in files that several processes share."""

from ragaccel.cache.levels.disk.level import DiskLevel

__all__ = ["DiskLevel"]
