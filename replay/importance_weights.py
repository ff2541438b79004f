"""Importance weights that correct the bias of prioritized sampling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rl.bounds import at_least, between
from rl.resuming import Rules, rules
from rl.types import Array, Float32


@dataclass(frozen=True)
class BetaConfig:
    """The exponent of the importance weights, which changes linearly."""

    start: float = 0.4
    """Exponent at the first batch."""
    end: float = 1.0
    """Exponent from batch `batches` on."""
    batches: int = 200_000
    """Batches over which the exponent changes linearly from `start` to `end`."""

    on_resume: ClassVar[Rules] = rules(may="start end batches")

    def __post_init__(self) -> None:
        between(self, 0, 1, "start", "end", what="an exponent")
        at_least(self, 1, "batches", unit="batch")

    def at(self, drawn: int) -> float:
        """Return beta after ``drawn`` batches, linear from `start` to `end` (Schaul et al. 2016, section 3.4)."""
        return self.start + (self.end - self.start) * min(drawn / self.batches, 1.0)


def importance_weights(probability: Array, beta: float) -> Float32:
    """Return weights (N * P(i))^-beta, divided by the batch's maximum: float32 [B] (Schaul et al. 2016, section 3.4).

    ``probability`` [B] is P(i), the probability of each draw over all shards. N, the number of items stored, cancels.
    With uniform sampling every weight is 1.
    """
    weights = np.asarray(probability, np.float64) ** -beta
    return np.asarray(weights / weights.max(), np.float32)
