"""The evaluation scheduler: when to evaluate, which weights are best, whether the run is solved (docs/evaluation.md).

There are three kinds of evaluation:

- `quick`, of few episodes: every period, and when the greedy return comes near the goal;
- `full`: after a quick evaluation of the same weights that reached the goal; and every period, once the best weights
  were chosen by a full evaluation;
- `confirm`, on fresh episodes: after a full evaluation of the same weights that reached the goal.

A run is solved when a `confirm` evaluation reaches the goal. The greedy return is the mean training return of the
greedy environments: those whose epsilon is at most `exploration.greedy_below`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from qfleet.run.stats import RunStats
from rl.evaluation import EvaluationConfig, EvaluationResult
from rl.ports import Weights

Kind = Literal["quick", "full", "confirm"]
GREEDY_EPISODES = 10  # new ones in the greedy environments before the greedy return may start an evaluation


@dataclass(frozen=True, eq=False)
class Candidate:
    """Weights under evaluation, and the agent steps and learner updates at which they were taken."""

    weights: Weights
    version: int
    agent_steps: int
    updates: int


class EvaluationScheduler:
    """Decides which evaluation to play when; it does not play them.

        kind = scheduler.due(stats)  # None: no evaluation now
        result = evaluator.evaluate(weights, scheduler.episodes(kind))
        next_kind, is_best = scheduler.record(kind, result)  # next_kind: to play next with the same weights, or None

    ``start`` is the run's current number of agent steps (offline: learner updates). ``earlier`` is the `state` of the
    scheduler before a resume.
    """

    def __init__(self, config: EvaluationConfig, start: int = 0, earlier: Mapping[str, Any] | None = None) -> None:
        self._config = config
        earlier = earlier or {}
        self.best_return: float | None = earlier.get("best_return")
        self._best_is_full = bool(earlier.get("best_is_full", False))
        self.last_return: float | None = earlier.get("last_return")
        self._confirmed_goal: float | None = earlier.get("reached")  # the highest goal that an evaluation confirmed
        self._next_periodic = start + config.period
        self._greedy_episodes_seen = 0  # stats.greedy_episodes when the last evaluation started

    @property
    def solved(self) -> bool:
        """Whether a `confirm` evaluation has reached the goal, or a higher goal before a resume."""
        return self._confirmed_goal is not None and self._config.goal <= self._confirmed_goal

    def due(self, stats: RunStats) -> Kind | None:
        """The kind of evaluation that should start now, or None."""
        c = self._config
        if self.solved and c.stop_when_solved:
            return None
        new_episodes = stats.greedy_episodes - self._greedy_episodes_seen
        near_goal = stats.greedy_return >= c.goal - c.margin and new_episodes >= GREEDY_EPISODES
        periodic = bool(c.period) and stats.steps_or_updates >= self._next_periodic
        if not periodic and (self.solved or not near_goal):
            return None
        if periodic:
            self._next_periodic = stats.steps_or_updates + c.period
        self._greedy_episodes_seen = stats.greedy_episodes
        return "full" if periodic and self._best_is_full else "quick"

    def episodes(self, kind: Kind) -> int:
        """How many episodes an evaluation of ``kind`` plays."""
        return self._config.quick_episodes if kind == "quick" else self._config.episodes

    def record(self, kind: Kind, result: EvaluationResult) -> tuple[Kind | None, bool]:
        """Record the result of an evaluation of ``kind``.

        Returns the kind that must follow on the same weights (or None), and whether these weights are the best so far.
        If weights are evaluated several times, only the last evaluation ranks them: a mean that was high enough to
        require another evaluation is biased upwards, the mean of the last one is not.
        """
        mean = result.mean_return
        self.last_return = mean
        next_kind = self._next_kind(kind, mean)
        is_best = next_kind is None and self._is_best(kind, mean)
        if is_best:
            self.best_return, self._best_is_full = mean, kind != "quick"
        if kind == "confirm" and mean >= self._config.goal:
            self._confirmed_goal = self._config.goal
        return next_kind, is_best

    def _next_kind(self, kind: Kind, mean: float) -> Kind | None:
        if mean < self._config.goal or kind == "confirm" or self.solved:
            return None
        return "full" if kind == "quick" else "confirm"

    def _is_best(self, kind: Kind, mean: float) -> bool:
        """Whether ``mean`` is the best: a longer evaluation beats a quick one, else the higher mean wins."""
        if self.best_return is None or (kind != "quick") > self._best_is_full:
            return True
        return (kind != "quick") == self._best_is_full and mean > self.best_return

    def state(self) -> dict[str, Any]:
        """The state that a checkpoint keeps; pass it as ``earlier`` to the scheduler of a resumed run."""
        return {
            "best_return": self.best_return,
            "best_is_full": self._best_is_full,
            "last_return": self.last_return,
            "solved": self.solved,
            "reached": self._confirmed_goal,
        }
