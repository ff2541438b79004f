"""Datasets from other sources: actions that start at 1, lives, stacks, and damaged episodes."""

from __future__ import annotations

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest

from replay.datasets.dataset import Dataset
from rl.errors import BadInput
from rl.returns import ReturnConfig
from rl.types import ObservationSpec
from tests.replay.datasets.made import BOX, datasets_fixture, episode, write_dataset  # noqa: F401

G = 0.9
RETURNS = ReturnConfig(n_step=3, gamma=G)


def test_a_foreign_dataset_with_actions_from_1_and_lives():
    first = episode(3, actions=[1, 2, 2], infos={"lives": np.array([3, 3, 2, 2])})
    write_dataset(
        "them/any-v1", BOX, gym.spaces.Discrete(2, start=1), [first, episode(2, infos={"lives": np.array([1, 1, 1])})]
    )
    dataset = Dataset("them/any-v1")
    assert dataset.env is None
    spec = dataset.spec(ObservationSpec((4,), "float32"), "the test")
    one, two = dataset.segments(spec, replace(RETURNS, life_loss_terminates=True), 10)
    assert one.frames.dtype == np.float32
    assert one.actions.tolist() == [0, 1, 1]
    assert one.lost_life.tolist() == [False, True, False]
    assert one.discount_t.tolist() == pytest.approx([0.0, 0.0, G])
    assert two.truncated.tolist() == [False, True]  # neither terminated nor truncated: counts as truncated
    assert two.discount_t.tolist() == pytest.approx([G**2, G])


def test_single_frames_are_stacked_and_whole_stacks_are_kept():
    write_dataset("frames-v0", gym.spaces.Box(-9, 9, (3,), np.float32), gym.spaces.Discrete(2), [episode(6, (3,))])
    write_dataset("stacks-v0", gym.spaces.Box(-9, 9, (2, 3), np.float32), gym.spaces.Discrete(2), [episode(6, (2, 3))])
    wanted = ObservationSpec((3,), "float32", 2)
    assert Dataset("frames-v0").spec(wanted, "the test") == wanted
    assert Dataset("stacks-v0").spec(wanted, "the test") == ObservationSpec((2, 3), "float32", 1)
    with pytest.raises(BadInput, match=r"float32 2x3, the test has float32 5 \(or 2x5\)"):
        Dataset("stacks-v0").spec(ObservationSpec((5,), "float32", 2), "the test")
    with pytest.raises(BadInput, match="float32 3, the test has uint8 3"):
        Dataset("frames-v0").spec(ObservationSpec((3,), "uint8"), "the test")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rewards": np.array([1.0, np.nan, 1.0])}, "not finite"),
        ({"terminations": np.array([True, False, False])}, "step 0 ends the episode, but more"),
        ({"actions": np.array([0, 1, 2])}, "outside the dataset.s action space, 0 to 1"),
        ({"observations": np.zeros((3, 4))}, "3 observations"),
    ],
)
def test_the_error_names_the_damaged_episode(changes, words):
    write_dataset("broken-v0", BOX, gym.spaces.Discrete(2), [episode(2), episode(3, **changes)])
    with pytest.raises(BadInput, match=f"episode 1: .*{words}"):
        list(Dataset("broken-v0").segments(ObservationSpec((4,), "float32"), RETURNS, 5))
