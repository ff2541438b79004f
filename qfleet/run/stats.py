"""Totals and rates of a run, for the progress display, the logs and the summary."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from qfleet.config import TrainConfig
from rl.envs.make import frames_per_step
from rl.exploration import Exploration
from rl.types import EpisodeResult

OnEpisode = Callable[[EpisodeResult], None]  # called with each finished training episode

RECENT = 40  # training episodes over which train_return is averaged; greedy_return: half as many
RATE_WINDOW = 30.0  # seconds over which steps/s and updates/s are measured
RATE_MIN_WINDOW = 1.0  # seconds of training before there are rates


class RunStats:
    """Totals of the whole run, including the time before a resume.

        stats.start_clock()
        stats.add_actor_report(index, agent_steps, episodes)  # repeatedly, with stats.add_learner_report(values)
        row = stats.row(epsilon_min)

    ``earlier`` is the state of the checkpoint that a resumed run starts from. The greedy environments are those whose
    epsilon is at most `exploration.greedy_below`. `set_environments` gives the number of environments that play, by
    default that of all wanted actors.
    """

    def __init__(
        self, config: TrainConfig, earlier: Mapping[str, Any] | None = None, on_episode: OnEpisode | None = None
    ) -> None:
        earlier = earlier or {}
        self._config, self._on_episode = config, on_episode
        self._frames_per_step = frames_per_step(config.env)
        self.agent_steps = int(earlier.get("agent_steps", 0))
        self.episodes = int(earlier.get("episodes", 0))
        self.base_steps, self.base_updates = self.agent_steps, int(earlier.get("updates", 0))
        self._base_seconds = float(earlier.get("wall_seconds", 0.0))
        self.evaluation_seconds = float(earlier.get("evaluation_seconds", 0.0))
        self._started = time.monotonic()
        self._stopped: float | None = None
        self._actor_steps: dict[int, float] = {}  # by actor: agent steps in its last report
        self.learner: dict[str, Any] = {"updates": self.base_updates}
        self._has_learner_report = False
        self._recent_episodes: deque[EpisodeResult] = deque(maxlen=RECENT)
        self._greedy_returns: deque[float] = deque(maxlen=RECENT // 2)
        self.greedy_episodes = 0  # finished in greedy environments
        self._returns_by_epsilon: dict[float, deque[float]] = {}  # of the ladder's epsilons, as in `_rounded`
        self.set_environments(config.total_environments)
        self._rate_points: deque[tuple[float, int, int]] = deque()  # (time, agent steps, updates) of calls of `rates`

    def set_environments(self, total: int) -> None:
        """The living actors have ``total`` environments: forget the returns at epsilons that none of them has."""
        exploration = Exploration(self._config.exploration, 0, total, total)
        epsilons = map(_rounded, exploration.epsilons(0)) if exploration.uses_ladder else ()
        kept = self._returns_by_epsilon
        self._returns_by_epsilon = {e: kept.get(e, deque(maxlen=10)) for e in epsilons}

    def add_actor_report(self, index: int, agent_steps: float, episodes: Iterable[EpisodeResult]) -> None:
        """Add an actor's report: its agent steps since its process started, and its newly finished episodes."""
        before = self._actor_steps.get(index, 0.0)
        made = int(agent_steps - before if agent_steps >= before else agent_steps)  # fewer: the actor was restarted
        self.agent_steps += made
        if index not in self._actor_steps:
            self._exclude_from_rates(made, 0)
        self._actor_steps[index] = agent_steps
        self.add_episodes(episodes)

    def forget_actor(self, index: int) -> None:
        """The process of an actor has ended: the steps of the next one count from 0."""
        self._actor_steps.pop(index, None)

    def add_episodes(self, episodes: Iterable[EpisodeResult]) -> None:
        """Add finished training episodes, without agent steps."""
        for episode in episodes:
            self.episodes += 1
            self._recent_episodes.append(episode)
            if self._on_episode is not None:
                self._on_episode(episode)
            if (returns := self._returns_by_epsilon.get(_rounded(episode.epsilon))) is not None:
                returns.append(episode.episode_return)
            if episode.epsilon <= self._config.exploration.greedy_below:
                self._greedy_returns.append(episode.episode_return)
                self.greedy_episodes += 1

    def add_learner_report(self, values: Mapping[str, Any]) -> None:
        """Replace the learner's metrics by its newest ones; ``values`` must hold "updates"."""
        before = self.updates
        self.learner = dict(values)
        if not self._has_learner_report:
            self._has_learner_report = True
            self._exclude_from_rates(0, self.updates - before)
        elif self.updates < before:  # it was started again from its last checkpoint
            self._exclude_from_rates(0, self.updates - before)

    def _exclude_from_rates(self, steps: int, updates: int) -> None:
        """Do not count these agent steps and updates as speed: they were made before the component's first report."""
        self._rate_points = deque((at, s + steps, u + updates) for at, s, u in self._rate_points)

    @property
    def updates(self) -> int:
        """Learner updates, including those before a resume."""
        return int(self.learner["updates"])

    @property
    def steps_or_updates(self) -> int:
        """Agent steps, or learner updates of an offline run: the unit of `evaluation.period`."""
        return self.updates if self._config.offline else self.agent_steps

    @property
    def wall_seconds(self) -> float:
        """Seconds of training, from `start_clock` to `stop_clock` or now, plus those before a resume."""
        return self._base_seconds + (self._stopped or time.monotonic()) - self._started

    @property
    def greedy_return(self) -> float:
        """Mean return of the last RECENT / 2 training episodes of the greedy environments; NaN before the first."""
        return float(np.mean(self._greedy_returns)) if self._greedy_returns else float("nan")

    @property
    def train_return(self) -> float:
        """Mean return of the last RECENT training episodes of all environments; NaN before the first."""
        episodes = self._recent_episodes
        return float(np.mean([e.episode_return for e in episodes])) if episodes else float("nan")

    def returns_by_epsilon(self) -> dict[float, float]:
        """Mean of the last 10 training returns at each epsilon, to six digits, of the living environments' ladder.

        Empty without a ladder of two or more.
        """
        return {e: float(np.mean(values)) for e, values in sorted(self._returns_by_epsilon.items()) if values}

    def stop_clock(self) -> None:
        """Stop `wall_seconds` at the end of training, before the last checkpoint and the shutdown of processes."""
        self._stopped = time.monotonic()

    def start_clock(self) -> None:
        """Start `wall_seconds` and the rates at the beginning of training, after all processes have started."""
        self._started = time.monotonic()
        self._rate_points.clear()

    def rates(self) -> tuple[float, float]:
        """Agent steps/s and updates/s over the last RATE_WINDOW seconds; NaN in the first RATE_MIN_WINDOW seconds."""
        now = time.monotonic()
        points = self._rate_points
        points.append((now, self.agent_steps, self.updates))
        while len(points) > 2 and points[1][0] < now - RATE_WINDOW:
            points.popleft()
        then, steps, updates = points[0]
        seconds = now - then
        if seconds < RATE_MIN_WINDOW:
            return math.nan, math.nan
        return (self.agent_steps - steps) / seconds, (self.updates - updates) / seconds

    def row(self, epsilon_min: float) -> dict[str, Any]:
        """The current metrics by the column names of metrics.csv, and all metrics of the learner.

        ``epsilon_min``: the present epsilon of the least exploring environment.
        """
        steps_per_s, updates_per_s = self.rates()
        inserted = max(float(self.learner.get("replay_inserted", 0.0)), 1.0)
        return {
            **self.learner,
            "wall_seconds": self.wall_seconds,
            "agent_steps": self.agent_steps,
            "frames": self.agent_steps * self._frames_per_step,
            "updates": self.updates,
            "steps_per_s": steps_per_s,
            "updates_per_s": updates_per_s,
            "samples_per_insert": float(self.learner.get("replay_sampled", 0.0)) / inserted,
            "epsilon_min": epsilon_min,
            "train_return": self.train_return,
            "greedy_return": self.greedy_return,
            "episodes": self.episodes,
            "evaluation_seconds": self.evaluation_seconds,
        }

    def state(self) -> dict[str, Any]:
        """The totals that a checkpoint keeps; pass them as ``earlier`` to the stats of a resumed run."""
        return {
            "agent_steps": self.agent_steps,
            "episodes": self.episodes,
            "wall_seconds": self.wall_seconds,
            "evaluation_seconds": self.evaluation_seconds,
        }


def _rounded(epsilon: float) -> float:
    """``epsilon`` to six digits: actors on other processors may compute another last digit."""
    return float(f"{epsilon:.6g}")
