"""The two grid worlds: Gymnasium's checker, all start cells, walls, wind and rendering."""

from __future__ import annotations

import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import rl.envs.registry  # noqa: F401 (registers them)
from rl.envs.grid_worlds import CELL, COLOURS, GridWorld, WindyGridWorld

UP, RIGHT, DOWN, LEFT = range(4)
STARTS = [(agent, goal) for agent in range(16) for goal in range(16) if agent != goal]


@pytest.mark.parametrize("env_id", ["qfleet/GridWorld-v0", "qfleet/WindyGridWorld-v0"])
def test_gymnasiums_checker_passes(env_id):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make(env_id).unwrapped)


def test_every_start_can_be_set_and_the_shortest_path_reaches_the_goal():
    env = GridWorld(goal_reward=5.0)
    for agent, goal in STARTS:
        seen, _ = env.reset(options={"agent": agent, "goal": goal})
        assert [int(channel.argmax()) for channel in seen] == [agent, goal]
        assert seen.sum() == 2
        down, right = goal // 4 - agent // 4, goal % 4 - agent % 4
        path = [DOWN if down > 0 else UP] * abs(down) + [RIGHT if right > 0 else LEFT] * abs(right)
        steps = [env.step(action) for action in path]
        assert [reward for _, reward, *_ in steps] == [-1.0] * (len(path) - 1) + [5.0]
        assert [terminated for _, _, terminated, *_ in steps] == [False] * (len(path) - 1) + [True]
        assert [int(channel.argmax()) for channel in steps[-1][0]] == [goal, goal]


def test_agent_and_goal_start_in_any_two_different_cells():
    env = GridWorld()
    env.reset(seed=1)
    found = {tuple(int(channel.argmax()) for channel in env.reset()[0]) for _ in range(3_000)}
    assert found == set(STARTS)
    fixed = {tuple(int(c.argmax()) for c in env.reset(options={"goal": 3})[0]) for _ in range(300)}
    assert fixed == {(agent, 3) for agent in range(16) if agent != 3}


@pytest.mark.parametrize("options", [{"agent": 4, "goal": 4}, {"agent": 16}, {"goal": -1}])
def test_an_impossible_start_is_rejected(options):
    with pytest.raises(ValueError, match="two different cells from 0 to 15"):
        GridWorld().reset(seed=0, options=options)


def test_walls_stop_the_agent_and_the_time_limit_truncates():
    env = gym.make("qfleet/GridWorld-v0")
    env.reset(options={"agent": 0, "goal": 15})
    for step in range(100):
        seen, reward, terminated, truncated, _ = env.step(UP if step % 2 else LEFT)
        assert (int(seen[0].argmax()), reward, terminated, truncated) == (0, -1.0, False, step == 99)


@pytest.mark.parametrize(
    ("cell", "action", "successor"),
    [
        ((3, 0), RIGHT, (3, 1)),  # no wind in column 0
        ((3, 3), RIGHT, (2, 4)),  # the wind of the column that the step leaves
        ((3, 6), RIGHT, (1, 7)),
        ((3, 6), DOWN, (2, 6)),
        ((1, 7), UP, (0, 7)),  # blown against the wall
        ((6, 9), DOWN, (6, 9)),
        ((4, 8), LEFT, (3, 7)),  # the goal
    ],
)
def test_the_wind_blows_upwards(cell, action, successor):
    env = WindyGridWorld()
    env.reset()
    env.agent = cell[0] * 10 + cell[1]
    assert env.step(action) == (successor[0] * 10 + successor[1], -1.0, successor == (3, 7), False, {})


def test_the_windy_goal_is_fifteen_steps_away():
    env = WindyGridWorld()
    reached, steps = {env.reset()[0]}, 0
    while env.goal not in reached:
        reached, steps = reached | {env.P[s][a][0][1] for s in reached for a in range(4)}, steps + 1
    assert steps == 15


def test_pictures_and_text_show_agent_goal_and_wind():
    grid = gym.make("qfleet/GridWorld-v0", render_mode="ansi")
    grid.reset(options={"agent": 1, "goal": 14})
    assert grid.render() == ".A..\n....\n....\n..G.\n"
    windy = gym.make("qfleet/WindyGridWorld-v0", render_mode="ansi")
    windy.reset()
    assert windy.render().splitlines()[2:4] == ["...111221.", "A..1112G1."]
    drawn = gym.make("qfleet/WindyGridWorld-v0", render_mode="rgb_array")
    drawn.reset()
    picture = drawn.render()
    assert picture.shape == (7 * CELL, 10 * CELL, 3)
    assert picture.dtype == np.uint8
    centres = picture[CELL // 2 :: CELL, CELL // 2 :: CELL]
    assert [tuple(centres[3, col]) for col in (0, 1, 3, 6, 7)] == [COLOURS[letter] for letter in "A.12G"]
