"""Tables: rows of states, and the values of states never seen."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

from classic.tables import UNKNOWN, QTable, StateIndex


@pytest.mark.parametrize(
    ("space", "first", "second"),
    [
        (gym.spaces.Discrete(5), 3, 4),
        (gym.spaces.Box(0, 255, (4, 4), np.uint8), np.zeros((4, 4)), np.eye(4)),
        (gym.spaces.Box(-9, 9, (2,), np.int64), [1, -2], [-2, 1]),
    ],
)
def test_a_state_keeps_its_row_and_can_be_read_back(space, first, second):
    states = StateIndex(space)
    rows = [states.add(np.asarray(o, space.dtype)) for o in (first, second, first)]
    assert rows[0] == rows[2] != rows[1]
    assert states.lookup(np.asarray([second, first], space.dtype)).tolist() == [rows[1], rows[0]]
    back = states.observations([rows[1], rows[0]])
    assert all(
        (a == np.asarray(b)).all() and a.shape == space.shape for a, b in zip(back, (second, first), strict=True)
    )


def test_a_state_outside_the_space_is_rejected_and_one_never_seen_is_unknown():
    for outside in (-1, 5):
        with pytest.raises(ValueError, match="must be from 0 to 4"):
            StateIndex(gym.spaces.Discrete(5)).add(outside)
    states = StateIndex(gym.spaces.Box(0, 9, (2,), np.int64))
    states.add([1, 1])
    assert states.lookup(np.array([[1, 1], [1, 2]])).tolist() == [0, UNKNOWN]
    assert states.count == 1, "a lookup adds no row"


def test_a_table_grows_and_keeps_what_it_learned():
    table = QTable(gym.spaces.Box(-1e6, 1e6, (1,), np.int64), 2, initial=0.5)
    for state in range(128):  # fills the 64 initial rows and the 64 that it grows by
        values = table.row([state])
        assert values.tolist() == [0.5, 0.5]
        values[:] = state, -state  # in place
    assert table.q.tolist() == [[s, -s] for s in range(128)]
    assert table(np.array([[7], [999], [127]])).tolist() == [[7, -7], [0.5, 0.5], [127, -127]]
    assert table.states.count == 128


def test_a_table_of_numbered_states_has_a_row_for_each():
    table = QTable(gym.spaces.Discrete(3), 2)
    table.row(2)[1] = 4.0
    assert table.q.tolist() == [[0, 0], [0, 0], [0, 4]]
    assert table(np.array([2, 0])).tolist() == [[0, 4], [0, 0]]
