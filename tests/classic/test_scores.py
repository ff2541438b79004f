"""Scores: shortest paths in the 4x4 grid from every start."""

from __future__ import annotations

import numpy as np

from classic.scores import scores, shortest_paths
from rl.envs.config import EnvConfig

UP, RIGHT, DOWN, LEFT = range(4)


def optimal_policy(observations):
    """A policy that goes first up or down, then left or right, to the goal."""
    agent, goal = (observations[:, channel].reshape(-1, 16).argmax(axis=1) for channel in (0, 1))
    rows, cols = goal // 4 - agent // 4, goal % 4 - agent % 4
    return np.where(rows < 0, UP, np.where(rows > 0, DOWN, np.where(cols > 0, RIGHT, LEFT)))


def test_an_optimal_policy_takes_every_shortest_path():
    assert shortest_paths(optimal_policy, "table") == 1.0
    assert scores(optimal_policy, EnvConfig(id="qfleet/GridWorld-v0"), "network", 1) == {"shortest_paths": 1.0}


def test_always_right_takes_the_shortest_paths_to_the_right():
    always = shortest_paths(lambda observations: np.full(len(observations), RIGHT), "table")
    assert always == 4 * (3 + 2 + 1) / 240


def test_other_environments_have_no_scores():
    assert scores(optimal_policy, EnvConfig(id="CartPole-v1"), "network", 1) == {}
