"""Maps of small worlds: the cell of each state, to draw values and greedy actions over the cells."""

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
    """One map: a state for each cell, row by row from the top."""

    title: str
    shape: tuple[int, int]  # rows, columns
    observations: Array  # [rows * columns, *observation], as the policy takes them
    labels: Sequence[str]  # a cell's own letter, or ""
    actions: Sequence[str]  # what each action means: an arrow, or a name
    row_names: Sequence[str] = ()  # beside the rows, where they are not mere places
    column_names: Sequence[str] = ()


def panels(config: EnvConfig, takes: SpaceKind) -> list[Panel]:
    """The maps of an environment, [] where its states lie on none. Its values: `learned.values(panel.observations)`."""
    env = make_env(config, takes)
    dtype = observation_spec(env.observation_space, takes).dtype
    try:
        found = next((draw(env.unwrapped) for kind, draw in MAPS.items() if isinstance(env.unwrapped, kind)), [])
    finally:
        env.close()
    return [p._replace(observations=np.array([_seen(env, o) for o in p.observations], dtype)) for p in found]


def _seen(env: AnyEnv, observation: Any) -> Any:
    """An observation as the environment's wrappers return it."""
    if not isinstance(env, gym.Wrapper):
        return observation
    inner = _seen(env.env, observation)
    return env.observation(inner) if isinstance(env, gym.ObservationWrapper) else inner


def _numbered(title: str, letters: Array, actions: Sequence[str]) -> list[Panel]:
    """A world whose state is the number of the agent's cell; ``letters`` [rows, columns]."""
    labels = [str(letter) for letter in letters.ravel()]
    return [Panel(title, letters.shape, np.arange(letters.size), labels, actions)]


def _frozen_lake(env: Any) -> list[Panel]:
    return _numbered("Frozen lake", env.desc.astype(str), (LEFT, DOWN, RIGHT, UP))


def _cliff(env: Any) -> list[Panel]:
    letters = np.where(env._cliff, "C", "")
    letters[-1, 0], letters[-1, -1] = "S", "G"
    return _numbered("Cliff", letters, (UP, RIGHT, DOWN, LEFT))


def _windy(env: Any) -> list[Panel]:
    letters = np.char.replace(env.cell_letters(), ".", "")
    letters.flat[env.start], letters.flat[env.goal] = "S", "G"
    return _numbered("Windy grid", letters, (UP, RIGHT, DOWN, LEFT))


def _grid(env: Any) -> list[Panel]:
    goal, cells = 15, range(env.rows * env.cols)
    labels = ["G" if cell == goal else "" for cell in cells]
    seen = np.array([env.observation(cell, goal) for cell in cells])
    return [Panel("Goal in the corner", (env.rows, env.cols), seen, labels, (UP, RIGHT, DOWN, LEFT))]


def _taxi(env: Any) -> list[Panel]:
    """The way from one stand to another, before and after the passenger is aboard."""
    names, passenger, to = "RGYB", 2, 1  # the passenger waits at Y and wants to go to G
    labels = [""] * 25
    for name, (row, col) in zip(names, env.locs, strict=True):
        labels[5 * row + col] = name
    actions = (DOWN, UP, RIGHT, LEFT, "pick up", "drop off")
    made = []
    for title, where in (("Passenger at Y, bound for G", passenger), ("Passenger aboard, bound for G", len(names))):
        states = np.array([env.encode(row, col, where, to) for row in range(5) for col in range(5)])
        made.append(Panel(title, (5, 5), states, labels, actions))
    return made


def _blackjack(env: Any) -> list[Panel]:
    """The player's sum, from 21 at the top to 12, by the dealer's card from ace to ten."""
    sums, cards = range(21, 11, -1), range(1, 11)
    rows, columns = [str(s) for s in sums], ["A", *(str(c) for c in cards[1:])]
    made = []
    for title, ace in (("Without a usable ace", 0), ("With a usable ace", 1)):
        hands = np.array([(s, card, ace) for s in sums for card in cards])
        made.append(Panel(title, (len(sums), len(cards)), hands, [""] * len(hands), ("stick", "hit"), rows, columns))
    return made


MAPS = {
    FrozenLakeEnv: _frozen_lake,
    CliffWalkingEnv: _cliff,
    WindyGridWorld: _windy,
    GridWorld: _grid,
    TaxiEnv: _taxi,
    BlackjackEnv: _blackjack,
}
