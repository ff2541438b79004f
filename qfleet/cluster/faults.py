"""What Ray's errors say, in a line."""

from __future__ import annotations


def last_line(error: Exception) -> str:
    """Of an error that was raised in a worker: the error itself, behind the traceback."""
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), repr(error))


def first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))
