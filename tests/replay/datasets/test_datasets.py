"""Export of replay to Minari datasets and import: joined episodes, and round trips."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from protos.codec import pack_segment
from replay.datasets.dataset import Dataset
from replay.datasets.episodes import episode_fragments
from replay.datasets.export import DatasetWriter
from replay.store.storage import StoredSegment
from rl.envs.config import EnvConfig
from rl.returns import ReturnConfig
from rl.segments import SegmentBuilder, stack_frames
from rl.types import ObservationSpec
from tests.replay.datasets.made import add_step, datasets_fixture  # noqa: F401

minari = pytest.importorskip("minari")
N, G, ITEMS = 3, 0.9, 4
RETURNS = ReturnConfig(n_step=N, gamma=G)


def play(spec, steps, end, base=0, episode=0, returns=RETURNS):
    """Return the segments that an actor would send for an episode whose frame k is filled with base + k."""
    builder, segments = SegmentBuilder(returns, spec, ITEMS, first_episode=episode), []
    frame = lambda k: np.full(spec.frame_shape, base + k, spec.dtype)  # noqa: E731
    builder.begin(frame(0))
    for k in range(steps):
        ends = [k == steps - 1 and end == kind for kind in ("terminated", "truncated")]
        segments += add_step(
            builder,
            action=k % 2,
            reward=1.0 + k,
            terminated=ends[0],
            truncated=ends[1],
            lost_life=k % 5 == 2,
            version=k,
            frame=frame(k + 1),
        )
    return segments


def transitions(segments, stack):
    """Return the set of (s_tm1, action, r_t, discount_t, s_t, lost life, version) of all items; frames as numbers."""
    rows = []
    for s in segments:
        start = s.item_step.astype(int)
        before, after = (stack_frames(s.frames, at, stack) for at in (start, start + s.item_length.astype(int)))
        for i, at in enumerate(start):
            numbers = [tuple(x[i].reshape(stack, -1)[:, 0].tolist()) for x in (before, after)]
            figures = int(s.actions[at]), round(float(s.r_t[i]), 4), round(float(s.discount_t[i]), 5)
            rows.append((numbers[0], *figures, numbers[1], bool(s.lost_life[at]), int(s.versions[at])))
    assert len(set(rows)) == len(rows), "a transition occurs twice"
    return set(rows)


def tail(stack, end):
    """Return the additional transitions of a fragment cut at frame ``end``: they bootstrap early, from ``end``."""
    rows, ending_at = set(), lambda x: tuple(float(k) for k in range(x - stack + 1, x + 1))
    for length in range(1, N):
        at = end - length
        r_t = sum(G**i * (1.0 + at + i) for i in range(length))
        rows.add((ending_at(at), at % 2, round(r_t, 4), round(G**length, 5), ending_at(end), at % 5 == 2, at))
    return rows


def stored(segments, writer="a"):
    return [StoredSegment(writer, 0, pack_segment(s)) for s in segments]


def round_trip(segments, spec, name="qfleet/table-v0"):
    with DatasetWriter(name, spec, 2, None) as writer:
        for run in episode_fragments(segments, spec):
            writer.append(run)
    dataset = Dataset(name)
    assert dataset.spec(spec, "the test") == spec
    return list(dataset.segments(spec, RETURNS, 7))


# the segments that are stored of the 7 of an episode (4 items each, the last one 6), the end of its 30 steps, and the
# frames at which it is cut
TABLE = {
    "terminated": (range(7), "terminated", []),
    "truncated": (range(7), "truncated", []),
    "unfinished": (range(4), "unfinished", [18]),
    "the beginning evicted": (range(2, 7), "terminated", []),
    "a hole in the middle": ([0, 1, 4, 5, 6], "terminated", [10]),
    "no beginning, no end": ([2, 3], "terminated", [18]),
    "one segment alone": ([3], "terminated", [18]),
    "in any order": ([3, 6, 0, 4, 2, 1, 5], "truncated", []),
    "some of it twice": ([0, 1, 2, 1, 3, 4, 3, 5, 6], "terminated", []),
}


@pytest.mark.parametrize("stack", [1, 4])
@pytest.mark.parametrize("case", TABLE)
def test_a_round_trip_keeps_the_transitions(case, stack):
    """A cut fragment adds the transitions that bootstrap from its last frame; there is no other difference."""
    left, end, cuts = TABLE[case]
    spec = ObservationSpec((2,), "float32", stack)
    segments = play(spec, 30, end)
    expected = transitions([segments[i] for i in set(left)], stack).union(*(tail(stack, cut) for cut in cuts))
    assert transitions(round_trip(stored([segments[i] for i in left]), spec), stack) == expected


def test_a_missing_segment_covered_by_its_neighbours_leaves_no_gap():
    """Consecutive segments share 6 frames, so without one segment of 4 items every step is still stored."""
    spec = ObservationSpec((2,), "float32", 4)
    segments = play(spec, 30, "terminated")
    assert transitions(round_trip(stored(segments[:2] + segments[3:]), spec), 4) == transitions(segments, 4)


def test_segments_with_one_common_frame_are_joined():
    """With n = 1 and no stack consecutive segments share one frame and no step."""
    segments = play(ObservationSpec((1,), "float32"), 10, "terminated", returns=replace(RETURNS, n_step=1))
    assert len(segments) == 3
    (run,) = episode_fragments(stored(segments), ObservationSpec((1,), "float32"))
    assert run.frames[:, 0].tolist() == list(range(11))


def test_episodes_are_distinguished_by_writer_and_number():
    """Two writers with the same episode number, an episode on two shards, and short episodes."""
    spec = ObservationSpec((1,), "float32", 4)
    mine, theirs = play(spec, 20, "terminated"), play(spec, 20, "truncated", base=100)
    short = [*play(spec, 1, "terminated", 200, 1), *play(spec, 2, "truncated", 300, 2)]
    one = [*stored(mine[::2]), *stored(theirs[1::2], "b"), *stored(short[:1])]
    two = [*stored(theirs[::2], "b"), *stored(short[1:]), *stored(mine[1::2])]
    expected = transitions([*mine, *theirs, *short], 4)
    assert transitions(round_trip([*one, *two], spec), 4) == expected
    assert transitions(round_trip([*two, *one], spec, "other-v0"), 4) == expected
    assert Dataset("other-v0").episodes == 4


def test_no_item_starts_where_its_stack_is_incomplete():
    """The fragment begins after the episode's first step, and has 3 or 4 steps: no item, or one."""
    spec = ObservationSpec((1,), "float32", 4)
    for frames, items in ((4, 0), (5, 1)):
        builder = SegmentBuilder(RETURNS, spec, ITEMS)
        builder.begin(np.zeros(1, np.float32), first_step=1)
        closed = []
        for k in range(frames - 1):
            closed += add_step(builder, action=0, terminated=k == frames - 2, frame=np.zeros(1))
        assert sum(s.items for s in closed) == items
        assert all(s.first_step == 1 and s.item_step[0] == 3 for s in closed)


