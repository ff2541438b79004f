"""MiniGrid's observations as byte vectors that identify the state, for tables.

An observation of MiniGrid or BabyAI is a dict: ``image`` uint8 [W, H, 3] (object, colour and state of each cell),
``direction`` 0-3 (right, down, left, up) and ``mission``, a sentence. `pack_grid` makes one uint8 vector of it: W, H,
direction, the mission in MISSION_BYTES bytes (padded with zeros), the image. The whole grid, as `FullyObsWrapper` gives
it, contains neither the object that the agent carries nor the object in the agent's cell.
"""

from __future__ import annotations

import contextlib
import io
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from rl.types import Array

MISSION_BYTES = 256  # more than the longest mission of BabyAI has
HEADER_BYTES = 3 + MISSION_BYTES  # before the image
AGENT_INDEX = 10  # MiniGrid's index of the object "agent"
FORWARD = ((1, 0), (0, 1), (-1, 0), (0, -1))  # (x, y) of a step forward, by direction


class GridState(NamedTuple):
    """An observation of the whole grid."""

    image: Array  # [W, H, 3] uint8
    direction: int
    mission: str

    @property
    def agent(self) -> tuple[int, int]:
        """The agent's cell (x, y). Raises ValueError when the image shows no agent."""
        cells = np.argwhere(self.image[:, :, 0] == AGENT_INDEX)
        if not len(cells):
            raise ValueError("the image shows no agent: it is what the agent sees, not the whole grid")
        return int(cells[0][0]), int(cells[0][1])

    @property
    def ahead(self) -> tuple[int, int, int]:
        """MiniGrid's indices of object, colour and state of the cell in front of the agent."""
        (x, y), (dx, dy) = self.agent, FORWARD[self.direction]
        kind, colour, state = self.image[x + dx, y + dy]
        return int(kind), int(colour), int(state)


def is_grid(space: gym.Space[Any]) -> bool:
    """Whether ``space`` is the observation space of a MiniGrid environment."""
    return isinstance(space, spaces.Dict) and set(space.spaces) == {"image", "direction", "mission"}


def grid_space(space: spaces.Dict) -> spaces.Box:
    """The space of the vectors that `pack_grid` returns for ``space``: a Box, uint8 [HEADER_BYTES + W * H * 3]."""
    size = int(np.prod(space["image"].shape or ()))
    return spaces.Box(0, 255, (HEADER_BYTES + size,), np.uint8)


def pack_grid(observation: Any) -> Array:
    """One observation, a dict, as a vector, uint8 [HEADER_BYTES + W * H * 3].

    Raises ValueError if the mission is longer than MISSION_BYTES, or if the image does not show the agent.
    """
    image, mission = np.asarray(observation["image"], np.uint8), str(observation["mission"]).encode()
    if len(mission) > MISSION_BYTES:
        raise ValueError(f"a mission has {len(mission)} bytes, but at most {MISSION_BYTES} are supported")
    if not (image[:, :, 0] == AGENT_INDEX).any():
        raise ValueError("the agent is missing in the image: it is a partial view, not the whole grid")
    head = bytes([image.shape[0], image.shape[1], int(observation["direction"])]) + mission.ljust(MISSION_BYTES, b"\0")
    return np.frombuffer(head + image.tobytes(), np.uint8)


def unpack_grid(state: Array) -> GridState:
    """Inverse of `pack_grid`: the `GridState` of a vector uint8 [HEADER_BYTES + W * H * 3]."""
    width, height, direction = (int(v) for v in state[:3])
    mission = state[3:HEADER_BYTES].tobytes().rstrip(b"\0").decode()
    return GridState(state[HEADER_BYTES:].reshape(width, height, 3), direction, mission)


def draw_grid(state: GridState, tile: int = 16) -> Array:
    """The grid drawn by MiniGrid, uint8 [tile * H, tile * W, 3]; ``tile`` is the side of a cell in pixels."""
    from minigrid.core.grid import Grid

    grid, _ = Grid.decode(state.image)
    return np.asarray(grid.render(tile, state.agent, state.direction), np.uint8)


class WholeGrid(gym.Wrapper[Any, Any, Any, Any]):
    """Replaces MiniGrid's partial view by the whole grid, and suppresses what BabyAI prints in `reset`."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        from minigrid.wrappers import FullyObsWrapper

        super().__init__(FullyObsWrapper(env))

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        """See `gymnasium.Env.reset`; returns (observation of the whole grid, info)."""
        with contextlib.redirect_stdout(io.StringIO()):  # BabyAI prints a line for each level that it rejects
            return super().reset(**options)
