"""MiniGrid's observations as byte vectors, and back."""

from __future__ import annotations

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest

from rl.envs.config import EnvConfig
from rl.envs.grid_states import MISSION_BYTES, draw_grid, pack_grid, unpack_grid
from rl.envs.make import make_environments, make_rendered
from rl.envs.vector import make_env
from rl.evaluation import evaluate

pytest.importorskip("minigrid")
from minigrid.core.constants import COLOR_TO_IDX, OBJECT_TO_IDX

PICKUP = EnvConfig(id="BabyAI-Pickup-v0")


def test_packed_observations_differ_if_any_part_differs():
    image = np.zeros((4, 3, 3), np.uint8)
    image[1, 0] = OBJECT_TO_IDX["agent"], 0, 2
    image[1, 1] = OBJECT_TO_IDX["ball"], COLOR_TO_IDX["grey"], 0
    one = {"image": image, "direction": 1, "mission": "pick up a grey ball"}
    state = unpack_grid(pack_grid(one))
    assert (state.image == image).all()
    assert (state.direction, state.mission, state.agent) == (1, one["mission"], (1, 0))
    assert state.ahead == (OBJECT_TO_IDX["ball"], COLOR_TO_IDX["grey"], 0), "direction 1 looks down"
    assert draw_grid(state, tile=8).shape == (3 * 8, 4 * 8, 3)
    others = [{**one, "direction": 2}, {**one, "mission": "pick up the grey ball"}, {**one, "image": image[::-1]}]
    assert len({pack_grid(o).tobytes() for o in (one, *others)}) == 4
    with pytest.raises(ValueError, match="a mission has 257 bytes"):
        pack_grid({**one, "mission": "x" * (MISSION_BYTES + 1)})
    with pytest.raises(ValueError, match="not the whole grid"):
        pack_grid({**one, "image": np.zeros((3, 2, 3), np.uint8)})
    with pytest.raises(ValueError, match="not the whole grid"):
        _ = state._replace(image=np.zeros((3, 2, 3), np.uint8)).agent


def test_minigrid_environments_suit_a_table(tmp_path):
    config = replace(PICKUP, max_episode_steps=6)
    environments = make_environments(config, 2, space_kind="table")
    seen = []

    def policy(observations):
        seen.append(observations.copy())
        return np.full(len(observations), 2)

    result = evaluate(policy, environments, 2, 0.0, 1)
    assert [e.length for e in result.episodes] == [6, 6]
    assert seen[0].dtype == np.uint8
    assert seen[0].shape == (2, 3 + MISSION_BYTES + 22 * 22 * 3)
    assert unpack_grid(seen[0][0]).mission.startswith("pick up ")
    rendered = make_rendered(config, "table")
    observation, _ = rendered.reset(seed=3)
    assert (draw_grid(unpack_grid(observation), tile=32).shape) == rendered.render().shape


def test_the_lines_that_babyai_prints_are_suppressed(capsys):
    def drawn(env):
        for seed in range(10):
            env.reset(seed=seed)
        return capsys.readouterr().out

    assert "Sampling rejected" in drawn(gym.make(PICKUP.id))
    assert drawn(make_env(PICKUP, "table")) == ""
