"""Between replay and Minari datasets: joined episodes, what a round trip keeps, imports, bad input, learning offline."""

from __future__ import annotations

import asyncio
import csv
import itertools
import json
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest

from protos.codec import pack_segment
from qfleet.api import load_policy, train
from qfleet.cli import main as cli
from qfleet.config import to_yaml
from qfleet.presets import cartpole
from qfleet.run.offline import offline_preset
from replay.datasets.dataset import Dataset
from replay.datasets.episodes import episode_runs
from replay.datasets.export import DatasetWriter
from replay.importance_weights import BetaConfig
from replay.local import LocalReplay
from replay.rate_limiter import LimiterConfig, RateLimiter
from replay.store.selectors import SelectorConfig
from replay.store.shard import Shard
from replay.store.snapshots import Snapshots
from rl.envs.config import EnvConfig
from rl.envs.minari_files import dataset_path
from rl.errors import BadInput
from rl.returns import ReturnConfig
from rl.segments import SegmentBuilder, stack_frames
from rl.types import ObservationSpec
from tests.conftest import ROOT
from tests.integration.shards import FREE, sampler, shards_fixture  # noqa: F401

minari = pytest.importorskip("minari")
N, G, ITEMS = 3, 0.9, 4
RETURNS = ReturnConfig(n_step=N, gamma=G)


@pytest.fixture(autouse=True)
def datasets(tmp_path, monkeypatch):
    """Minari's root of this test."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path / "minari"


def play(spec, steps, end, base=0, episode=0, returns=RETURNS):
    """Segments of an episode whose frame k is full of base + k, as an actor would cut them."""
    builder, segments = SegmentBuilder(returns, spec, ITEMS, first_episode=episode), []
    frame = lambda k: np.full(spec.frame_shape, base + k, spec.dtype)  # noqa: E731
    builder.begin(frame(0))
    for k in range(steps):
        ends = [k == steps - 1 and end == kind for kind in ("terminated", "truncated")]
        closed = builder.add(np.zeros(2), k % 2, 1.0 + k, *ends, k % 5 == 2, k, frame(k + 1))
        segments += [closed.segment] if closed else []
    return segments


def transitions(segments, stack):
    """{(s_tm1, action, r_t, discount_t, s_t, lost life, version)} of every item; stacks as their frames' numbers."""
    rows = []
    for s in segments:
        start = s.item_step.astype(int)
        before, after = (stack_frames(s.frames, at, stack) for at in (start, start + s.item_length.astype(int)))
        for i, at in enumerate(start):
            numbers = [tuple(x[i].reshape(stack, -1)[:, 0].tolist()) for x in (before, after)]
            figures = int(s.actions[at]), round(float(s.r_t[i]), 4), round(float(s.discount_t[i]), 5)
            rows.append((numbers[0], *figures, numbers[1], bool(s.lost_life[at]), int(s.versions[at])))
    assert len(set(rows)) == len(rows), "a transition is there twice"
    return set(rows)


def tail(stack, end):
    """The transitions that a run adds where it was cut at frame ``end``: those that bootstrap early from it."""
    rows, ending_at = set(), lambda x: tuple(float(k) for k in range(x - stack + 1, x + 1))
    for length in range(1, N):
        at = end - length
        r_t = sum(G**i * (1.0 + at + i) for i in range(length))
        rows.add((ending_at(at), at % 2, round(r_t, 4), round(G**length, 5), ending_at(end), at % 5 == 2, at))
    return rows


def stored(segments, writer="a"):
    return [(writer, pack_segment(s)) for s in segments]


def round_trip(segments, spec, name="qfleet/table-v0"):
    with DatasetWriter(name, spec, 2, None) as writer:
        for run in episode_runs(segments, spec):
            writer.append(run)
    dataset = Dataset(name)
    assert dataset.spec(spec, "the test") == spec
    return list(dataset.segments(spec, RETURNS, 7))


