"""MiniGrid's observations as bytes that hold the whole state, and back; and as pictures.

MiniGrid and BabyAI observe a dict: ``image`` uint8 [W, H, 3] (object, colour and state of each cell), ``direction`` 0-3
(right, down, left, up) and ``mission``, a sentence. As one vector of uint8: W, H, direction, the mission in MISSION
bytes (padded with zeros), the image. `FullyObsWrapper` does not show what the agent carries, nor what lies under it.
"""

from __future__ import annotations

import contextlib
import io
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from rl.types import Array

MISSION = 256  # bytes of a mission; BabyAI's longest has fewer
HEAD = 3 + MISSION  # bytes before the image
AGENT = 10  # MiniGrid's number of the object "agent"
AHEAD = ((1, 0), (0, 1), (-1, 0), (0, -1))  # the step (x, y) forward in each direction


class GridState(NamedTuple):
    """An observation of the whole grid."""

    image: Array  # [W, H, 3] uint8
    direction: int
    mission: str

    @property
    def agent(self) -> tuple[int, int]:
        """The agent's cell (x, y). Raises ValueError when the image shows no agent."""
        cells = np.argwhere(self.image[:, :, 0] == AGENT)
        if not len(cells):
            raise ValueError("the image shows no agent: it is what the agent sees, not the whole grid")
        return int(cells[0][0]), int(cells[0][1])

    @property
    def ahead(self) -> tuple[int, int, int]:
        """Object, colour and state, as MiniGrid numbers them, of the cell that the agent faces."""
        (x, y), (dx, dy) = self.agent, AHEAD[self.direction]
        kind, colour, state = self.image[x + dx, y + dy]
        return int(kind), int(colour), int(state)


def is_grid(space: gym.Space[Any]) -> bool:
    """Whether ``space`` is that of MiniGrid's observations."""
    return isinstance(space, spaces.Dict) and set(space.spaces) == {"image", "direction", "mission"}


def grid_space(space: spaces.Dict) -> spaces.Box:
    """The Box space of the vectors that `pack` makes of observations of ``space``: uint8 [3 + MISSION + W H 3]."""
    size = int(np.prod(space["image"].shape or ()))
    return spaces.Box(0, 255, (HEAD + size,), np.uint8)


def pack(observation: Any) -> Array:
    """The dict of one observation as a vector, uint8 [3 + MISSION + W H 3].

    Raises ValueError when the mission is longer than MISSION bytes, or when the image does not show the agent.
    """
    image, mission = np.asarray(observation["image"], np.uint8), str(observation["mission"]).encode()
    if len(mission) > MISSION:
        raise ValueError(f"a mission has {len(mission)} bytes, more than {MISSION}")
    if not (image[:, :, 0] == AGENT).any():
        raise ValueError("no agent in the image: it shows what the agent sees, not the whole grid")
    head = bytes([image.shape[0], image.shape[1], int(observation["direction"])]) + mission.ljust(MISSION, b"\0")
    return np.frombuffer(head + image.tobytes(), np.uint8)


def unpack(state: Array) -> GridState:
    """Inverse of `pack`: the `GridState` of a vector uint8 [3 + MISSION + W H 3]."""
    width, height, direction = (int(v) for v in state[:3])
    mission = state[3:HEAD].tobytes().rstrip(b"\0").decode()
    return GridState(state[HEAD:].reshape(width, height, 3), direction, mission)


def picture(state: GridState, tile: int = 16) -> Array:
    """The grid as MiniGrid draws it, uint8 [tile H, tile W, 3]; ``tile`` is the side of a cell in pixels."""
    from minigrid.core.grid import Grid

    grid, _ = Grid.decode(state.image)
    return np.asarray(grid.render(tile, state.agent, state.direction), np.uint8)


class WholeGrid(gym.Wrapper[Any, Any, Any, Any]):
    """Observations of the whole grid, where MiniGrid shows only what the agent sees.

    It also silences what BabyAI prints while it generates a level.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        from minigrid.wrappers import FullyObsWrapper

        super().__init__(FullyObsWrapper(env))

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        """Start an episode as Gymnasium does; returns (observation of the whole grid, info)."""
        with contextlib.redirect_stdout(io.StringIO()):  # BabyAI prints each level that it rejects
            return super().reset(**options)
