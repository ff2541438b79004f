"""Writing Minari datasets: one episode for each run of consecutive steps.

An episode of T steps has infos of T + 1 entries, [0] of the first observation and [k] of step k - 1:

    step             the episode's step number of each observation (it begins above 0 where the beginning is lost)
    lost_life        whether the step lost a life
    weights_version  version of the weights acted on
    cut              true at the last step where the episode continued after it; such a run counts as truncated
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import gymnasium as gym
import numpy as np

from replay.datasets.episodes import EpisodeRun
from rl.envs.atari import atari_game
from rl.envs.config import ATARI_FRAME_SKIP, EnvConfig
from rl.envs.make import describe
from rl.envs.minari_files import NewDataset
from rl.types import Array, ObservationSpec


class DatasetWriter(NewDataset):
    """A new dataset of a replay's content; an observation is one frame. ``env`` is the environment, if it is known.

    with DatasetWriter(name, spec, actions, env) as dataset:
        for run in episode_runs(stored, spec):
            dataset.append(run)
    """

    def __init__(self, name: str, spec: ObservationSpec, actions: int, env: EnvConfig | None) -> None:
        """Raises BadInput where a dataset of that name exists, or nothing can be written."""
        space = gym.spaces.Discrete(actions) if env is None else _action_space(env)
        self._first_action = int(space.start)
        super().__init__(
            name,
            _frame_space(spec),
            space,
            None if env is None else _env_spec(env),
            {"stack": spec.stack, "env": None if env is None else asdict(env)},
            algorithm_name="DQN, epsilon-greedy",
            description="Out of a Qfleet replay. An observation is one frame.",
        )

    def append(self, run: EpisodeRun) -> None:
        """Write one run of T steps as the next episode."""
        truncated, cut = run.truncated.copy(), np.zeros(run.steps, np.bool_)
        truncated[-1] |= run.cut
        cut[-1] = run.cut
        self.add(
            run.frames,
            run.rewards,
            actions=run.actions.astype(np.int64) + self._first_action,
            terminations=run.terminated,
            truncations=truncated,
            infos={
                "step": run.first_step + np.arange(run.steps + 1, dtype=np.int64),
                "lost_life": _after_first(run.lost_life),
                "weights_version": _after_first(run.versions),
                "cut": _after_first(cut),
            },
        )


def _after_first(column: Array) -> Array:
    """[T] -> [T + 1]: nothing came before the first observation."""
    return np.concatenate([np.zeros(1, column.dtype), column])


def _frame_space(spec: ObservationSpec) -> gym.spaces.Box:
    dtype = np.dtype(spec.dtype)
    low, high = (-np.inf, np.inf) if dtype.kind == "f" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    return gym.spaces.Box(low, high, spec.frame_shape, dtype.type)


def _action_space(config: EnvConfig) -> gym.spaces.Discrete:
    """The environment's own action space; Qfleet's actions count from 0."""
    if atari_game(config.id) is not None:
        return gym.spaces.Discrete(describe(config)[1])
    env = gym.make(config.id)
    env.close()
    assert isinstance(env.action_space, gym.spaces.Discrete)
    return env.action_space


def _env_spec(config: EnvConfig) -> Any:
    """The spec from which Minari's `recover_environment` makes an environment that returns the dataset's frames."""
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