# which are left of an episode's 7 segments (of 4 items, the last of 6), how its 30 steps ended, at which frames it was cut
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
    """A cut run adds those that bootstrap from its last frame, and nothing else comes or goes."""
    left, end, cuts = TABLE[case]
    spec = ObservationSpec((2,), "float32", stack)
    segments = play(spec, 30, end)
    expected = transitions([segments[i] for i in set(left)], stack).union(*(tail(stack, cut) for cut in cuts))
    assert transitions(round_trip(stored([segments[i] for i in left]), spec), stack) == expected


def test_a_hole_that_its_neighbours_frames_cover_is_none():
    """Segments of 4 items share 6 frames: without one of them every step is there still."""
    spec = ObservationSpec((2,), "float32", 4)
    segments = play(spec, 30, "terminated")
    assert transitions(round_trip(stored(segments[:2] + segments[3:]), spec), 4) == transitions(segments, 4)


def test_segments_that_only_touch_are_joined():
    """With n = 1 and no stack they share one frame, and no step."""
    segments = play(ObservationSpec((1,), "float32"), 10, "terminated", returns=replace(RETURNS, n_step=1))
    assert len(segments) == 3
    (run,) = episode_runs(stored(segments), ObservationSpec((1,), "float32"))
    assert run.frames[:, 0].tolist() == list(range(11))


def test_shards_writers_and_episodes_are_told_apart():
    """Two writers with the same episode's number, an episode over two shards, and short ones."""
    spec = ObservationSpec((1,), "float32", 4)
    mine, theirs = play(spec, 20, "terminated"), play(spec, 20, "truncated", base=100)
    short = [*play(spec, 1, "terminated", 200, 1), *play(spec, 2, "truncated", 300, 2)]
    one = [*stored(mine[::2]), *stored(theirs[1::2], "b"), *stored(short[:1])]
    two = [*stored(theirs[::2], "b"), *stored(short[1:]), *stored(mine[1::2])]
    expected = transitions([*mine, *theirs, *short], 4)
    assert transitions(round_trip([*one, *two], spec), 4) == expected
    assert transitions(round_trip([*two, *one], spec, "other-v0"), 4) == expected
    assert Dataset("other-v0").episodes == 4


def test_no_stack_begins_with_frames_that_never_were():
    """A run that begins at a later step of its episode, shorter than a stack and as long as one."""
    spec = ObservationSpec((1,), "float32", 4)
    for frames, items in ((4, 0), (5, 1)):
        builder = SegmentBuilder(RETURNS, spec, ITEMS)
        builder.begin(np.zeros(1, np.float32), first_step=1)
        steps = [
            builder.add(np.zeros(2), 0, 1.0, k == frames - 2, False, False, 0, np.zeros(1)) for k in range(frames - 1)
        ]
        closed = [c.segment for c in steps if c is not None]
        assert sum(s.items for s in closed) == items
        assert all(s.first_step == 1 and s.item_step[0] == 3 for s in closed)


def test_any_part_of_an_episode_in_any_order_joins_to_each_step_once(rng):
    spec = ObservationSpec((1,), "float32", 2)
    segments = play(spec, 60, "terminated")
    for _ in range(40):
        left = [segments[i] for i in rng.permutation(len(segments))[: rng.integers(1, len(segments) + 1)]]
        runs = list(episode_runs(stored(left), spec))
        expected = set().union(*(range(s.first_step, s.first_step + len(s.actions)) for s in left))
        assert sorted(k for r in runs for k in range(r.first_step, r.first_step + r.steps)) == sorted(expected)
        for r in runs:
            assert r.frames[:, 0].tolist() == list(range(r.first_step, r.first_step + r.steps + 1))
            assert r.rewards.tolist() == [1.0 + k for k in range(r.first_step, r.first_step + r.steps)]
            assert r.cut == (r.first_step + r.steps < 60)
        gaps = [b.first_step - a.first_step - a.steps for a, b in itertools.pairwise(runs)]
        assert all(gap > 0 for gap in gaps), "runs that touch were not joined"


