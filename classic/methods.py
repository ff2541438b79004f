"""The ladder: every method by its name on the command line."""

from __future__ import annotations

from classic import continuous, q_learning
from classic.interface import Method

METHODS: dict[str, Method] = {**q_learning.METHODS, **continuous.METHODS}
