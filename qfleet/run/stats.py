"""Totals of a run while it goes on, for the progress display, the logs and the summary."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from qfleet.config import TrainConfig
from rl.envs.make import frames_per_step
from rl.types import EpisodeResult

OnEpisode = Callable[[EpisodeResult], None]  # told each episode of training that ends

RECENT = 40  # episodes of a mean training return
RATE_WINDOW = 30.0  # seconds that steps/s and updates/s look back
RATE_LEAST = 1.0  # seconds after the clock's start before there are rates


class RunStats:
    """Counts over the whole run, a resumed one's earlier parts included.

    Use:

        stats.start_clock()
        stats.actor(index, agent_steps, episodes)  # and stats.learned(values), again and again
        row = stats.row(epsilon_min)

    The greedy end: the environments whose epsilon is at most `exploration.greedy_below`.
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
        self._began = time.monotonic()
        self._ended: float | None = None
        self._actor_steps: dict[int, float] = {}
        self.learner: dict[str, Any] = {"updates": self.base_updates}
        self._learner_heard = False
        self.recent: deque[EpisodeResult] = deque(maxlen=RECENT)
        self.greedy: deque[float] = deque(maxlen=RECENT // 2)
        self.greedy_episodes = 0  # of the greedy end
        self._by_epsilon: dict[float, deque[float]] = {}
        self._marks: deque[tuple[float, int, int]] = deque()  # seconds, agent steps, updates

    def actor(self, index: int, agent_steps: float, episodes: Iterable[EpisodeResult]) -> None:
        """Take an actor's agent steps so far and its newly finished episodes; a restarted actor counts from 0 again."""
        before = self._actor_steps.get(index, 0.0)
        made = int(agent_steps - before if agent_steps >= before else agent_steps)
        self.agent_steps += made
        if index not in self._actor_steps:
            self._not_a_speed(made, 0)
        self._actor_steps[index] = agent_steps
        for episode in episodes:
            self.episodes += 1
            self.recent.append(episode)
            if self._on_episode is not None:
                self._on_episode(episode)
            if self._config.exploration.kind == "ladder" and self._config.fleet_environments > 1:
                self._by_epsilon.setdefault(episode.epsilon, deque(maxlen=10)).append(episode.episode_return)
            if episode.epsilon <= self._config.exploration.greedy_below:
                self.greedy.append(episode.episode_return)
                self.greedy_episodes += 1

    def learned(self, values: Mapping[str, Any]) -> None:
        """Take the learner's newest figures."""
        before = self.updates
        self.learner = dict(values)
        if not self._learner_heard:
            self._learner_heard = True
            self._not_a_speed(0, self.updates - before)

    def _not_a_speed(self, steps: int, updates: int) -> None:
        """Leave out of the rates what a component made before it was first polled."""
        self._marks = deque((at, s + steps, u + updates) for at, s, u in self._marks)

    @property
    def updates(self) -> int:
        """Learner updates, those before a resume included."""
        return int(self.learner["updates"])

    @property
    def clock(self) -> int:
        """What evaluations are timed by: agent steps, or in an offline run learner updates."""
        return self.updates if self._config.offline else self.agent_steps

    @property
    def wall_seconds(self) -> float:
        """Seconds of training, without what came before the first component was ready."""
        return self._base_seconds + (self._ended or time.monotonic()) - self._began

    @property
    def greedy_return(self) -> float:
        """Mean of the last training returns of the greedy end; NaN before its first episode."""
        return float(np.mean(self.greedy)) if self.greedy else float("nan")

    @property
    def train_return(self) -> float:
        """Mean of the last RECENT training returns of all environments; NaN before the first episode."""
        return float(np.mean([e.episode_return for e in self.recent])) if self.recent else float("nan")

    def returns_by_epsilon(self) -> dict[float, float]:
        """Mean of the last 10 training returns at each epsilon of a ladder; empty under a schedule (or a ladder of one)."""
        return {epsilon: float(np.mean(values)) for epsilon, values in sorted(self._by_epsilon.items())}

    def stop_clock(self) -> None:
        """Training ends now: what follows (the last checkpoint, ending processes) does not count."""
        self._ended = time.monotonic()

    def start_clock(self) -> None:
        """Training begins now: what came before (starting processes) does not count."""
        self._began = time.monotonic()
        self._marks.clear()

    def rates(self) -> tuple[float, float]:
        """Agent steps/s and updates/s over the last RATE_WINDOW seconds; NaN before RATE_LEAST have passed."""
        now = time.monotonic()
        self._marks.append((now, self.agent_steps, self.updates))
        while len(self._marks) > 2 and self._marks[1][0] < now - RATE_WINDOW:
            self._marks.popleft()
        then, steps, updates = self._marks[0]
        seconds = now - then
        if seconds < RATE_LEAST:
            return math.nan, math.nan
        return (self.agent_steps - steps) / seconds, (self.updates - updates) / seconds

    def row(self, epsilon_min: float) -> dict[str, Any]:
        """The current figures, by the names of metrics.csv, and the learner's own."""
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
        """What a checkpoint keeps of the totals, for ``earlier`` of a resumed run."""
        return {
            "agent_steps": self.agent_steps,
            "episodes": self.episodes,
            "wall_seconds": self.wall_seconds,
            "evaluation_seconds": self.evaluation_seconds,
        }
