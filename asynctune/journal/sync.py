"""Sync: what was written, on the disk."""

import os
from pathlib import Path

__all__ = ["sync_data", "sync_directory"]


def sync_data(descriptor: int) -> None:
    """Return once a file's bytes are on the disk."""
    (os.fdatasync if hasattr(os, "fdatasync") else os.fsync)(descriptor)


def sync_directory(directory: Path) -> None:
    """Return once the names in a directory are on the disk."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