def test_pixels_are_kept_without_loss_and_compressed(rng, datasets):
    spec = ObservationSpec((84, 84), "uint8", 4)
    builder, segments = SegmentBuilder(RETURNS, spec, 40), []
    frames = np.zeros((61, 84, 84), np.uint8)
    frames[:, 20:30, 20:30] = rng.integers(0, 256, (61, 10, 10))
    builder.begin(frames[0])
    for k in range(60):
        closed = builder.add(np.zeros(6), k % 6, 1.0, False, k == 59, False, 3, frames[k + 1])
        segments += [closed.segment] if closed else []
    env = EnvConfig(id="PongNoFrameskip-v4", sticky=0.25)
    with DatasetWriter("qfleet/pong-v0", spec, 6, env) as writer:
        for run in episode_runs(stored(segments), spec):
            writer.append(run)
    assert writer.bytes < frames.nbytes / 4
    theirs = minari.load_dataset("qfleet/pong-v0")  # as anybody else reads it
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


def test_what_was_cut_is_marked():
    spec = ObservationSpec((2,), "float32", 4)
    segments = play(spec, 40, "terminated")
    with DatasetWriter("cut-v0", spec, 2, None) as writer:
        for run in episode_runs(stored([*segments[1:3], *segments[6:]]), spec):
            writer.append(run)
    first, second = minari.load_dataset("cut-v0").iterate_episodes()
    assert (first.infos["step"][0], first.infos["cut"][-1], first.truncations[-1]) == (1, True, True)
    assert (second.infos["step"][0], second.infos["cut"].any(), second.terminations[-1]) == (21, False, True)
    assert first.rewards.tolist() == [1.0 + k for k in range(1, 1 + len(first))]
    assert first.infos["lost_life"][1:].tolist() == [k % 5 == 2 for k in range(1, 1 + len(first))]


def test_an_export_that_fails_leaves_nothing(datasets):
    spec = ObservationSpec((2,), "float32")
    with pytest.raises(KeyboardInterrupt), DatasetWriter("qfleet/half-v0", spec, 2, None) as writer:
        writer.append(next(episode_runs(stored(play(spec, 5, "terminated")), spec)))
        raise KeyboardInterrupt
    assert not [p for p in datasets.rglob("*") if p.is_file()]


# --- datasets of others ---------------------------------------------------------------------------------------------------


def foreign(name, observations, actions, episodes, env_spec=None):
    """A dataset as somebody else may have made it: episodes of dictionaries for Minari's EpisodeBuffer."""
    from minari.data_collector.episode_buffer import EpisodeBuffer
    from minari.dataset.minari_storage import MinariStorage

    path, identity = dataset_path(name)
    path.mkdir(parents=True)
    storage = MinariStorage.new(path / "data", observations, actions, env_spec)
    storage.update_metadata({"dataset_id": identity, "minari_version": minari.__version__})
    storage.update_episodes([EpisodeBuffer(**e) for e in episodes])


def episode(steps, shape=(4,), actions=None, **changes):
    no = np.zeros(steps, np.bool_)
    return {
        "observations": np.arange((steps + 1) * int(np.prod(shape)), dtype=np.float64).reshape(steps + 1, *shape),
        "actions": np.ones(steps, np.int64) if actions is None else np.asarray(actions),
        "rewards": np.ones(steps),
        "terminations": no,
        "truncations": no,
        **changes,
    }


BOX = gym.spaces.Box(-np.inf, np.inf, (4,), np.float64)


def test_a_dataset_of_others_whose_actions_count_from_1_and_whose_lives_are_told():
    first = episode(3, actions=[1, 2, 2], infos={"lives": np.array([3, 3, 2, 2])})
    foreign(
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
    assert two.truncated.tolist() == [False, True]  # it ended somehow: it bootstraps
    assert two.discount_t.tolist() == pytest.approx([G**2, G])


def test_single_frames_are_stacked_and_whole_stacks_are_taken_as_they_are():
    foreign("frames-v0", gym.spaces.Box(-9, 9, (3,), np.float32), gym.spaces.Discrete(2), [episode(6, (3,))])
    foreign("stacks-v0", gym.spaces.Box(-9, 9, (2, 3), np.float32), gym.spaces.Discrete(2), [episode(6, (2, 3))])
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
        ({"terminations": np.array([True, False, False])}, "after its end at step 0"),
        ({"actions": np.array([0, 1, 2])}, "outside the 2"),
        ({"observations": np.zeros((3, 4))}, "3 observations"),
    ],
)
def test_a_damaged_episode_is_named(changes, words):
    foreign("broken-v0", BOX, gym.spaces.Discrete(2), [episode(2), episode(3, **changes)])
    with pytest.raises(BadInput, match=f"episode 1: .*{words}"):
        list(Dataset("broken-v0").segments(ObservationSpec((4,), "float32"), RETURNS, 5))


