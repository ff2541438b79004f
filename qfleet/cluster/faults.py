"""Shortens error messages of Ray to one line."""

from __future__ import annotations


def last_line(error: Exception) -> str:
    """The last non-empty line of an error's message, or its repr if the message is empty.

    For an error raised in a worker, the last line is the error itself; the lines before it are its traceback.
    """
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), repr(error))


def first_line(error: Exception) -> str:
    """The first non-empty line of an error's message, or its repr if the message is empty."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))
