"""The two kinds of trouble that a user meets: bad input, and a fault at run time."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BadInput(Exception):
    """A user's mistake, found before anything starts; one line: what, where, what to write instead (exit status 2)."""


class RunFault(Exception):
    """A fault at run time that the run could not mend by itself (exit status 1)."""


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint naming the known word nearest to ``word``, or the first few known ones when none is near."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    return "known: " + ", ".join(known[:8]) + (", ..." if len(known) > 8 else "")