# --- commands -------------------------------------------------------------------------------------------------------------


def balance(steps, epsilons, seed=0, items=20):
    """A shard full of CartPole, played by a simple controller that errs with each of ``epsilons``; mean return."""
    spec, rng = ObservationSpec((4,), "float32"), np.random.default_rng(seed)
    shard = Shard(steps + 600, spec, SelectorConfig(), limited=False)
    local = LocalReplay(shard, RateLimiter(FREE, items + 2, 32), BetaConfig())
    builder, env = SegmentBuilder(ReturnConfig(), spec, items, seed << 24), gym.make("CartPole-v1")
    returns: list[float] = []
    while sum(returns) < steps:  # CartPole pays 1 a step
        epsilon, done, played = epsilons[len(returns) % len(epsilons)], False, 0
        x, _ = env.reset(seed=int(rng.integers(2**31)))
        builder.begin(x)
        while not done:
            action = int(rng.integers(2)) if rng.random() < epsilon else int(x[2] + 0.5 * x[3] > 0)
            x, reward, terminated, truncated, _ = env.step(action)
            done, played = terminated or truncated, played + 1
            closed = builder.add(
                np.zeros(2), action, float(reward), terminated, truncated and not terminated, False, 0, x
            )
            if closed is not None:
                local.write(closed.segment)
        returns.append(played)
    return shard, float(np.mean(returns))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's directory with a snapshot of 2,000 steps of CartPole over two shards."""
    run = tmp_path_factory.mktemp("runs") / "cartpole"
    for i in range(2):
        shard, _ = balance(1_000, [0.5, 1.0], seed=i)

        async def save(shard=shard, directory=run / "replay" / f"shard-{i}"):
            directory.mkdir(parents=True)
            empty = Snapshots(directory, shard)
            await empty.finish()

        asyncio.run(save())
    (run / "config.yaml").write_text(to_yaml(cartpole()))
    return run