def test_any_segments_in_any_order_join_to_each_step_once(rng):
    spec = ObservationSpec((1,), "float32", 2)
    segments = play(spec, 60, "terminated")
    for _ in range(40):
        left = [segments[i] for i in rng.permutation(len(segments))[: rng.integers(1, len(segments) + 1)]]
        runs = list(episode_fragments(stored(left), spec))
        expected = set().union(*(range(s.first_step, s.first_step + len(s.actions)) for s in left))
        assert sorted(k for r in runs for k in range(r.first_step, r.first_step + r.steps)) == sorted(expected)
        for r in runs:
            assert r.frames[:, 0].tolist() == list(range(r.first_step, r.first_step + r.steps + 1))
            assert r.rewards.tolist() == [1.0 + k for k in range(r.first_step, r.first_step + r.steps)]
            assert r.is_cut == (r.first_step + r.steps < 60)
        gaps = [b.first_step - a.first_step - a.steps for a, b in itertools.pairwise(runs)]
        assert all(gap > 0 for gap in gaps), "fragments that touch were not joined"


def test_pixels_are_kept_without_loss_and_compressed(rng, datasets):
    spec = ObservationSpec((84, 84), "uint8", 4)
    builder, segments = SegmentBuilder(RETURNS, spec, 40), []
    frames = np.zeros((61, 84, 84), np.uint8)
    frames[:, 20:30, 20:30] = rng.integers(0, 256, (61, 10, 10))
    builder.begin(frames[0])
    for k in range(60):
        segments += add_step(builder, action=k % 6, truncated=k == 59, version=3, frame=frames[k + 1])
    env = EnvConfig(id="PongNoFrameskip-v4", sticky=0.25)
    with DatasetWriter("qfleet/pong-v0", spec, 6, env) as writer:
        for run in episode_fragments(stored(segments), spec):
            writer.append(run)
    assert writer.bytes < frames.nbytes / 4
    theirs = minari.load_dataset("qfleet/pong-v0")  # with Minari alone
    (episode,) = theirs.iterate_episodes()
    np.testing.assert_array_equal(episode.observations, frames)
    assert episode.truncations.tolist() == [False] * 59 + [True]
    assert episode.infos["weights_version"].tolist() == [0] + [3] * 60
    assert not episode.infos["cut"].any()
    recovered = theirs.recover_environment()
    assert recovered.observation_space.shape == (84, 84)
    recovered.close()
    dataset = Dataset(str(datasets / "qfleet" / "pong-v0"))  # by its path
    assert dataset.env == env
    got = list(dataset.segments(spec, RETURNS, 40))
    np.testing.assert_array_equal(got[0].frames, segments[0].frames)
    assert "qfleet/pong-v0" in minari.list_local_datasets()


def test_cut_fragments_are_marked():
    spec = ObservationSpec((2,), "float32", 4)
    segments = play(spec, 40, "terminated")
    with DatasetWriter("cut-v0", spec, 2, None) as writer:
        for run in episode_fragments(stored([*segments[1:3], *segments[6:]]), spec):
            writer.append(run)
    first, second = minari.load_dataset("cut-v0").iterate_episodes()
    assert (first.infos["step"][0], first.infos["cut"][-1], first.truncations[-1]) == (1, True, True)
    assert (second.infos["step"][0], second.infos["cut"].any(), second.terminations[-1]) == (21, False, True)
    assert first.rewards.tolist() == [1.0 + k for k in range(1, 1 + len(first))]
    assert first.infos["lost_life"][1:].tolist() == [k % 5 == 2 for k in range(1, 1 + len(first))]


def test_a_failed_export_leaves_no_files(datasets):
    spec = ObservationSpec((2,), "float32")
    with pytest.raises(KeyboardInterrupt), DatasetWriter("qfleet/half-v0", spec, 2, None) as writer:
        writer.append(next(episode_fragments(stored(play(spec, 5, "terminated")), spec)))
        raise KeyboardInterrupt
    assert not [p for p in datasets.rglob("*") if p.is_file()]
