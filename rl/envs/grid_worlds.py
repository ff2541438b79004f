"""Two grid worlds, small enough to compute their values exactly.

Cells are numbered row by row from 0; row 0 is at the top. Importing this module registers both with Gymnasium.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from rl.types import Array

MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))  # up, right, down, left, as (rows, columns)
CELL = 48  # side of a cell in pictures, in pixels
LINE = (170, 170, 170)  # colour of the lines between cells
COLOURS = {".": (244, 244, 240), "1": (222, 233, 245), "2": (196, 215, 238), "G": (92, 168, 104), "A": (205, 92, 60)}


def next_cell(cell: int, action: int, rows: int, cols: int, wind: int = 0) -> int:
    """The cell after ``action``, an index into MOVES, from ``cell``. The wind moves the agent ``wind`` rows up.

    Walls stop the agent.
    """
    row, col = divmod(cell, cols)
    down, right = MOVES[action]
    row = min(max(row + down - wind, 0), rows - 1)
    return row * cols + min(max(col + right, 0), cols - 1)


class Grid(gym.Env[Any, Any]):
    """The base class of both worlds: the cells of agent and goal, and their rendering."""

    metadata = {"render_modes": ["rgb_array", "ansi"], "render_fps": 4}  # noqa: RUF012 (Gymnasium's convention)
    rows: int
    cols: int
    agent: int
    goal: int

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.action_space = spaces.Discrete(len(MOVES))

    def cell_letters(self) -> Array:
        """The letter of each cell, str [rows, cols], without agent and goal."""
        return np.full((self.rows, self.cols), ".")

    def render(self) -> Any:
        """``rgb_array``: a picture, uint8 [rows * CELL, cols * CELL, 3]. ``ansi``: lines of text.

        The letters are A for the agent, G for the goal, and 1 and 2 for the wind.
        """
        letters = self.cell_letters()
        letters.flat[self.goal] = "G"
        letters.flat[self.agent] = "A"
        if self.render_mode == "ansi":
            return "\n".join("".join(row) for row in letters) + "\n"
        colours = np.array([[COLOURS[letter] for letter in row] for row in letters], np.uint8)
        picture = colours.repeat(CELL, axis=0).repeat(CELL, axis=1)
        picture[::CELL] = picture[:, ::CELL] = LINE
        return picture


class GridWorld(Grid):
    """A 4x4 grid with random, different start cells of agent and goal.

    Observations: int8 [2, 4, 4], zeros except for a 1 in channel 0 at the agent and a 1 in channel 1 at the goal. Every
    step has reward -1, except that the step onto the goal has reward ``goal_reward`` and terminates the episode.
    """

    rows, cols = 4, 4

    def __init__(self, goal_reward: float = 10.0, render_mode: str | None = None) -> None:
        super().__init__(render_mode)
        self.goal_reward = float(goal_reward)
        self.observation_space = spaces.Box(0, 1, (2, self.rows, self.cols), np.int8)

    @classmethod
    def observation(cls, agent: int, goal: int) -> Array:
        """The observation, int8 [2, 4, 4], with the agent in cell ``agent`` and the goal in cell ``goal``."""
        channels = np.zeros((2, cls.rows, cls.cols), np.int8)
        channels[0].flat[agent] = channels[1].flat[goal] = 1
        return channels

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Start an episode; returns (observation int8 [2, 4, 4], empty info).

        ``options={"agent": cell, "goal": cell}`` sets one or both start cells. Raises ValueError unless they are two
        different cells of the grid.
        """
        super().reset(seed=seed)
        fixed, drawn = options or {}, self.np_random.permutation(self.rows * self.cols)
        self.goal = int(fixed.get("goal", next(cell for cell in drawn if cell != fixed.get("agent"))))
        self.agent = int(fixed.get("agent", next(cell for cell in drawn if cell != self.goal)))
        if self.agent == self.goal or not {self.agent, self.goal} <= set(range(self.rows * self.cols)):
            raise ValueError(f"agent {self.agent} and goal {self.goal}: write two different cells from 0 to 15")
        return self.observation(self.agent, self.goal), {}

    def step(self, action: Any) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Move the agent; returns (observation int8 [2, 4, 4], reward, terminated, False, empty info)."""
        self.agent = next_cell(self.agent, int(action), self.rows, self.cols)
        at_goal = self.agent == self.goal
        return self.observation(self.agent, self.goal), self.goal_reward if at_goal else -1.0, at_goal, False, {}


class WindyGridWorld(Grid):
    """The windy grid world (Sutton & Barto 2018, Example 6.5): 7x10, with a wind that blows upwards.

    The shortest path has 15 steps. Observations: the agent's cell, Discrete(70). Every step has reward -1. Reaching the
    goal terminates the episode. ``P[s][a]`` is a list of (probability, s', reward, terminated), as in Gymnasium's
    toy-text environments.
    """

    rows, cols = 7, 10
    wind = (0, 0, 0, 1, 1, 1, 2, 2, 1, 0)  # rows up, by the column that the step starts in
    start, goal = 30, 37  # row 3, column 0 and row 3, column 7

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(render_mode)
        cells = range(self.rows * self.cols)
        self.observation_space = spaces.Discrete(len(cells))
        self.P = {s: {a: [self._outcome(s, a)] for a in range(len(MOVES))} for s in cells}

    def _outcome(self, cell: int, action: int) -> tuple[float, int, float, bool]:
        if cell == self.goal:
            return 1.0, cell, 0.0, True
        successor = next_cell(cell, action, self.rows, self.cols, self.wind[cell % self.cols])
        return 1.0, successor, -1.0, successor == self.goal

    def cell_letters(self) -> Array:
        """The letter of each cell, str [7, 10]: the wind of its column, or a dot without wind."""
        letters = np.array([str(w) if w else "." for w in self.wind])
        return np.tile(letters, (self.rows, 1))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        """Start in the start cell; returns (cell, empty info)."""
        super().reset(seed=seed)
        self.agent = self.start
        return self.agent, {}

    def step(self, action: Any) -> tuple[int, float, bool, bool, dict[str, Any]]:
        """Move the agent; returns (cell, reward, terminated, False, empty info)."""
        _, self.agent, reward, terminated = self.P[self.agent][int(action)][0]
        return self.agent, reward, terminated, False, {}


gym.register("qfleet/GridWorld-v0", "rl.envs.grid_worlds:GridWorld", max_episode_steps=100)
gym.register("qfleet/WindyGridWorld-v0", "rl.envs.grid_worlds:WindyGridWorld", max_episode_steps=1_000)