def test_export_then_import_by_the_command_line(run, shards, capsys):
    assert cli.main(["replay", "export", str(run), "--to", "qfleet/cartpole-v0", "--json"]) == 0
    out = capsys.readouterr().out.splitlines()
    figures = json.loads(out[-1])
    assert figures["steps"] >= 2_000
    assert figures["path"] in out[0]
    dataset = Dataset("qfleet/cartpole-v0")
    assert (dataset.steps, dataset.episodes, dataset.actions) == (figures["steps"], figures["episodes"], 2)
    assert dataset.env == EnvConfig(id="CartPole-v1")
    code = (ROOT / "docs" / "datasets.md").read_text().split("```python\n")[1].split("```")[0]
    exec(code, {})
    assert len(capsys.readouterr().out.splitlines()) >= dataset.steps / 43
    two = shards(2, "--shape", 4, "--dtype", "float32", "--capacity", 10_000)
    addresses = [s.address for s in two]
    assert cli.main(["replay", "import", "qfleet/cartpole-v0", "--to", *addresses, "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["items"] == dataset.steps
    counts = [s.counts() for s in two]
    assert sum(c.stored for c in counts) == dataset.steps
    assert min(c.stored for c in counts) > dataset.steps / 4
    source = sampler(two, spec=ObservationSpec((4,), "float32"))
    assert source.sample(10.0).transitions.s_tm1.shape == (32, 4)
    source.close()


def test_export_of_one_shard_without_its_run(run, capsys):
    shard = run / "replay" / "shard-1"
    assert cli.main(["replay", "export", str(shard), "--to", "one-v0"]) == 0
    assert Dataset("one-v0").env is None
    assert cli.main(["replay", "export", str(shard), "--to", "two-v0", "--env", "CartPole-v1"]) == 0
    assert Dataset("two-v0").env == EnvConfig(id="CartPole-v1")
    assert Dataset("two-v0").steps == Dataset("one-v0").steps


@pytest.fixture
def examples(tmp_path, run):
    """Datasets that do not fit, by name."""
    discrete = gym.spaces.Discrete(2)
    foreign("wide-v0", gym.spaces.Box(-9, 9, (9,), np.float32), discrete, [episode(3, (9,))], gym.spec("CartPole-v1"))
    foreign("many-v0", BOX, gym.spaces.Discrete(5), [episode(3)], gym.spec("CartPole-v1"))
    foreign("nameless-v0", BOX, discrete, [episode(3)])
    foreign("nowhere-v0", BOX, discrete, [episode(3)], replace(gym.spec("CartPole-v1"), id="Nowhere-v9"))
    foreign("push-v0", BOX, gym.spaces.Box(-1, 1, (1,)), [episode(3, actions=np.zeros((3, 1)))])
    both = gym.spaces.Dict({"a": BOX})
    foreign("dict-v0", both, discrete, [episode(3, observations={"a": np.zeros((4, 4))})])
    foreign("empty-v0", BOX, discrete, [])
    (tmp_path / "here-v0" / "data").mkdir(parents=True)
    (tmp_path / "bare").mkdir()
    return {"HERE": tmp_path, "RUN": run}


BAD = {
    "no such dataset": (["train", "--offline", "qfleet/pongg-v0"], "there is no dataset qfleet/pongg-v0"),
    "no version": (["train", "--offline", "qfleet/pong"], "end in its version"),
    "a directory without data": (["train", "--offline", "HERE/here-v0"], "cannot be read"),
    "continuous actions": (["train", "--offline", "push-v0"], "Discrete action space"),
    "dict observations": (["train", "--offline", "dict-v0"], "Box space"),
    "empty": (["train", "--offline", "empty-v0"], "is empty"),
    "no environment": (["train", "--offline", "nameless-v0"], "--env.id"),
    "an environment that is not here": (["train", "--offline", "nowhere-v0"], "Nowhere-v9"),
    "observations of another size": (["train", "--offline", "wide-v0"], "float32 9, CartPole-v1 has float32 4"),
    "another number of actions": (["train", "--offline", "many-v0"], "5 actions, CartPole-v1 has 2"),
    "a preset of something else": (["train", "pong", "--offline", "wide-v0"], "2 actions, PongNoFrameskip-v4 has 6"),
    "no limit": (["train", "cartpole", "--offline", "nameless-v0", "--max-updates", "0"], "--max-updates"),
    "on a cluster": (["train", "cartpole", "--offline", "nameless-v0", "--address", "auto"], "leave --address out"),
    "negative updates": (["train", "cartpole", "--max-updates", "-1"], "--max-updates is -1"),
    "export of nothing": (["replay", "export", "HERE/bare", "--to", "x-v0"], "no snapshot"),
    "export to no name": (["replay", "export", "RUN", "--to", "x"], "end in its version"),
    "export onto another": (["replay", "export", "RUN", "--to", "many-v0"], "already there"),
    "export as something else": (
        ["replay", "export", "RUN", "--to", "x-v0", "--env", "Acrobot-v1"],
        "Acrobot-v1 gives",
    ),
    "export of no environment": (["replay", "export", "RUN", "--to", "x-v0", "--env", "Nope-v1"], "Nope-v1"),
    "import to nobody": (
        ["replay", "import", "many-v0", "--to", "127.0.0.1:1"],
        "no replay shard answers at 127.0.0.1:1",
    ),
    "import of nothing": (["replay", "import", "none-v0", "--to", "127.0.0.1:1"], "there is no dataset none-v0"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_status_2(case, examples, capsys):
    args, words = BAD[case]
    for key, value in examples.items():
        args = [a.replace(key, str(value)) for a in args]
    assert cli.main(args) == 2
    printed = capsys.readouterr()
    (line,) = printed.err.strip().splitlines()
    assert line.startswith("qfleet: ")
    assert words in line


def test_without_minari_it_is_said_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    assert cli.main(["train", "--offline", "qfleet/pong-v0"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert '".[datasets]"' in line


def test_shards_of_another_kind_are_named(shards, capsys):
    foreign("plain-v0", BOX, gym.spaces.Discrete(2), [episode(3)])
    (pixels,) = shards(1, "--shape", 20, 20, "--dtype", "uint8", "--stack", 4)
    assert cli.main(["replay", "import", "plain-v0", "--to", pixels.address]) == 2
    assert "float64 4, the shard at" in capsys.readouterr().err


# --- learning -------------------------------------------------------------------------------------------------------------


def exported(shard, name):
    with DatasetWriter(name, shard.spec, 2, EnvConfig(id="CartPole-v1")) as writer:
        for joined in episode_runs(((k.writer, k.message) for k in shard.storage.segments()), shard.spec):
            writer.append(joined)


def offline(name, **changes):
    config = offline_preset(name, "cartpole", None)
    return replace(config, learner=replace(config.learner, device="cpu", metrics_period=50), **changes)


def test_offline_training_writes_its_run_and_goes_on(tmp_path, capsys):
    exported(balance(1_500, [0.3, 1.0])[0], "cartpole-v0")
    goal_out_of_reach = replace(cartpole().evaluation, period=100, quick_episodes=2, goal=1e9)
    config = offline("cartpole-v0", max_updates=200, evaluation=goal_out_of_reach)
    small = replace(config, replay=replace(config.replay, capacity=1_200, limiter=LimiterConfig(min_size=100)))
    summary = train(small, run_dir=tmp_path / "run")
    assert (summary["updates"], summary["agent_steps"], summary["solved"]) == (200, 0, False)
    assert summary["mean_return"] is not None
    again = train(config, run_dir=tmp_path / "again")
    assert again["mean_return"] == summary["mean_return"]  # the same seed, whatever capacity was asked for
    steps = Dataset("cartpole-v0").steps
    assert f"replay.capacity is {steps:,}" in capsys.readouterr().err.replace("\n", " ")
    more = ["train", "--resume", str(tmp_path / "run"), "--max-updates", "350", "--json"]
    assert cli.main(more) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["updates"] == 350
    with (tmp_path / "run" / "eval.csv").open() as file:
        assert [int(row["updates"]) for row in csv.DictReader(file)] == [100, 200, 300]
    for name in ("config.yaml", "tensorboard", "checkpoints", "best", "metrics.csv", "summary.json"):
        assert (tmp_path / "run" / name).exists()
    assert load_policy(tmp_path / "run").act(np.zeros((3, 4))).shape == (3,)


def test_the_environment_is_the_datasets_unless_told_otherwise(tmp_path):
    exported(balance(200, [1.0])[0], "cartpole-v0")
    args = ["train", "--offline", "cartpole-v0", "--max-updates", "20", "--run-dir", str(tmp_path / "run")]
    assert cli.main(args) == 0
    assert "id: CartPole-v1" in (tmp_path / "run" / "config.yaml").read_text()


def test_updates_limit_a_run_with_actors_too(tmp_path):
    config = replace(cartpole(), max_updates=30)
    config = replace(config, replay=replace(config.replay, limiter=replace(config.replay.limiter, min_size=200)))
    summary = train(config, run_dir=tmp_path / "run", serial=True)
    assert 30 <= summary["updates"] < 60
    assert summary["agent_steps"] < 2_000


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_cartpole_is_learned_from_a_poor_players_dataset(tmp_path, seed):
    """50,000 steps of a player that errs half the time or more; its mean return is below 100."""
    shard, mean = balance(50_000, [0.5, 0.7, 1.0])
    assert mean < 100
    exported(shard, "poor-v0")
    summary = train(offline("poor-v0", seed=seed, max_updates=50_000), run_dir=tmp_path / "run")
    assert summary["solved"]
    assert summary["mean_return"] >= 475
