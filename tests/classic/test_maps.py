"""Maps: each cell has the right state, and each arrow points to where its action leads."""

from __future__ import annotations

import json

import gymnasium as gym
import numpy as np
import pytest

from classic.maps import DOWN, LEFT, RIGHT, UP, panels
from rl.envs.config import EnvConfig

ARROWS = {UP: (-1, 0), DOWN: (1, 0), LEFT: (0, -1), RIGHT: (0, 1)}
WORLDS = [
    EnvConfig(id="FrozenLake-v1", kwargs='{"is_slippery": false}'),
    EnvConfig(id="FrozenLake8x8-v1", kwargs='{"is_slippery": false}'),
    EnvConfig(id="CliffWalking-v1"),
    EnvConfig(id="qfleet/WindyGridWorld-v0"),
    EnvConfig(id="Taxi-v4"),
]


@pytest.mark.parametrize("config", WORLDS, ids=lambda config: config.id)
def test_arrows_point_where_actions_lead(config):
    env = gym.make(config.id, **json.loads(config.kwargs)).unwrapped
    for panel in panels(config, "table"):
        rows, cols = panel.shape
        place = {int(state): divmod(i, cols) for i, state in enumerate(panel.observations)}
        assert len(place) == rows * cols == len(panel.labels)
        moves = 0
        for state, (row, col) in place.items():
            for action, meaning in enumerate(panel.actions):
                (_, successor, reward, over), *_ = env.P[state][action]
                if meaning not in ARROWS or over or reward == -100 or successor == state:
                    continue
                down, right = ARROWS[meaning]
                down -= env.wind[col] if "Windy" in config.id else 0
                clipped = (min(max(row + down, 0), rows - 1), min(max(col + right, 0), cols - 1))
                assert place[successor] == clipped
                moves += 1
        assert moves > rows * cols


def test_labels_are_in_their_cells():
    lake, cliff, windy = (panels(WORLDS[i], "table")[0] for i in (0, 2, 3))
    assert "".join(lake.labels) == "SFFFFHFHFFFHHFFG"
    assert [cliff.labels[i] for i in (36, 37, 46, 47)] == ["S", "C", "C", "G"]
    assert [windy.labels[i] for i in (30, 33, 36, 37)] == ["S", "1", "2", "G"]
    waiting, aboard = panels(WORLDS[4], "table")
    assert [waiting.labels[i] for i in (0, 4, 20, 23)] == list("RGYB")
    decoded = [
        list(gym.make("Taxi-v4").unwrapped.decode(int(s))) for s in (waiting.observations[7], aboard.observations[7])
    ]
    assert decoded == [[1, 2, 2, 1], [1, 2, 4, 1]]


def test_the_grid_has_one_goal_and_observations_have_the_dtype_of_the_network():
    (panel,) = panels(EnvConfig(id="qfleet/GridWorld-v0"), "table")
    assert panel.observations.dtype == np.int8
    assert panel.observations[:, 0].reshape(16, 16).tolist() == np.eye(16).tolist()
    assert (panel.observations[:, 1].reshape(16, 16).argmax(axis=1) == 15).all()
    (lake,) = panels(WORLDS[0], "network")
    assert lake.observations.dtype == np.float32
    assert lake.observations.tolist() == np.eye(16).tolist()


def test_blackjack_has_rows_of_sums_and_columns_of_cards():
    without, with_ace = panels(EnvConfig(id="Blackjack-v1"), "table")
    assert (without.row_names[0], without.row_names[-1], without.column_names[0]) == ("21", "12", "A")
    assert without.observations[0] == np.ravel_multi_index((21, 1, 0), (32, 11, 2))
    assert without.observations[1] == np.ravel_multi_index((21, 2, 0), (32, 11, 2))
    assert with_ace.observations[-1] == np.ravel_multi_index((12, 10, 1), (32, 11, 2))


def test_other_environments_have_no_map():
    assert panels(EnvConfig(id="CartPole-v1"), "network") == []
