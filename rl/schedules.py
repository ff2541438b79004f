"""Values that change over agent steps or learner updates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def linear(start: float, end: float, steps: int, t: int) -> float:
    """The value at ``t`` on the straight line from ``start`` at 0 to ``end`` at ``steps``, and ``end`` from there on."""
    return float(start + (end - start) * min(max(t, 0) / steps, 1.0))


def piecewise(knots: Sequence[tuple[int, float]], t: int) -> float:
    """The value at ``t`` on straight lines between (t, value) ``knots``; the end values hold outside them."""
    return float(np.interp(t, [k[0] for k in knots], [k[1] for k in knots]))


def decayed(start: float, end: float, factor: float, t: int) -> float:
    """max(end, start * factor^t): geometric decay from ``start`` that stops at ``end``, and never rises to it."""
    return float(max(min(start, end), start * factor**t))
