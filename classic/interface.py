"""The interface of every classic method: its settings, the monitor that it reports to, and what it returns.

Its core is `ActionValues`, observations [N, ...] -> q [N, A]. `rl.policies` turns q into greedy, epsilon-greedy or
softmax actions; a table, a regressor and a network differ in nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from rl.envs.config import EnvConfig
from rl.envs.registry import has_time_limit
from rl.envs.spaces import SpaceKind
from rl.evaluation import Policy
from rl.policies import greedy
from rl.types import Array, EpisodeResult

STEP_LIMIT = 1_000  # of an episode, where the environment has none: a policy may go in circles for ever
STEP_LIMITS = {"CliffWalking-v1": 200, "CliffWalkingSlippery-v1": 200}

ActionValues = Callable[[Array], Array]  # observations [N, ...] -> q [N, A]


class Monitor(Protocol):
    """Receives the reports of a method while it learns."""

    @property
    def folder(self) -> Path | None:
        """Directory where a method may keep more than what it returns; None: nowhere."""

    def episode(self, result: EpisodeResult) -> None:
        """An episode of training has ended."""

    def report(self, at: int, figures: Mapping[str, float]) -> None:
        """Figures after ``at`` iterations, episodes or steps, whichever the method counts."""

    def note(self, text: str) -> None:
        """A line of text for the user."""

    def hand_over(self) -> None:
        """Leave the screen to the method's own display."""


class RecordingMonitor:
    """A monitor that keeps what is reported."""

    folder: Path | None = None

    def __init__(self) -> None:
        self.episodes: list[EpisodeResult] = []
        self.rows: list[tuple[int, dict[str, float]]] = []

    def episode(self, result: EpisodeResult) -> None:
        """Keep the episode in `episodes`."""
        self.episodes.append(result)

    def report(self, at: int, figures: Mapping[str, float]) -> None:
        """Keep (at, figures) in `rows`."""
        self.rows.append((at, dict(figures)))

    def note(self, text: str) -> None:
        """Drop the line."""
        pass

    def hand_over(self) -> None:
        """Do nothing: there is no screen."""
        pass


@dataclass(frozen=True)
class Learned:
    """What a method learned: a policy, and the values, arrays and figures behind it."""

    policy: Policy  # the greedy one: observations [N, ...] -> actions [N], or [N, D] where they are continuous
    values: ActionValues | None = None  # q [N, A], where the method has action values
    arrays: Mapping[str, Array] = field(default_factory=dict)  # kept as values.safetensors, and drawn
    figures: Mapping[str, Any] = field(default_factory=dict)  # beside the return: errors, scores, counts


def from_values(values: ActionValues, arrays: Mapping[str, Array], **figures: Any) -> Learned:
    """What was learned as action values, observations [N, ...] -> q [N, A], with the greedy policy."""
    return Learned(lambda observations: greedy(values(observations)), values, arrays, figures)


@dataclass(frozen=True)
class Setting:
    """A method's settings on one environment."""

    env: EnvConfig
    config: Any
    episodes: int = 1_000  # of the evaluation


@dataclass(frozen=True)
class Method:
    """One method of the family: how it learns, and the settings for its environments."""

    about: str
    learn: Callable[[Any, EnvConfig, int, Monitor], Learned]  # (config, env, seed, monitor)
    takes: SpaceKind
    settings: Sequence[Setting]
    check: Callable[[Any, EnvConfig], None] = lambda config, env: None  # raises BadInput, before anything is started
    elsewhere: Any = None  # the settings for environments without their own; None: those of the first one
    headline: str = "mean_return"  # the figure that says how good it is

    def setting(self, env_id: str | None) -> Setting:
        """The settings for an environment: its own, or else the common ones and a step limit where it has none.

        ``env_id`` None: the settings for the method's first environment.
        """
        first = self.settings[0]
        if env_id is None:
            return first
        own = (s for s in self.settings if s.env.id == env_id)
        env = EnvConfig(
            id=env_id, max_episode_steps=0 if has_time_limit(env_id) else STEP_LIMITS.get(env_id, STEP_LIMIT)
        )
        return next(own, Setting(env, self.elsewhere or first.config, first.episodes))
