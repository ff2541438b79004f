"""Datasets of BabyAI levels, played by MiniGrid's bot, for `offline-q`.

Minari publishes similar datasets, such as `minigrid/BabyAI-Pickup/optimal-fullobs-v0`; these need no download.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import WrapperSpec

from classic.interface import Monitor
from rl.bounds import at_least, between, require
from rl.envs.config import EnvConfig
from rl.envs.grid_states import MISSION_BYTES, unpack_grid
from rl.envs.minari_files import NewDataset
from rl.envs.spaces import AnyEnv
from rl.envs.vector import make_env
from rl.errors import RunFault

NOTE_PERIOD = 100  # episodes between progress notes
MAX_UNSOLVED = 100  # unsolved seeds in a row after which `make_dataset` fails


@dataclass(frozen=True)
class MakeDatasetConfig:
    """Let MiniGrid's bot play a BabyAI level, and write its episodes as a Minari dataset, fully observed."""

    env: str = "BabyAI-Pickup-v0"
    """Gymnasium id of a BabyAI level, such as BabyAI-Pickup-v0."""
    episodes: int = 1_000
    """Number of episodes in the dataset."""
    first_seed: int = 0
    """Seed of the first episode; later episodes have the following seeds, except those that the bot cannot solve."""
    to: str = ""
    """Dataset to write: a Minari id, or a directory such as ./pickup-v0; empty: qfleet/<level>-fullobs-v0, such as
    qfleet/babyai-pickup-fullobs-v0."""

    def __post_init__(self) -> None:
        level = re.fullmatch(r"BabyAI-.+-v\d+", self.env) is not None
        require(level, self, "env", "a BabyAI level, such as BabyAI-Pickup-v0; the bot plays no others")
        at_least(self, 1, "episodes")
        between(self, 0, 2**31 - 1, "first_seed")

    @property
    def name(self) -> str:
        """The name of the dataset: `to`, or a name made from `env`."""
        return self.to or f"qfleet/{self.env.rpartition('-v')[0].lower()}-fullobs-v0"


def make_dataset(config: MakeDatasetConfig, monitor: Monitor) -> dict[str, Any]:
    """Play and write the dataset. Each episode has its seed; seeds that the bot cannot solve are skipped and counted.

    Observations are MiniGrid's dicts with the whole grid as ``image``, as in the published datasets. Returns a dict
    with dataset, path, env, episodes, steps, skipped, bytes and mean_return. Raises BadInput if the environment cannot
    be made or the dataset exists already, and RunFault if the bot solves none of MAX_UNSOLVED seeds in a row.
    """
    env = make_env(EnvConfig(id=config.env), "table")
    seed, skipped, in_a_row, returns = config.first_seed, 0, 0, []
    with _new_dataset(config, env) as dataset:
        while dataset.episodes < config.episodes:
            try:
                episode = play_bot(env, seed)
            except Unsolved as error:
                skipped, in_a_row = skipped + 1, in_a_row + 1
                monitor.note(f"seed {seed} is skipped: {error}")
                if in_a_row == MAX_UNSOLVED:
                    raise RunFault(
                        f"the bot solved none of {MAX_UNSOLVED} seeds in a row of {config.env} "
                        f"({error}): try another level"
                    ) from error
            else:
                in_a_row = 0
                dataset.add(seed=seed, **episode)
                returns.append(float(np.sum(episode["rewards"])))
                if dataset.episodes % NOTE_PERIOD == 0:
                    monitor.note(f"{dataset.episodes:,} of {config.episodes:,} episodes, {dataset.steps:,} steps")
            seed += 1
    env.close()
    return {
        "dataset": config.name,
        "path": str(dataset.path),
        "env": config.env,
        "episodes": dataset.episodes,
        "steps": dataset.steps,
        "skipped": skipped,
        "bytes": dataset.bytes,
        "mean_return": float(np.mean(returns)),
    }


def _new_dataset(config: MakeDatasetConfig, env: AnyEnv) -> NewDataset:
    """Create an empty dataset with the spaces of the published ones. Raises BadInput if it exists already."""
    example = unpack_grid(env.reset(seed=config.first_seed)[0])
    spec = replace(
        gym.spec(config.env),
        additional_wrappers=(WrapperSpec("FullyObsWrapper", "minigrid.wrappers:FullyObsWrapper", {}),),
    )
    space = gym.spaces.Dict(
        direction=gym.spaces.Discrete(4),
        image=gym.spaces.Box(0, 255, example.image.shape, np.uint8),
        mission=gym.spaces.Text(MISSION_BYTES, charset=string.ascii_letters + string.digits + " ,.'-"),
    )
    return NewDataset(
        config.name,
        space,
        env.action_space,
        spec,
        {"env": asdict(EnvConfig(id=config.env))},
        algorithm_name="BabyAIBot of MiniGrid",
        description=f"{config.env}, the whole grid observed; levels that the bot solves.",
    )


class Unsolved(Exception):
    """The bot failed, or its episode had no reward."""


def play_bot(env: AnyEnv, seed: int) -> Mapping[str, Any]:
    """Let the bot play an episode of T steps from ``seed``; returns it as keyword arguments of `NewDataset.add`.

    Actions are int64 [T], rewards float64 [T], terminations and truncations bool [T]. Observations are direction, int64
    [T + 1], image, [T + 1, W, H, 3], and mission, [T + 1] strings. Raises Unsolved if the bot does not solve the level.
    """
    from minigrid.utils.baby_ai_bot import BabyAIBot

    observation, _ = env.reset(seed=seed)
    observations, actions, rewards, done = [unpack_grid(observation)], [], [], False
    action, terminated, truncated = None, False, False
    try:
        bot = BabyAIBot(env.unwrapped)
        while not done:
            action = bot.replan(action)
            observation, reward, terminated, truncated, _ = env.step(int(action))
            done = terminated or truncated
            observations.append(unpack_grid(observation))
            actions.append(int(action))
            rewards.append(float(reward))
    except Exception as error:  # the bot fails with AssertionError, KeyError and other exceptions
        raise Unsolved(f"the bot failed ({type(error).__name__}: {error})") from error
    if sum(rewards) <= 0.0:
        raise Unsolved(f"the bot earned nothing in {len(rewards)} steps")
    ended = np.zeros((2, len(rewards)), np.bool_)
    ended[:, -1] = terminated, truncated and not terminated
    return {
        "observations": {
            "direction": np.array([o.direction for o in observations], np.int64),
            "image": np.stack([o.image for o in observations]),
            "mission": [o.mission for o in observations],
        },
        "actions": np.array(actions, np.int64),
        "rewards": np.array(rewards),
        "terminations": ended[0],
        "truncations": ended[1],
        "infos": {},
    }
