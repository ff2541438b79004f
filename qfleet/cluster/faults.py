"""Errors of Ray in one line."""

from __future__ import annotations


def last_line(error: Exception) -> str:
    """The last line of an error's message: of one raised in a worker the error itself, without its traceback."""
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), repr(error))


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its repr where the message is empty."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))
