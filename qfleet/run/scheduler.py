"""The evaluation scheduler: when to evaluate, which weights are best, whether the run is solved (docs/evaluation.md).

Three kinds of evaluation: `quick` (few episodes: by period, and when the training returns of the greedy end come near
the goal), `full` (after a quick one of the same weights at the goal; and by period, once the best weights were judged
by one) and `confirm` (fresh episodes of the same weights after a full one at the goal). A run is solved when a
`confirm` reaches the goal. The greedy end: the environments whose epsilon is at most `exploration.greedy_below`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from qfleet.run.stats import RunStats
from rl.evaluation import EvaluationConfig, EvaluationResult
from rl.ports import Weights

Kind = Literal["quick", "full", "confirm"]
GREEDY_EPISODES = 10  # training episodes of the greedy end before its mean may call for an evaluation


@dataclass(frozen=True, eq=False)
class Candidate:
    """Weights under evaluation, with the agent steps and the learner updates that they come from."""

    weights: Weights
    version: int
    agent_steps: int
    updates: int


class EvaluationScheduler:
    """Decides about evaluations; plays none itself.

    Use:

        kind = scheduler.due(stats)  # None: no evaluation now
        result = evaluator.evaluate(weights, scheduler.episodes(kind))
        follow, best = scheduler.take(kind, result)  # follow: the kind to play next with the same weights, or None
    """

    def __init__(self, config: EvaluationConfig, clock: int = 0, earlier: Mapping[str, Any] | None = None) -> None:
        self._config = config
        earlier = earlier or {}
        self.best_return: float | None = earlier.get("best_return")
        self._best_is_full = bool(earlier.get("best_is_full", False))
        self.last_return: float | None = earlier.get("last_return")
        self._reached: float | None = earlier.get("reached")  # the highest goal that was confirmed
        self._next = clock + config.period
        self._greedy_seen = 0  # episodes of the greedy end when the last evaluation began

    @property
    def solved(self) -> bool:
        """Whether the goal, or a higher one before a resume, was confirmed."""
        return self._reached is not None and self._config.goal <= self._reached

    def due(self, stats: RunStats) -> Kind | None:
        """The kind of evaluation that should start now, or None."""
        c = self._config
        if self.solved and c.stop_when_solved:
            return None
        near = stats.greedy_return >= c.goal - c.margin and stats.greedy_episodes - self._greedy_seen >= GREEDY_EPISODES
        periodic = bool(c.period) and stats.clock >= self._next
        if not periodic and (self.solved or not near):
            return None
        if periodic:
            self._next = stats.clock + c.period
        self._greedy_seen = stats.greedy_episodes
        return "full" if periodic and self._best_is_full else "quick"

    def episodes(self, kind: Kind) -> int:
        """How many episodes an evaluation of ``kind`` plays."""
        return self._config.quick_episodes if kind == "quick" else self._config.episodes

    def take(self, kind: Kind, result: EvaluationResult) -> tuple[Kind | None, bool]:
        """Judge a finished evaluation: (the kind that must follow on the same weights or None, are these the best yet).

        Only the last of several evaluations of the same weights ranks them. A mean high enough to call for another
        evaluation is too high on average; the mean of that other one is not.
        """
        mean = result.mean_return
        self.last_return = mean
        follow = self._next_kind(kind, mean)
        best = follow is None and self._is_best(kind, mean)
        if best:
            self.best_return, self._best_is_full = mean, kind != "quick"
        if kind == "confirm" and mean >= self._config.goal:
            self._reached = self._config.goal
        return follow, best

    def _next_kind(self, kind: Kind, mean: float) -> Kind | None:
        if mean < self._config.goal or kind == "confirm" or self.solved:
            return None
        return "full" if kind == "quick" else "confirm"

    def _is_best(self, kind: Kind, mean: float) -> bool:
        """The higher mean among evaluations of as many episodes; one of many episodes before any of few."""
        if self.best_return is None or (kind != "quick") > self._best_is_full:
            return True
        return (kind != "quick") == self._best_is_full and mean > self.best_return

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, for ``earlier`` of a resumed run's scheduler."""
        return {
            "best_return": self.best_return,
            "best_is_full": self._best_is_full,
            "last_return": self.last_return,
            "solved": self.solved,
            "reached": self._reached,
        }
