"""The ladder: every method with the settings that solve its environments; the first is the default one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from classic.learned import Learned, Monitor
from classic.q_learning import QLearningConfig, double_q_learning, expected_sarsa, n_step_q, q_learning, sarsa
from rl.envs import EnvConfig
from rl.spaces import Takes


@dataclass(frozen=True)
class Setting:
    """A method's settings on one environment."""

    env: EnvConfig
    config: Any
    episodes: int = 1_000  # of the evaluation


@dataclass(frozen=True)
class Method:
    """One rung."""

    about: str
    learn: Callable[[Any, EnvConfig, int, Monitor], Learned]  # (config, env, seed, monitor)
    takes: Takes
    settings: Sequence[Setting]

    def setting(self, env_id: str | None) -> Setting:
        """The settings for an environment: its own, or the first ones."""
        first = self.settings[0]
        if env_id is None:
            return first
        own = (s for s in self.settings if s.env.id == env_id)
        return next(own, Setting(EnvConfig(id=env_id), first.config, first.episodes))


CLIFF = EnvConfig(id="CliffWalking-v1", max_episode_steps=200)
CLIFF_CONTROL = QLearningConfig(
    episodes=1_000, gamma=1.0, alpha=0.5, alpha_end=0.05, epsilon=0.1, epsilon_end=0.1, epsilon_decay=1.0
)
CLIFF_SETTINGS = (Setting(CLIFF, CLIFF_CONTROL, 10),)

METHODS: dict[str, Method] = {
    "q-learning": Method(
        "tabular Q-learning",
        q_learning,
        "table",
        (
            Setting(EnvConfig(id="FrozenLake-v1"), QLearningConfig()),
            Setting(EnvConfig(id="Taxi-v4"), QLearningConfig()),
            *CLIFF_SETTINGS,
        ),
    ),
    "double-q-learning": Method("two tables against overestimation", double_q_learning, "table", CLIFF_SETTINGS),
    "sarsa": Method("on-policy: values of the policy that explores", sarsa, "table", CLIFF_SETTINGS),
    "expected-sarsa": Method("SARSA without the luck of the next action", expected_sarsa, "table", CLIFF_SETTINGS),
    "n-step-q": Method("Q-learning over several steps of reward", n_step_q, "table", CLIFF_SETTINGS),
}
