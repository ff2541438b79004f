"""The interface of every classic method: its settings, the monitor that it reports to, and what it returns.

    method = METHODS["q-learning"]  # of classic.methods
    setting = method.setting("FrozenLake-v1")
    learned = method.learn(setting.config, setting.env, seed=1, monitor=RecordingMonitor())
    actions = learned.policy(observations)  # [N, ...] -> [N]

A table, a regressor and a network are all `ActionValues`: functions from observations [N, ...] to q [N, A].
`rl.policies` turns q into greedy, epsilon-greedy or softmax actions.
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

# Step limit for environments that have none: otherwise the episode of a policy that goes in circles never ends.
STEP_LIMIT = 1_000
STEP_LIMITS = {"CliffWalking-v1": 200, "CliffWalkingSlippery-v1": 200}

ActionValues = Callable[[Array], Array]  # observations [N, ...] -> q [N, A]


class Monitor(Protocol):
    """Receives the progress of a method while it learns."""

    @property
    def folder(self) -> Path | None:
        """Directory for files that a method writes while it learns; None: it has no such directory."""

    def episode(self, result: EpisodeResult) -> None:
        """Receive a training episode that has ended."""

    def report(self, at: int, metrics: Mapping[str, float]) -> None:
        """Receive metrics after ``at`` iterations, episodes or steps, whichever the method counts."""

    def note(self, text: str) -> None:
        """Show the user a line of text."""

    def release_display(self) -> None:
        """Stop writing to the terminal, because the method has a display of its own."""


class RecordingMonitor:
    """A monitor that keeps all episodes and metrics in memory and shows nothing."""

    folder: Path | None = None

    def __init__(self) -> None:
        self.episodes: list[EpisodeResult] = []
        self.rows: list[tuple[int, dict[str, float]]] = []

    def episode(self, result: EpisodeResult) -> None:
        """Append the episode to `episodes`."""
        self.episodes.append(result)

    def report(self, at: int, metrics: Mapping[str, float]) -> None:
        """Append (at, metrics) to `rows`."""
        self.rows.append((at, dict(metrics)))

    def note(self, text: str) -> None:
        """Ignore the line."""

    def release_display(self) -> None:
        """Do nothing: this monitor has no display."""


@dataclass(frozen=True)
class Learned:
    """The result of a method: its policy, action values, arrays to save and metrics."""

    policy: Policy  # greedy, except in prediction: observations [N, ...] -> actions [N], or [N, D] if continuous
    values: ActionValues | None = None  # None: the method has no action values
    arrays: Mapping[str, Array] = field(default_factory=dict)  # saved in values.safetensors
    metrics: Mapping[str, Any] = field(default_factory=dict)  # other than the return


def from_values(values: ActionValues, arrays: Mapping[str, Array], **metrics: Any) -> Learned:
    """The result of a method that learned action values; its policy is greedy with respect to them."""
    return Learned(lambda observations: greedy(values(observations)), values, arrays, metrics)


@dataclass(frozen=True)
class Setting:
    """A method's settings on one environment."""

    env: EnvConfig
    config: Any  # an instance of the method's configuration class
    episodes: int = 1_000  # of the final evaluation


@dataclass(frozen=True)
class Method:
    """A classic method: its function, and its settings for some environments."""

    about: str  # one line for `qfleet classic`
    learn: Callable[[Any, EnvConfig, int, Monitor], Learned]  # (config, env, seed, monitor)
    space_kind: SpaceKind  # of the environments that it can learn from
    settings: Sequence[Setting]
    check: Callable[[Any, EnvConfig], None] = lambda config, env: None  # raises BadInput before learning starts
    fallback: Any = None  # config for an environment not in `settings`; None: that of the first setting
    headline: str = "mean_return"  # the metric that is printed first

    def setting(self, env_id: str | None) -> Setting:
        """The settings for an environment; ``env_id`` None: for the method's first environment.

        An environment that is not in `settings` gets the fallback config, and a step limit if it has none of its own.
        """
        first = self.settings[0]
        if env_id is None:
            return first
        matching = (s for s in self.settings if s.env.id == env_id)
        env = EnvConfig(
            id=env_id, max_episode_steps=0 if has_time_limit(env_id) else STEP_LIMITS.get(env_id, STEP_LIMIT)
        )
        return next(matching, Setting(env, self.fallback or first.config, first.episodes))
