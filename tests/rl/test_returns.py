"""n-step returns and segments, as tables with the arithmetic written out."""

from __future__ import annotations

import numpy as np
import pytest

from rl.returns import ReturnConfig, n_step_returns
from rl.segments import SegmentBuilder, stack_frames
from rl.types import ObservationSpec

G = 0.9
#        rewards          stops                 n   expected r_t, discount_t, length of each item
TABLE = [
    pytest.param(
        [1.0, 2.0, 200.0, 4.0],
        [False] * 4,
        3,
        [1 + G * 2 + G**2 * 200, 2 + G * 200 + G**2 * 4, 200 + G * 4, 4.0],
        [G**3, G**3, G**2, G],
        [3, 3, 2, 1],
        id="truncated: fewer steps near the end, each with its own power of gamma",
    ),
    pytest.param(
        [1.0, 2.0, 200.0, 4.0],
        [False, False, False, True],
        3,
        [1 + G * 2 + G**2 * 200, 2 + G * 200 + G**2 * 4, 200 + G * 4, 4.0],
        [G**3, 0.0, 0.0, 0.0],
        [3, 3, 2, 1],
        id="terminated: no bootstrap from inside the last n steps",
    ),
    pytest.param(
        [1.0, 2.0, 200.0, 4.0],
        [False, True, False, False],
        3,
        [1 + G * 2, 2.0, 200 + G * 4, 4.0],
        [0.0, 0.0, G**2, G],
        [2, 1, 2, 1],
        id="a counted life: the sum stops there, the next item starts afresh",
    ),
    pytest.param([5.0], [True], 4, [5.0], [0.0], [1], id="an episode of one step"),
    pytest.param([5.0], [False], 4, [5.0], [G], [1], id="one step, truncated"),
    pytest.param([1.0, 2.0], [False, True], 1, [1.0, 2.0], [G, 0.0], [1, 1], id="n = 1"),
]


@pytest.mark.parametrize(("rewards", "stops", "n", "r_t", "discount_t", "length"), TABLE)
def test_n_step_returns(rewards, stops, n, r_t, discount_t, length):
    got = n_step_returns(np.array(rewards), np.array(stops), len(rewards), n, G)
    np.testing.assert_allclose(got.r_t, r_t, rtol=1e-6)
    np.testing.assert_allclose(got.discount_t, discount_t, rtol=1e-6)
    assert got.length.tolist() == length


def play(builder: SegmentBuilder, episode: list[tuple[float, bool, bool, bool]], base: int):
    """Feed one episode of (reward, terminated, truncated, lost_life); frame k of it is the number base + k."""
    segments = []
    builder.begin(np.array([base], np.float32))
    for k, (reward, terminated, truncated, lost) in enumerate(episode):
        frame = np.array([base + k + 1], np.float32)
        q = np.array([base + k, 0.0], np.float32)
        closed = builder.add(q, k % 2, reward, terminated, truncated, lost, 7, frame)
        if closed is not None:
            segments.append(closed)
    return segments


def transitions(segments, stack):
    """(newest frame of s_tm1, newest frame of s_t, r_t, discount_t) of every item of every segment."""
    rows = []
    for closed in segments:
        s = closed.segment
        start = s.item_step.astype(int)
        end = start + s.item_length
        first = stack_frames(s.frames, start, stack)
        last = stack_frames(s.frames, end, stack)
        for i in range(s.items):
            newest = (first[i, -1, 0], last[i, -1, 0]) if stack > 1 else (first[i, 0], last[i, 0])
            rows.append((*map(float, newest), round(float(s.r_t[i]), 5), round(float(s.discount_t[i]), 5)))
    return rows


def steps(count, end="terminated", reward=1.0):
    return [
        (reward, k == count - 1 and end == "terminated", k == count - 1 and end == "truncated", False)
        for k in range(count)
    ]


