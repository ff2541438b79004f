"""A Minari dataset for a table: the row of each state, and every transition between them.

Legend: T transitions, E episodes, S rows of the table (some may be of states that the data never show).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym
import numpy as np

from classic.tables import States
from rl.envs.config import EnvConfig
from rl.envs.grid_states import is_grid
from rl.envs.minari_files import check_episode, env_config_of, open_dataset
from rl.envs.spaces import AnyEnv, table_states
from rl.envs.vector import make_env
from rl.errors import BadInput, BadSetting
from rl.types import Array, Bool, Float64, Int64


@dataclass(frozen=True)
class TableData:
    """A dataset as `read` returns it."""

    states: States
    grid: bool  # whether the states are MiniGrid's worlds
    actions: int  # A
    s_tm1: Int64  # [T]
    a_tm1: Int64  # [T], from 0
    r_t: Float64  # [T]
    terminated: Bool  # [T]
    s_t: Int64  # [T], of the true last observation where an episode ends
    observed: Int64  # [T + E], the row of each observation, an episode after the other
    lengths: Int64  # [E], steps
    seeds: tuple[int | None, ...]  # of each episode, where the dataset keeps them

    @property
    def episode_of(self) -> Int64:
        """The episode of each observation, [T + E]."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths + 1)

    @property
    def starts(self) -> Int64:
        """The row of each episode's first observation, [E]."""
        first: Int64 = self.observed[np.cumsum(self.lengths + 1) - self.lengths - 1]
        return first

    @property
    def returns(self) -> Float64:
        """Each episode's undiscounted return, [E]."""
        totals: Float64 = np.add.reduceat(self.r_t, np.cumsum(self.lengths) - self.lengths)
        return totals

    @property
    def counts(self) -> Int64:
        """How often each action was taken in each state, [S, A]."""
        pairs = self.s_tm1 * self.actions + self.a_tm1
        return np.bincount(pairs, minlength=self.states.count * self.actions).reshape(-1, self.actions)

    @property
    def first_seen(self) -> Int64:
        """Episode and step at which each state was seen first, [S, 2]; -1 where it never was."""
        found = np.full((self.states.count, 2), -1, np.int64)
        rows, at = np.unique(self.observed, return_index=True)
        step = np.concatenate([np.arange(length + 1) for length in self.lengths])
        found[rows] = np.stack([self.episode_of[at], step[at]], axis=1)
        return found


def opened(name: str, env: EnvConfig) -> tuple[Any, gym.Space[Any], Callable[[Any], Any]]:
    """(dataset, space of its states, function from an observation to a state).

    Raises BadInput unless the dataset suits a table and ``env``.
    """
    data = open_dataset(name)
    fitted = table_states(data.observation_space)
    if fitted is None:
        raise BadInput(
            f"dataset {name} has observations {' '.join(str(data.observation_space).split())[:80]}: a table would see each "
            "state once; write the method fitted-q, or train DQN offline on it"
        )
    played = make_env(env, "table")
    played.close()
    _check_fit(name, data, fitted[0], played)
    return data, *fitted


def read(name: str, env: EnvConfig) -> TableData:
    """Read a whole dataset. Raises BadInput unless its states suit a table and are those of ``env``."""
    data, space, state = opened(name, env)
    actions = data.action_space
    states, first, metadata = States(space), int(actions.start), data.storage.get_episode_metadata
    rows: list[list[int]] = []
    columns: list[tuple[Array, Array, Array]] = []
    try:
        seeds = tuple(kept.get("seed") for kept in metadata(data.episode_indices))
        for index, episode in enumerate(data.iterate_episodes()):
            observations = [state(o) for o in _steps(episode.observations)]
            check_episode(
                replace(episode, observations=observations), f"dataset {name}, episode {index}", first, int(actions.n)
            )
            rows.append([states.row(o) for o in observations])
            columns.append((np.asarray(episode.actions) - first, episode.rewards, episode.terminations))
    except (OSError, KeyError, ValueError) as error:
        raise BadInput(f"dataset {name} cannot be read: {' '.join(str(error).split())}") from error
    a_tm1, r_t, terminated = (np.concatenate(column) for column in zip(*columns, strict=True))
    return TableData(
        states,
        is_grid(data.observation_space),
        int(actions.n),
        np.concatenate([own[:-1] for own in rows]),
        a_tm1.astype(np.int64),
        r_t.astype(np.float64),
        terminated.astype(np.bool_),
        np.concatenate([own[1:] for own in rows]),
        np.concatenate(rows),
        np.array([len(own) - 1 for own in rows]),
        seeds,
    )


def _check_fit(name: str, data: Any, states: Any, env: AnyEnv) -> None:
    """Raise BadInput unless the dataset has the environment's states and actions."""
    own, its = env.observation_space, env.action_space
    same = all(getattr(own, key, None) == getattr(states, key, None) for key in ("shape", "dtype", "n"))
    if same and data.action_space == its:
        return
    source = env_config_of(data, name)
    where = f"was played on {source.id}" if source else "names no environment"
    assert env.spec is not None
    raise BadSetting(
        EnvConfig,
        "id",
        f"{env.spec.id!r} has states {own} and actions {its}, dataset {name} ({where}) has {states} and "
        f"{data.action_space}: write {f'`id: {source.id}`' if source else 'another one'}, or another dataset",
    )


def _steps(observations: Any) -> list[Any]:
    """An episode's observations one by one: columns of dicts and tuples taken apart."""
    if isinstance(observations, dict):
        columns = [_steps(column) for column in observations.values()]
        return [dict(zip(observations, values, strict=True)) for values in zip(*columns, strict=True)]
    if isinstance(observations, tuple):
        return list(zip(*(_steps(column) for column in observations), strict=True))
    return list(observations)
