"""The judge: when to evaluate, which weights are best, and whether the run is solved (docs/evaluation.md).

Three kinds of evaluation: `quick` (few episodes: by period, and when the greedy end's training returns come near the goal),
`full` (after a quick one of the same weights at the goal; and by period, once the best weights were judged by one) and
`confirm` (fresh episodes of the same weights after a full one at the goal). Solved is a confirmed one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from launch.tally import Tally
from rl.evaluation import EvaluationConfig, EvaluationResult
from rl.ports import Weights

Kind = Literal["quick", "full", "confirm"]
GREEDY_EPISODES = 10  # training episodes of the greedy end before its mean may call for an evaluation


@dataclass(frozen=True, eq=False)
class Candidate:
    """Weights under evaluation."""

    weights: Weights
    version: int
    agent_steps: int
    updates: int


class Judge:
    """Decides about evaluations; plays none itself."""

    def __init__(self, config: EvaluationConfig, clock: int = 0, earlier: Mapping[str, Any] | None = None) -> None:
        self._config = config
        earlier = earlier or {}
        self.best_return: float | None = earlier.get("best_return")  # as the last evaluation of these weights says
        self._best_version: int | None = earlier.get("best_version")
        self._best_is_full = bool(earlier.get("best_is_full", False))
        self.last_return: float | None = earlier.get("last_return")
        reached = earlier.get("goal") if earlier.get("solved") else None
        self.solved = reached is not None and config.goal <= reached
        self._next = clock + config.period

    def due(self, tally: Tally) -> Kind | None:
        """The evaluation that should start now, if any."""
        c = self._config
        if self.solved and c.stop_when_solved:
            return None
        near = tally.greedy_return >= c.goal - c.margin and tally.greedy_since_evaluation >= GREEDY_EPISODES
        periodic = bool(c.period) and tally.clock >= self._next
        if not periodic and (self.solved or not near):
            return None
        if periodic:
            self._next = tally.clock + c.period
        tally.greedy_since_evaluation = 0
        return "full" if periodic and self._best_is_full else "quick"

    def episodes(self, kind: Kind) -> int:
        """How many episodes an evaluation of ``kind`` plays."""
        return self._config.quick_episodes if kind == "quick" else self._config.episodes

    def take(self, kind: Kind, version: int, result: EvaluationResult) -> tuple[Kind | None, bool]:
        """Judge a finished evaluation of the weights ``version``.

        Returns the kind that must follow on the same weights, and whether these weights are the best, as of this evaluation.
        """
        mean = result.mean_return
        self.last_return = mean
        best = self._is_best(kind, version, mean)
        if best:
            self.best_return, self._best_version, self._best_is_full = mean, version, kind != "quick"
        if kind == "confirm" and mean >= self._config.goal:
            self.solved = True
        return self._next_kind(kind, mean), best

    def _is_best(self, kind: Kind, version: int, mean: float) -> bool:
        """A later evaluation of the same weights replaces the earlier, a full one any quick one; else the mean tells."""
        if self.best_return is None or version == self._best_version:
            return True
        if kind == "confirm" and mean >= self._config.goal and not self.solved:
            return True  # an earlier full one may have been lost before its second look
        if (kind != "quick") != self._best_is_full:
            return kind != "quick"
        return mean > self.best_return

    def _next_kind(self, kind: Kind, mean: float) -> Kind | None:
        if mean < self._config.goal or self.solved:
            return None
        return "full" if kind == "quick" else "confirm"

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "best_return": self.best_return,
            "best_version": self._best_version,
            "best_is_full": self._best_is_full,
            "last_return": self.last_return,
            "solved": self.solved,
            "goal": self._config.goal if math.isfinite(self._config.goal) else None,
        }
