"""Maps of small environments: which state lies in which cell, to draw values and greedy actions in the cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.envs.toy_text.blackjack import BlackjackEnv
from gymnasium.envs.toy_text.cliffwalking import CliffWalkingEnv
from gymnasium.envs.toy_text.frozen_lake import FrozenLakeEnv
from gymnasium.envs.toy_text.taxi import TaxiEnv

from rl.envs.config import EnvConfig
from rl.envs.grid_worlds import GridWorld, WindyGridWorld
from rl.envs.spaces import AnyEnv, SpaceKind
from rl.envs.vector import make_env, observation_spec
from rl.types import Array

UP, RIGHT, DOWN, LEFT = "↑→↓←"


class Panel(NamedTuple):
    """A map: one state for each cell, row by row from the top."""

    title: str
    shape: tuple[int, int]  # rows, columns
    observations: Array  # [rows * columns, *observation], the inputs of the policy
    labels: Sequence[str]  # [rows * columns], the letter of each cell, or ""
    actions: Sequence[str]  # [A], an arrow or a name for each action
    row_names: Sequence[str] = ()  # labels of the axes, if the cells are not places
    column_names: Sequence[str] = ()


def panels(config: EnvConfig, space_kind: SpaceKind) -> list[Panel]:
    """Return the maps of an environment; [] if it has none.

    The action values of a map's cells are `learned.values(panel.observations)`.
    """
    env = make_env(config, space_kind)
    dtype = observation_spec(env.observation_space, space_kind).dtype
    try:
        maps = next(
            (make_maps(env.unwrapped) for kind, make_maps in MAPS.items() if isinstance(env.unwrapped, kind)), []
        )
    finally:
        env.close()
    return [p._replace(observations=np.array([_wrap_observation(env, o) for o in p.observations], dtype)) for p in maps]


def _wrap_observation(env: AnyEnv, observation: Any) -> Any:
    """Apply the environment's observation wrappers to an observation of the inner environment."""
    if not isinstance(env, gym.Wrapper):
        return observation
    inner = _wrap_observation(env.env, observation)
    return env.observation(inner) if isinstance(env, gym.ObservationWrapper) else inner


def _cell_panel(title: str, letters: Array, actions: Sequence[str]) -> list[Panel]:
    """Return the map of an environment whose state is the number of a cell; ``letters`` is [rows, columns]."""
    labels = [str(letter) for letter in letters.ravel()]
    return [Panel(title, letters.shape, np.arange(letters.size), labels, actions)]


def _frozen_lake(env: Any) -> list[Panel]:
    return _cell_panel("Frozen lake", env.desc.astype(str), (LEFT, DOWN, RIGHT, UP))


def _cliff(env: Any) -> list[Panel]:
    letters = np.where(env._cliff, "C", "")
    letters[-1, 0], letters[-1, -1] = "S", "G"
    return _cell_panel("Cliff", letters, (UP, RIGHT, DOWN, LEFT))


def _windy(env: Any) -> list[Panel]:
    letters = np.char.replace(env.cell_letters(), ".", "")
    letters.flat[env.start], letters.flat[env.goal] = "S", "G"
    return _cell_panel("Windy grid", letters, (UP, RIGHT, DOWN, LEFT))


def _grid(env: Any) -> list[Panel]:
    goal, cells = 15, range(env.rows * env.cols)
    labels = ["G" if cell == goal else "" for cell in cells]
    observations = np.array([env.observation(cell, goal) for cell in cells])
    return [Panel("Goal in the corner", (env.rows, env.cols), observations, labels, (UP, RIGHT, DOWN, LEFT))]


def _taxi(env: Any) -> list[Panel]:
    """Two maps of a ride from Y to G: before and after the passenger gets in."""
    names, start, destination = "RGYB", 2, 1  # Y and G
    labels = [""] * 25
    for name, (row, col) in zip(names, env.locs, strict=True):
        labels[5 * row + col] = name
    actions = (DOWN, UP, RIGHT, LEFT, "pick up", "drop off")
    maps = []
    for title, passenger in (
        ("Passenger at Y, bound for G", start),
        ("Passenger in the taxi, bound for G", len(names)),
    ):
        states = np.array([env.encode(row, col, passenger, destination) for row in range(5) for col in range(5)])
        maps.append(Panel(title, (5, 5), states, labels, actions))
    return maps


def _blackjack(env: Any) -> list[Panel]:
    """Two maps, without and with a usable ace: player's sum 21 to 12 in rows, dealer's card A to 10 in columns."""
    sums, cards = range(21, 11, -1), range(1, 11)
    rows, columns = [str(s) for s in sums], ["A", *(str(c) for c in cards[1:])]
    maps = []
    for title, ace in (("Without a usable ace", 0), ("With a usable ace", 1)):
        hands = np.array([(s, card, ace) for s in sums for card in cards])
        maps.append(Panel(title, (len(sums), len(cards)), hands, [""] * len(hands), ("stick", "hit"), rows, columns))
    return maps


MAPS = {
    FrozenLakeEnv: _frozen_lake,
    CliffWalkingEnv: _cliff,
    WindyGridWorld: _windy,
    GridWorld: _grid,
    TaxiEnv: _taxi,
    BlackjackEnv: _blackjack,
}
