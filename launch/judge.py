"""The judge: when to evaluate, which weights are best, and whether the run is solved.

Three kinds of evaluation: `quick` (periodic, few episodes), `full` (when a quick one or the greedy end's training returns
reach the goal) and `confirm` (fresh episodes of the same weights after a full one at the goal). Solved is a confirmed one.
"""

from __future__ import annotations

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
        self.best_return: float | None = earlier.get("best_return")
        self.last_return: float | None = earlier.get("last_return")
        self.solved = bool(earlier.get("solved", False))
        self.solved_return: float | None = earlier.get("solved_return")
        self._next = clock + config.period

    def due(self, tally: Tally) -> Kind | None:
        """The evaluation that should start now, if any."""
        c = self._config
        if self.solved:
            return None
        hopeful = tally.greedy_return >= c.goal - c.margin and tally.greedy_since_evaluation >= GREEDY_EPISODES
        periodic = bool(c.period) and tally.clock >= self._next
        if not hopeful and not periodic:
            return None
        self._next = tally.clock + c.period
        tally.greedy_since_evaluation = 0
        return "full" if hopeful else "quick"

    def episodes(self, kind: Kind) -> int:
        """How many episodes an evaluation of ``kind`` plays."""
        return self._config.quick_episodes if kind == "quick" else self._config.episodes

    def take(self, kind: Kind, result: EvaluationResult) -> tuple[Kind | None, bool]:
        """Judge a finished evaluation: (the kind that must follow on the same weights, whether these are the best yet)."""
        mean = result.mean_return
        self.last_return = mean
        confirmed = kind == "confirm" and mean >= self._config.goal
        best = confirmed or self.best_return is None or mean > self.best_return  # a confirmed goal beats a lucky few
        if best:
            self.best_return = mean
        if mean < self._config.goal:
            return None, best
        if kind == "confirm":
            self.solved, self.solved_return = True, mean
            return None, best
        return ("full" if kind == "quick" else "confirm"), best

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "best_return": self.best_return,
            "last_return": self.last_return,
            "solved": self.solved,
            "solved_return": self.solved_return,
        }
