"""Values that change over agent steps or learner updates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def linear(start: float, end: float, steps: int, t: int) -> float:
    """Linear interpolation from ``start`` at t = 0 to ``end`` at t = ``steps``; ``end`` afterwards."""
    return float(start + (end - start) * min(max(t, 0) / steps, 1.0))


def piecewise(knots: Sequence[tuple[int, float]], t: int) -> float:
    """Linear interpolation at ``t`` between (t, value) ``knots``; constant before the first and after the last."""
    return float(np.interp(t, [k[0] for k in knots], [k[1] for k in knots]))


def decayed(start: float, end: float, factor: float, t: int) -> float:
    """Geometric decay max(end, start * factor^t). If ``start`` is below ``end``, the minimum is ``start`` instead."""
    return float(max(min(start, end), start * factor**t))
