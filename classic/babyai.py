"""A dataset of BabyAI, played by MiniGrid's own bot: what `offline-q` learns from.

Minari publishes similar ones (`minigrid/BabyAI-Pickup/optimal-fullobs-v0`); this one needs no download.
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

SAY_EVERY = 100  # episodes
GIVE_UP = 100  # seeds in a row that the bot could not solve


@dataclass(frozen=True)
class MakeDatasetConfig:
    """Write a Minari dataset of BabyAI worlds, seen whole, that MiniGrid's bot solves."""

    env: str = "BabyAI-Pickup-v0"
    """Gymnasium id of a BabyAI level."""
    episodes: int = 1_000
    """Episodes of the dataset."""
    first_seed: int = 0
    """Seed of the first episode; each later one has the next that the bot solves."""
    to: str = ""
    """The dataset: a Minari id, or a directory such as ./pickup-v0; empty: qfleet/babyai-pickup-fullobs-v0, after env."""

    def __post_init__(self) -> None:
        level = re.fullmatch(r"BabyAI-.+-v\d+", self.env) is not None
        require(level, self, "env", "one such as BabyAI-Pickup-v0: the bot plays BabyAI's levels alone")
        at_least(self, 1, "episodes")
        between(self, 0, 2**31 - 1, "first_seed")

    @property
    def name(self) -> str:
        """The dataset's name: ``to``, or one after the environment."""
        return self.to or f"qfleet/{self.env.rpartition('-v')[0].lower()}-fullobs-v0"


def make_dataset(config: MakeDatasetConfig, monitor: Monitor) -> dict[str, Any]:
    """Write the dataset; each episode keeps its seed. Seeds that the bot does not solve are left out and counted.

    Observations are MiniGrid's dict with the whole grid as ``image``, as in the published datasets. Returns the figures:
    dataset, path, env, episodes, steps, skipped, bytes, mean_return. Raises BadInput, also where the dataset is already
    there; RunFault when the bot solves none of GIVE_UP seeds in a row.
    """
    env = make_env(EnvConfig(id=config.env), "table")
    seed, skipped, in_a_row, returns = config.first_seed, 0, 0, []
    with _new_dataset(config, env) as dataset:
        while dataset.episodes < config.episodes:
            try:
                episode = solved(env, seed)
            except Unsolved as error:
                skipped, in_a_row = skipped + 1, in_a_row + 1
                monitor.note(f"seed {seed} is left out: {error}")
                if in_a_row == GIVE_UP:
                    raise RunFault(
                        f"the bot solved none of {GIVE_UP} seeds in a row of {config.env}: {error}"
                    ) from error
            else:
                in_a_row = 0
                dataset.add(seed=seed, **episode)
                returns.append(float(np.sum(episode["rewards"])))
                if dataset.episodes % SAY_EVERY == 0:
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
    """An empty dataset with the spaces and the description of the published ones. Raises BadInput."""
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
    """The bot gave up, or its episode had no reward."""


def solved(env: AnyEnv, seed: int) -> Mapping[str, Any]:
    """The bot's episode of T steps from ``seed``, as keyword arguments of `NewDataset.add`. Raises Unsolved.

    Actions int64 [T], rewards float64 [T], terminations and truncations bool [T]; observations: direction int64 [T +
    1], image [T + 1, W, H, 3] and the missions.
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
    except Exception as error:  # the bot fails by assertions, missing keys and errors of its own
        raise Unsolved(f"the bot gave up ({type(error).__name__}: {error})") from error
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