@pytest.mark.parametrize("stack", [1, 4])
@pytest.mark.parametrize("max_items", [1, 2, 3, 5, 50])
def test_segments_hold_every_transition_once_whatever_their_length(stack, max_items):
    spec = ObservationSpec((1,), "float32", stack)
    builder = SegmentBuilder(ReturnConfig(n_step=3, gamma=G), spec, max_items)
    got = []
    for base, episode in ((100, steps(7)), (200, steps(2)), (300, steps(6, "truncated"))):
        got += transitions(play(builder, episode, base), stack)
    full = 1 + G + G**2
    expected = [(100.0 + k, 103.0 + k, round(full, 5), round(G**3, 5) if k < 4 else 0.0) for k in range(5)]
    expected += [(105.0, 107.0, round(1 + G, 5), 0.0), (106.0, 107.0, 1.0, 0.0)]
    expected += [(200.0, 202.0, round(1 + G, 5), 0.0), (201.0, 202.0, 1.0, 0.0)]
    expected += [(300.0 + k, 303.0 + k, round(full, 5), round(G**3, 5)) for k in range(4)]
    expected += [(304.0, 306.0, round(1 + G, 5), round(G**2, 5)), (305.0, 306.0, 1.0, round(G, 5))]
    assert got == expected


def test_stacks_are_zero_before_the_episode_and_whole_after_a_cut():
    spec = ObservationSpec((1,), "float32", 4)
    builder = SegmentBuilder(ReturnConfig(n_step=1, gamma=G), spec, max_items=3)
    closed = play(builder, steps(6), base=10)
    stacks = np.concatenate([stack_frames(c.segment.frames, c.segment.item_step, 4) for c in closed])[..., 0]
    assert stacks[0].tolist() == [0, 0, 0, 10]
    assert stacks[1].tolist() == [0, 0, 10, 11]
    assert stacks[3].tolist() == [10, 11, 12, 13]  # the first item of the second segment
    assert stacks[5].tolist() == [12, 13, 14, 15]


def test_segments_of_an_episode_overlap_by_n_plus_stack_minus_1_frames():
    n, stack, items = 3, 4, 5
    spec = ObservationSpec((1,), "float32", stack)
    builder = SegmentBuilder(ReturnConfig(n_step=n, gamma=G), spec, items)
    first, second, *_ = [c.segment for c in play(builder, steps(20), base=0)]
    shared = set(first.frames[:, 0].tolist()) & set(second.frames[:, 0].tolist())
    assert len(shared) == n + stack - 1


def test_action_values_travel_with_their_frames_and_the_last_is_unseen():
    spec = ObservationSpec((1,), "float32", 1)
    builder = SegmentBuilder(ReturnConfig(n_step=2, gamma=G), spec, max_items=3)
    for closed in play(builder, steps(5), base=10):
        seen = closed.q[:-1, 0]
        np.testing.assert_array_equal(seen, closed.segment.frames[: len(seen), 0])
        assert np.isnan(closed.q[-1]).all()


def test_rewards_are_clipped_in_training_and_raw_in_the_segment():
    spec = ObservationSpec((1,), "float32", 1)
    builder = SegmentBuilder(ReturnConfig(n_step=1, gamma=G, clip_reward=1.0), spec, max_items=10)
    (closed,) = play(builder, steps(2, reward=7.0), base=0)
    assert closed.segment.rewards.tolist() == [7.0, 7.0]
    assert closed.segment.r_t.tolist() == [1.0, 1.0]


def test_a_lost_life_stops_the_return_only_where_it_counts():
    spec = ObservationSpec((1,), "float32", 1)
    episode = [(1.0, False, False, k == 1) for k in range(3)] + [(1.0, True, False, False)]
    for counts, expected in ((True, [0.0, 0.0, 0.0, 0.0]), (False, [G**2, G**2, 0.0, 0.0])):
        config = ReturnConfig(n_step=2, gamma=G, life_loss_terminates=counts)
        (closed,) = play(SegmentBuilder(config, spec, 10), episode, base=0)
        np.testing.assert_allclose(closed.segment.discount_t, expected, rtol=1e-6)
