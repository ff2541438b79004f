"""Epsilon of each environment: a schedule over agent steps, or the fixed epsilon ladder of Ape-X."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from rl.bounds import at_least, between
from rl.errors import BadSetting
from rl.resuming import Rules, rules
from rl.schedules import linear, piecewise
from rl.types import Float64


@dataclass(frozen=True)
class ExplorationConfig:
    """How actors explore."""

    kind: Literal["ladder", "linear", "piecewise"] = "ladder"
    """ladder: one fixed epsilon per environment (Ape-X); linear, piecewise: one schedule for all environments."""
    start: float = 1.0
    """linear: epsilon at agent step 0."""
    end: float = 0.01
    """linear: epsilon from agent step `steps` on."""
    steps: int = 50_000
    """linear: agent steps over which epsilon changes from `start` to `end`."""
    knots: tuple[tuple[int, float], ...] = ((0, 1.0), (50_000, 0.1), (500_000, 0.01))
    """piecewise: (agent step, epsilon) pairs with linear interpolation between them."""
    ladder_epsilon: float = 0.4
    """ladder: epsilon of environment 0, which explores most (Ape-X: 0.4)."""
    ladder_alpha: float = 7.0
    """ladder: environment i of N has `ladder_epsilon`^(1 + `ladder_alpha` * i / (N - 1)) (Ape-X: 7)."""
    greedy_below: float = 0.05
    """The greedy return is the mean training return of the environments whose epsilon is at most this."""

    on_resume: ClassVar[Rules] = rules(may="kind start end steps knots ladder_epsilon ladder_alpha greedy_below")

    def __post_init__(self) -> None:
        between(self, 0, 1, "start", "end", "ladder_epsilon", "greedy_below", what="a probability")
        at_least(self, 1, "steps", unit="agent step")
        times = [k[0] for k in self.knots]
        if not times or times != sorted(set(times)):
            message = (
                f"has agent steps {times}: write at least one (agent step, epsilon) pair, in increasing order of steps"
            )
            raise BadSetting(type(self), "knots", message)
        epsilons = [k[1] for k in self.knots]
        if not all(0.0 <= epsilon <= 1.0 for epsilon in epsilons):
            raise BadSetting(type(self), "knots", f"has epsilons {epsilons}: write probabilities from 0 to 1")


def ladder(epsilon: float, alpha: float, count: int) -> Float64:
    """The epsilon ladder eps_i = eps^(1 + alpha * i / (count - 1)), [count] (Horgan et al. 2018, Ape-X, section 4).

    ``count`` must be at least 2. Environment 0 explores most.
    """
    return np.asarray(epsilon ** (1.0 + alpha * np.arange(count) / (count - 1)), dtype=np.float64)


class Exploration:
    """The epsilons of one actor's ``count`` environments.

    They are the environments ``offset`` to ``offset + count - 1`` of the ``total`` environments of all living actors.
    """

    def __init__(self, config: ExplorationConfig, offset: int, count: int, total: int) -> None:
        self.config = config
        self._count = count
        self.move(offset, total)

    def move(self, offset: int, total: int) -> None:
        """Change the place of the environments, because the number of living actors has changed."""
        config, self.total = self.config, total
        self.uses_ladder = config.kind == "ladder" and total > 1
        if self.uses_ladder:
            self._fixed = ladder(config.ladder_epsilon, config.ladder_alpha, total)[offset : offset + self._count]

    def epsilons(self, agent_steps: int) -> Float64:
        """The epsilons, [count], after ``agent_steps`` agent steps of all actors together.

        If all living actors together have a single environment, the kind "ladder" uses the linear schedule.
        """
        if self.uses_ladder:
            return self._fixed
        if self.config.kind == "piecewise":
            value = piecewise(self.config.knots, agent_steps)
        else:
            value = linear(self.config.start, self.config.end, self.config.steps, agent_steps)
        return np.full(self._count, value)
