"""Writes Minari datasets: each fragment of consecutive steps becomes one episode.

An episode of T steps has infos with T + 1 entries; [0] belongs to the first observation, [k] to step k - 1:

    step             the step number in the episode of each observation; starts above 0 if the beginning is missing
    lost_life        whether the step lost a life
    weights_version  version of the weights that chose the action
    cut              true at the last step if the episode continued after it; such a fragment counts as truncated
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import gymnasium as gym
import numpy as np

from replay.datasets.episodes import EpisodeFragment
from rl.envs.atari import atari_game
from rl.envs.config import ATARI_FRAME_SKIP, EnvConfig
from rl.envs.make import spec_and_actions
from rl.envs.minari_files import NewDataset
from rl.types import Array, ObservationSpec


class DatasetWriter(NewDataset):
    """Writes a replay's content into a new dataset. An observation is one frame.

        with DatasetWriter(name, spec, actions, env) as dataset:
            for fragment in episode_fragments(stored, spec):
                dataset.append(fragment)

    ``actions`` is the number of actions; ``env`` is the environment that was played, or None if it is not known.
    """

    def __init__(self, name: str, spec: ObservationSpec, actions: int, env: EnvConfig | None) -> None:
        """Create the dataset. Raises BadInput if a dataset with this name exists or it cannot be written."""
        space = gym.spaces.Discrete(actions) if env is None else _action_space(env)
        self._first_action = int(space.start)
        super().__init__(
            name,
            _frame_space(spec),
            space,
            None if env is None else _env_spec(env),
            {"stack": spec.stack, "env": None if env is None else asdict(env)},
            algorithm_name="DQN, epsilon-greedy",
            description="Exported from a Qfleet replay. An observation is one frame.",
        )

    def append(self, fragment: EpisodeFragment) -> None:
        """Write a fragment as the next episode."""
        truncated, cut = fragment.truncated.copy(), np.zeros(fragment.steps, np.bool_)
        truncated[-1] |= fragment.is_cut
        cut[-1] = fragment.is_cut
        self.add(
            fragment.frames,
            fragment.rewards,
            actions=fragment.actions.astype(np.int64) + self._first_action,
            terminations=fragment.terminated,
            truncations=truncated,
            infos={
                "step": fragment.first_step + np.arange(fragment.steps + 1, dtype=np.int64),
                "lost_life": _prepend_zero(fragment.lost_life),
                "weights_version": _prepend_zero(fragment.versions),
                "cut": _prepend_zero(cut),
            },
        )


def _prepend_zero(column: Array) -> Array:
    """Return the column [T] with a zero for the first observation in front, [T + 1]."""
    return np.concatenate([np.zeros(1, column.dtype), column])


def _frame_space(spec: ObservationSpec) -> gym.spaces.Box:
    dtype = np.dtype(spec.dtype)
    low, high = (-np.inf, np.inf) if dtype.kind == "f" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    return gym.spaces.Box(low, high, spec.frame_shape, dtype.type)


def _action_space(config: EnvConfig) -> gym.spaces.Discrete:
    """Return the environment's action space, which may not start at 0; Qfleet's actions always do."""
    if atari_game(config.id) is not None:
        return gym.spaces.Discrete(spec_and_actions(config)[1])
    env = gym.make(config.id)
    env.close()
    assert isinstance(env.action_space, gym.spaces.Discrete)
    return env.action_space


def _env_spec(config: EnvConfig) -> Any:
    """Return the spec from which Minari's `recover_environment` makes an environment with the dataset's frames."""
    if atari_game(config.id) is None:
        return gym.spec(config.id)
    env = gym.make(
        config.id,
        frameskip=1,
        repeat_action_probability=config.sticky,
        max_num_frames_per_episode=config.max_frames,
    )
    env = gym.wrappers.AtariPreprocessing(
        env, noop_max=config.noop_max, frame_skip=ATARI_FRAME_SKIP, screen_size=config.size
    )
    env.close()
    return env.spec
