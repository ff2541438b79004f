"""Shortest paths of the 4x4 grid, counted over every start."""

from __future__ import annotations

import numpy as np

from classic.scores import scores, shortest_paths
from rl.envs.config import EnvConfig

UP, RIGHT, DOWN, LEFT = range(4)


def homing(observations):
    """First up or down, then left or right, towards the goal."""
    agent, goal = (observations[:, channel].reshape(-1, 16).argmax(axis=1) for channel in (0, 1))
    rows, cols = goal // 4 - agent // 4, goal % 4 - agent % 4
    return np.where(rows < 0, UP, np.where(rows > 0, DOWN, np.where(cols > 0, RIGHT, LEFT)))


def test_a_policy_that_goes_straight_takes_every_shortest_path():
    assert shortest_paths(homing, "table") == 1.0
    assert scores(homing, EnvConfig(id="qfleet/GridWorld-v0"), "network", 1) == {"shortest_paths": 1.0}


def test_one_that_always_goes_right_takes_those_of_its_row_to_the_right():
    always = shortest_paths(lambda observations: np.full(len(observations), RIGHT), "table")
    assert always == 4 * (3 + 2 + 1) / 240


def test_a_worlds_own_count_is_asked_for_where_there_is_one():
    assert scores(homing, EnvConfig(id="CartPole-v1"), "network", 1) == {}
