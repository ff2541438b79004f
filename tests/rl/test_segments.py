"""Segments of small trajectories, compared with the expected transitions."""

from __future__ import annotations

import numpy as np
import pytest

from rl.returns import ReturnConfig
from rl.segments import SegmentBuilder, newest_frame, stack_frames
from rl.types import ObservationSpec

G = 0.9


def play(builder: SegmentBuilder, episode: list[tuple[float, bool, bool, bool]], base: int):
    """The segments of one episode of (reward, terminated, truncated, lost_life); frame k is the number base + k."""
    segments = []
    builder.begin(np.array([base], np.float32))
    for k, (reward, terminated, truncated, lost) in enumerate(episode):
        frame = np.array([base + k + 1], np.float32)
        segment = builder.add(
            action=k % 2,
            reward=reward,
            terminated=terminated,
            truncated=truncated,
            lost_life=lost,
            version=7,
            frame=frame,
        )
        if segment is not None:
            segments.append(segment)
    return segments


def transitions(segments, stack):
    """(newest frame of s_tm1, newest frame of s_t, r_t, discount_t) of every item of every segment."""
    rows = []
    for s in segments:
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
def test_segments_of_any_length_hold_every_transition_once(stack, max_items):
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


def test_stacks_are_zero_before_the_episode_and_complete_in_later_segments():
    spec = ObservationSpec((1,), "float32", 4)
    builder = SegmentBuilder(ReturnConfig(n_step=1, gamma=G), spec, max_items=3)
    segments = play(builder, steps(6), base=10)
    stacks = np.concatenate([stack_frames(s.frames, s.item_step, 4) for s in segments])[..., 0]
    assert stacks[0].tolist() == [0, 0, 0, 10]
    assert stacks[1].tolist() == [0, 0, 10, 11]
    assert stacks[3].tolist() == [10, 11, 12, 13]  # the first item of the second segment
    assert stacks[5].tolist() == [12, 13, 14, 15]


def test_segments_of_an_episode_overlap_by_n_plus_stack_minus_1_frames():
    n, stack, items = 3, 4, 5
    spec = ObservationSpec((1,), "float32", stack)
    builder = SegmentBuilder(ReturnConfig(n_step=n, gamma=G), spec, items)
    first, second, *_ = play(builder, steps(20), base=0)
    shared = set(first.frames[:, 0].tolist()) & set(second.frames[:, 0].tolist())
    assert len(shared) == n + stack - 1


def test_each_step_keeps_its_own_fields():
    builder = SegmentBuilder(ReturnConfig(n_step=1, gamma=G), ObservationSpec((1,), "float32"), max_items=10)
    (s,) = play(builder, [(3.0, False, False, True), (4.0, False, False, False), (5.0, False, True, False)], base=0)
    assert s.actions.tolist() == [0, 1, 0]
    assert s.rewards.tolist() == [3.0, 4.0, 5.0]
    assert s.terminated.tolist() == [False, False, False]
    assert s.truncated.tolist() == [False, False, True]
    assert s.lost_life.tolist() == [True, False, False]
    assert s.versions.tolist() == [7, 7, 7]
    assert s.frames[:, 0].tolist() == [0, 1, 2, 3]
    assert (s.episode_id, s.first_step) == (0, 0)


def test_with_td_errors_adds_the_errors_and_keeps_the_rest():
    builder = SegmentBuilder(ReturnConfig(n_step=1, gamma=G), ObservationSpec((1,), "float32"), max_items=10)
    (cut,) = play(builder, steps(2), base=0)
    td_abs = np.array([0.5, 2.0], np.float32)
    segment = cut.with_td_errors(td_abs)
    assert segment.td_abs is td_abs
    assert segment.frames is cut.frames
    assert segment.items == 2


def test_rewards_are_clipped_in_training_and_raw_in_the_segment():
    spec = ObservationSpec((1,), "float32", 1)
    builder = SegmentBuilder(ReturnConfig(n_step=1, gamma=G, clip_reward=1.0), spec, max_items=10)
    (segment,) = play(builder, steps(2, reward=7.0), base=0)
    assert segment.rewards.tolist() == [7.0, 7.0]
    assert segment.r_t.tolist() == [1.0, 1.0]


def test_a_lost_life_stops_the_return_only_where_it_counts():
    spec = ObservationSpec((1,), "float32", 1)
    episode = [(1.0, False, False, k == 1) for k in range(3)] + [(1.0, True, False, False)]
    for counts, expected in ((True, [0.0, 0.0, 0.0, 0.0]), (False, [G**2, G**2, 0.0, 0.0])):
        config = ReturnConfig(n_step=2, gamma=G, life_loss_terminates=counts)
        (segment,) = play(SegmentBuilder(config, spec, 10), episode, base=0)
        np.testing.assert_allclose(segment.discount_t, expected, rtol=1e-6)


def test_the_newest_frame_of_a_stack_is_a_copy():
    stacks = np.arange(2 * 4 * 3, dtype=np.uint8).reshape(2, 4, 3)
    newest = newest_frame(stacks, ObservationSpec((3,), "uint8", 4))
    assert newest.tolist() == [[9, 10, 11], [21, 22, 23]]
    assert not np.shares_memory(newest, stacks)
    single = stacks[:, 0]
    assert newest_frame(single, ObservationSpec((3,), "uint8")) is single
