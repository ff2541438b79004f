"""Writing files that survive a power cut."""

from __future__ import annotations

import os
import uuid
from pathlib import Path


def write_synced(path: Path, data: bytes) -> None:
    """Write ``data`` to a temporary file, fsync it and rename it to ``path``. Raises OSError.

    Several processes may write the same path at once: each has a temporary file of its own, and the last rename wins.
    The rename itself survives a power cut only after ``sync(path.parent)``.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def sync(directory: Path) -> None:
    """Fsync ``directory``, so that renames in it survive a power cut. Raises OSError."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
