"""A Minari dataset as arrays for tabular learning.

    data = read_tabular("qfleet/babyai-pickup-fullobs-v0", EnvConfig(id="BabyAI-Pickup-v0"))
    data.s_tm1, data.a_tm1, data.r_t, data.s_t  # all [T]

Legend: T transitions; E episodes; S rows of the table, which may include states that the dataset never visits;
``s_tm1``, ``a_tm1``, ``r_t``, ``s_t`` as in `rl.types`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym
import numpy as np

from classic.tables import StateIndex
from rl.envs.config import EnvConfig
from rl.envs.grid_states import is_grid
from rl.envs.minari_files import check_episode, env_config_of, open_dataset
from rl.envs.spaces import AnyEnv, table_states
from rl.envs.vector import make_env
from rl.errors import BadInput, BadSetting
from rl.types import Array, Bool, Float64, Int64


@dataclass(frozen=True)
class TabularDataset:
    """A dataset in which states are rows of a table."""

    states: StateIndex
    is_minigrid: bool  # whether the states are MiniGrid worlds
    actions: int  # A
    s_tm1: Int64  # [T]
    a_tm1: Int64  # [T], from 0
    r_t: Float64  # [T]
    terminated: Bool  # [T]
    s_t: Int64  # [T], at the end of an episode the row of its last observation
    observed: Int64  # [T + E], the row of each observation, episode after episode
    lengths: Int64  # [E], in steps
    seeds: tuple[int | None, ...]  # [E], None for episodes without a seed

    @property
    def episode_of(self) -> Int64:
        """The index of each observation's episode, [T + E]."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths + 1)

    @property
    def starts(self) -> Int64:
        """The row of each episode's first observation, [E]."""
        first: Int64 = self.observed[np.cumsum(self.lengths + 1) - self.lengths - 1]
        return first

    @property
    def returns(self) -> Float64:
        """The undiscounted return of each episode, [E]."""
        totals: Float64 = np.add.reduceat(self.r_t, np.cumsum(self.lengths) - self.lengths)
        return totals

    @property
    def counts(self) -> Int64:
        """How often each action was taken in each state, [S, A]."""
        pairs = self.s_tm1 * self.actions + self.a_tm1
        return np.bincount(pairs, minlength=self.states.count * self.actions).reshape(-1, self.actions)

    @property
    def first_seen(self) -> Int64:
        """The episode and the step at which each state first occurs, [S, 2]; -1 if it never occurs."""
        found = np.full((self.states.count, 2), -1, np.int64)
        rows, at = np.unique(self.observed, return_index=True)
        step = np.concatenate([np.arange(length + 1) for length in self.lengths])
        found[rows] = np.stack([self.episode_of[at], step[at]], axis=1)
        return found


def open_tabular(name: str, env: EnvConfig) -> tuple[Any, gym.Space[Any], Callable[[Any], Any]]:
    """Open a dataset; return it, the space of its states, and a function from its observations to these states.

    Raises BadInput if the dataset does not exist, if its observations do not suit a table, or if its spaces are not
    those of ``env``.
    """
    data = open_dataset(name)
    fitted = table_states(data.observation_space)
    if fitted is None:
        raise BadInput(
            f"dataset {name} has observations {' '.join(str(data.observation_space).split())[:80]}, which do not suit "
            f"a table, because no state would occur twice: use `qfleet train --offline {name}`"
        )
    played = make_env(env, "table")
    played.close()
    _check_fit(name, data, fitted[0], played)
    return data, *fitted


def read_tabular(name: str, env: EnvConfig) -> TabularDataset:
    """Read a whole dataset into memory. Raises BadInput as `open_tabular` does, and if the dataset is damaged."""
    data, space, state = open_tabular(name, env)
    actions = data.action_space
    states, first, metadata = StateIndex(space), int(actions.start), data.storage.get_episode_metadata
    rows: list[list[int]] = []
    columns: list[tuple[Array, Array, Array]] = []
    try:
        seeds = tuple(of_episode.get("seed") for of_episode in metadata(data.episode_indices))
        for index, episode in enumerate(data.iterate_episodes()):
            observations = [state(o) for o in _unbatch(episode.observations)]
            check_episode(
                replace(episode, observations=observations), f"dataset {name}, episode {index}", first, int(actions.n)
            )
            rows.append([states.add(o) for o in observations])
            columns.append((np.asarray(episode.actions) - first, episode.rewards, episode.terminations))
    except (OSError, KeyError, ValueError) as error:
        raise BadInput(f"dataset {name} cannot be read: {' '.join(str(error).split())}") from error
    a_tm1, r_t, terminated = (np.concatenate(column) for column in zip(*columns, strict=True))
    return TabularDataset(
        states,
        is_grid(data.observation_space),
        int(actions.n),
        np.concatenate([of_episode[:-1] for of_episode in rows]),
        a_tm1.astype(np.int64),
        r_t.astype(np.float64),
        terminated.astype(np.bool_),
        np.concatenate([of_episode[1:] for of_episode in rows]),
        np.concatenate(rows),
        np.array([len(of_episode) - 1 for of_episode in rows]),
        seeds,
    )


def _check_fit(name: str, data: Any, states: Any, env: AnyEnv) -> None:
    """Raise BadInput unless the dataset has the environment's states and actions."""
    env_states, env_actions = env.observation_space, env.action_space
    same = all(getattr(env_states, key, None) == getattr(states, key, None) for key in ("shape", "dtype", "n"))
    if same and data.action_space == env_actions:
        return
    source = env_config_of(data, name)
    origin = f"collected on {source.id}" if source else "of an unknown environment"
    assert env.spec is not None
    raise BadSetting(
        EnvConfig,
        "id",
        f"is {env.spec.id!r}, which has states {env_states} and actions {env_actions}, but dataset {name} "
        f"({origin}) has {states} and {data.action_space}: write "
        f"{f'`id: {source.id}`' if source else 'another environment'}, or another dataset",
    )


def _unbatch(observations: Any) -> list[Any]:
    """Split the stacked observations of an episode into a list, also inside dicts and tuples."""
    if isinstance(observations, dict):
        columns = [_unbatch(column) for column in observations.values()]
        return [dict(zip(observations, values, strict=True)) for values in zip(*columns, strict=True)]
    if isinstance(observations, tuple):
        return list(zip(*(_unbatch(column) for column in observations), strict=True))
    return list(observations)
