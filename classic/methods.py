"""The ladder: every method by its name on the command line."""

from __future__ import annotations

from classic import continuous, monte_carlo, offline_q, prediction, q_learning, value_iteration
from classic.interface import Method

METHODS: dict[str, Method] = {
    **value_iteration.METHODS,
    **prediction.METHODS,
    **monte_carlo.METHODS,
    **q_learning.METHODS,
    **offline_q.METHODS,
    **continuous.METHODS,
}
