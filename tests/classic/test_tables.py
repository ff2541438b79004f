"""Tables: states known again, values of what was never seen."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

from classic.tables import States


@pytest.mark.parametrize(
    ("space", "first", "second"),
    [
        (gym.spaces.Discrete(5), 3, 4),
        (gym.spaces.Box(0, 255, (4, 4), np.uint8), np.zeros((4, 4)), np.eye(4)),
        (gym.spaces.Box(-9, 9, (2,), np.int64), [1, -2], [-2, 1]),
    ],
)
def test_states_are_known_again_and_given_back(space, first, second):
    states = States(space)
    rows = [states.row(np.asarray(o, space.dtype)) for o in (first, second, first)]
    assert rows[0] == rows[2] != rows[1]
    assert states.rows(np.asarray([second, first], space.dtype)).tolist() == [rows[1], rows[0]]
    back = states.observations([rows[1], rows[0]])
    assert all(
        (a == np.asarray(b)).all() and a.shape == space.shape for a, b in zip(back, (second, first), strict=True)
    )
