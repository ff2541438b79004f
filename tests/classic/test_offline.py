"""Q-learning from a dataset, in a table: values against value iteration, masked actions, BabyAI's worlds, bad input."""

from __future__ import annotations

import json
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest

from classic import babyai
from classic.babyai import MakeDatasetConfig, make_dataset
from classic.interface import RecordingMonitor
from classic.offline_data import read
from classic.offline_q import OfflineQConfig, offline_q, taken_values
from classic.tables import States
from rl.envs.config import EnvConfig
from rl.envs.grid_states import MISSION, is_grid, pack, picture, unpack
from rl.envs.make import make_environments, make_rendered
from rl.envs.minari_files import NewDataset, open_dataset
from rl.envs.vector import single
from rl.errors import BadInput, RunFault
from rl.evaluation import evaluate
from rl.policies import epsilon_greedy_probabilities

minari = pytest.importorskip("minari")
pytest.importorskip("minigrid")
from minigrid.core.constants import COLOR_TO_IDX, OBJECT_TO_IDX  # noqa: E402

PICKUP = EnvConfig(id="BabyAI-Pickup-v0")
CLIFF = EnvConfig(id="CliffWalking-v1")  # 48 states, 4 actions
EPISODES = 8
PICK_UP = 3  # MiniGrid's number of the action


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("minari")


@pytest.fixture(autouse=True)
def _datasets(root, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(root))


@pytest.fixture(scope="module")
def pickup(root):
    """The name of a dataset that the bot played, and what `make_dataset` says of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(root))
        config = MakeDatasetConfig(episodes=EPISODES, first_seed=3)
        return config.name, make_dataset(config, RecordingMonitor())


@pytest.fixture(scope="module")
def learned(root, pickup):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(root))
        return offline_q(OfflineQConfig(dataset=pickup[0]), PICKUP, 1, RecordingMonitor())


def write(name, episodes, states=48, space=None, action_space=None, seeds=None):
    """A dataset of episodes [(states, actions, rewards, how it ends)]."""
    spaces = space or gym.spaces.Discrete(states), action_space or gym.spaces.Discrete(4)
    with NewDataset(name, *spaces, None, {}) as dataset:
        for k, (rows, actions, rewards, end) in enumerate(episodes):
            ended = np.zeros((2, len(rewards)), np.bool_)
            ended[("terminated", "truncated").index(end), -1] = True
            dataset.add(
                np.asarray(rows, spaces[0].dtype),
                np.asarray(rewards, float),
                actions=np.asarray(actions, spaces[1].dtype),
                terminations=ended[0],
                truncations=ended[1],
                infos={},
                seed=None if seeds is None else seeds[k],
            )
    return name


def learn(name, env=CLIFF, **settings):
    return offline_q(OfflineQConfig(dataset=name, **{"gamma": 0.9, **settings}), env, 1, RecordingMonitor())


def random_episodes(rng, count=60, states=6, actions=3):
    """Chance plays a random world with costs; half of the episodes end by a time limit."""
    for k in range(count):
        rows = rng.integers(0, states, rng.integers(2, 9))
        steps = len(rows) - 1
        end = ("terminated", "truncated")[k % 2]
        yield rows, rng.integers(0, actions, steps), rng.normal(-1.0, 1.0, steps), end


def value_iteration(episodes, gamma):
    """{(s, a): q} of the model that the episodes are, over the actions that they took, by dictionaries."""
    outcomes: dict = {}
    for rows, actions, rewards, end in episodes:
        for t, (s, a, r, s2) in enumerate(zip(rows, actions, rewards, rows[1:], strict=False)):
            over = end == "terminated" and t == len(actions) - 1
            outcomes.setdefault((int(s), int(a)), []).append((r, None if over else int(s2)))
    q = dict.fromkeys(outcomes, 0.0)
    for _ in range(300):
        best: dict = {}
        for (s, _), value in q.items():
            best[s] = max(best.get(s, -np.inf), value)
        q = {key: np.mean([r + gamma * best.get(s2, 0.0) for r, s2 in seen]) for key, seen in outcomes.items()}
    return q


@pytest.mark.parametrize("alpha", [1.0, 0.3])
def test_the_values_are_those_of_value_iteration_on_the_datas_own_model(tmp_path, rng, alpha):
    episodes = list(random_episodes(rng))
    got = learn(write(str(tmp_path / "d-v0"), episodes), alpha=alpha, tolerance=1e-12, sweeps=5_000)
    expected = value_iteration(episodes, 0.9)
    assert len(expected) == (got.arrays["counts"] > 0).sum()
    for (s, a), q in expected.items():
        assert got.arrays["q"][s, a] == pytest.approx(q, abs=1e-9)
        assert got.values(np.array([s]))[0, a] == pytest.approx(q, abs=1e-9)


def test_a_terminal_state_does_not_bootstrap_and_a_truncated_one_does(tmp_path):
    ends = [([0, 2], [1], [1.0], "truncated"), ([1, 2], [1], [1.0], "terminated"), ([2, 3], [0], [2.0], "terminated")]
    q = learn(write(str(tmp_path / "d-v0"), ends)).arrays["q"]
    assert q[0, 1] == pytest.approx(1 + 0.9 * 2)
    assert q[1, 1] == pytest.approx(1)
    assert q[2, 0] == pytest.approx(2)


def test_no_action_is_chosen_because_nobody_tried_it(tmp_path):
    """Two steps at a cost of 1 each: the zeros of what was never tried would look better, and worth 0 to the step before."""
    costly = [([0, 1, 2], [3, 2], [-1.0, -1.0], "terminated"), ([0, 2], [1], [-5.0], "terminated")]
    got = learn(write(str(tmp_path / "d-v0"), costly))
    assert got.arrays["q"][0, 3] == pytest.approx(-1 + 0.9 * -1)
    assert got.policy(np.array([0, 1])).tolist() == [3, 2]
    assert got.policy(np.array([2, 40])).tolist() == [0, 0], "no one acted there: the first action"
    assert got.figures["value_max"] == pytest.approx(-1)
    assert got.figures["states"] == 3
    assert got.figures["states_seen_again"] == 2  # 0 and 2
    assert got.figures["actions_per_state"] == pytest.approx((2 + 1) / 2)
    assert got.figures["action_share"] == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3])
    assert got.figures["data_return"] == pytest.approx((-2 - 5) / 2)
    assert got.arrays["first_seen"][:4].tolist() == [[0, 0], [0, 1], [0, 2], [-1, -1]]
    assert [at["value"] for at in got.figures["highest"]] == pytest.approx([-1, -1.9])
    json.dumps(got.figures)


def test_the_policy_table_never_prefers_what_the_data_never_did(tmp_path):
    name = write(str(tmp_path / "d-v0"), [([0, 12], [2], [-5.0], "terminated")])
    learned = learn(name, training_seeds=0, epsilon=0.4)
    assert learned.arrays["q"][0].tolist() == [0, 0, -5, 0]  # the zeros would win
    assert learned.arrays["policy"][0] == pytest.approx([0.1, 0.1, 0.7, 0.1])


def test_the_policy_table_is_epsilon_greedy():
    q = taken_values(np.array([[1.0, 3.0, 2.0, 0.0], [0.0] * 4]), np.array([[1, 1, 1, 0], [0] * 4]))
    assert epsilon_greedy_probabilities(q, 0.1)[0] == pytest.approx([0.025, 0.9 + 0.025, 0.025, 0.025])
    assert epsilon_greedy_probabilities(q, 0.1)[1] == pytest.approx([0.9 + 0.025, 0.025, 0.025, 0.025])
    assert epsilon_greedy_probabilities(q, 0.0)[0].tolist() == [0, 1, 0, 0]
    for epsilon in (0.0, 0.3, 1.0):
        assert epsilon_greedy_probabilities(q, epsilon).sum(axis=1) == pytest.approx([1, 1])


def test_epsilon_is_fixed_or_falls_with_each_episode(tmp_path):
    name = write(str(tmp_path / "d-v0"), [([0, 1], [2], [1.0], "terminated")] * 3)
    assert learn(name, epsilon=0.4).arrays["policy"][0] == pytest.approx([0.1, 0.1, 0.6 + 0.1, 0.1])
    falling = learn(name, epsilon=0.4, epsilon_decay=0.5)
    assert falling.figures["epsilon"] == pytest.approx(0.4 * 0.5**3)
    assert learn(name, epsilon=0.4, epsilon_decay=0.5, epsilon_end=0.2).figures["epsilon"] == pytest.approx(0.2)


def test_sweeps_that_do_not_suffice_are_said(tmp_path):
    said = []
    monitor = RecordingMonitor()
    monitor.note = said.append
    name = write(str(tmp_path / "d-v0"), [([0, 1, 0], [0, 0], [1.0, 1.0], "truncated")])
    offline_q(OfflineQConfig(dataset=name, sweeps=5), CLIFF, 1, monitor)
    assert any("raise --sweeps" in text for text in said)
    assert any("no seeds" in text for text in said)
    assert [at for at, _ in monitor.rows] == [1, 2, 3, 4, 5]
    assert monitor.rows[0][1]["max_change"] == pytest.approx(1.0)
    assert monitor.rows[1][1]["max_change"] == pytest.approx(0.99)


def test_the_training_seeds_are_played_greedily(tmp_path):
    """Cliff walking, the way round of 13 steps in the data: up, 11 to the right, down."""
    rows, actions = [36, *range(24, 36), 47], [0] + [1] * 11 + [2]
    name = write(str(tmp_path / "d-v0"), [(rows, actions, [-1.0] * 13, "terminated")], seeds=[5])
    figures = learn(name, EnvConfig(id="CliffWalking-v1", max_episode_steps=50)).figures
    assert figures["training_return"] == figures["training_data_return"] == -13
    assert (figures["training_episodes"], figures["training_unknown"], figures["training_other_starts"]) == (1, 0, 0)
    elsewhere = write(str(tmp_path / "e-v0"), [([5, 6], [1], [-1.0], "terminated")], seeds=[5])
    figures = learn(elsewhere, EnvConfig(id="CliffWalking-v1", max_episode_steps=50)).figures
    assert (figures["training_unknown"], figures["training_other_starts"]) == (1, 1)
    assert "training_return" not in learn(name, training_seeds=0).figures


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


def test_every_part_of_a_grid_observation_tells_states_apart():
    image = np.zeros((4, 3, 3), np.uint8)
    image[1, 0] = OBJECT_TO_IDX["agent"], 0, 2
    image[1, 1] = OBJECT_TO_IDX["ball"], COLOR_TO_IDX["grey"], 0
    one = {"image": image, "direction": 1, "mission": "pick up a grey ball"}
    state = unpack(pack(one))
    assert (state.image == image).all()
    assert (state.direction, state.mission, state.agent) == (1, one["mission"], (1, 0))
    assert state.ahead == (OBJECT_TO_IDX["ball"], COLOR_TO_IDX["grey"], 0), "direction 1 looks down"
    assert picture(state, tile=8).shape == (3 * 8, 4 * 8, 3)
    others = [{**one, "direction": 2}, {**one, "mission": "pick up the grey ball"}, {**one, "image": image[::-1]}]
    assert len({pack(o).tobytes() for o in (one, *others)}) == 4
    with pytest.raises(ValueError, match="a mission has 257 bytes"):
        pack({**one, "mission": "x" * (MISSION + 1)})
    with pytest.raises(ValueError, match="not the whole grid"):
        pack({**one, "image": np.zeros((3, 2, 3), np.uint8)})


def test_a_table_takes_minigrids_worlds(tmp_path):
    config = replace(PICKUP, max_episode_steps=6)
    environments = make_environments(config, 2, takes="table")
    seen = []

    def policy(observations):
        seen.append(observations.copy())
        return np.full(len(observations), 2)

    result = evaluate(policy, environments, 2, 0.0, 1)
    assert [e.length for e in result.episodes] == [6, 6]
    assert seen[0].dtype == np.uint8
    assert seen[0].shape == (2, 3 + MISSION + 22 * 22 * 3)
    assert unpack(seen[0][0]).mission.startswith("pick up ")
    rendered = make_rendered(config, "table")
    observation, _ = rendered.reset(seed=3)
    assert (picture(unpack(observation), tile=32).shape) == rendered.render().shape


def test_the_levels_that_babyai_rejects_are_not_printed(capsys):
    def drawn(env):
        for seed in range(10):
            env.reset(seed=seed)
        return capsys.readouterr().out

    assert "Sampling rejected" in drawn(gym.make(PICKUP.id))
    assert drawn(single(PICKUP, "table")) == ""


def test_the_bots_dataset_keeps_seeds_and_observations(pickup):
    name, figures = pickup
    assert name == "qfleet/babyai-pickup-fullobs-v0"
    data = open_dataset(name)
    assert is_grid(data.observation_space)
    kept = list(data.storage.get_episode_metadata(range(EPISODES)))
    assert [episode["seed"] for episode in kept] == list(range(3, 3 + EPISODES))
    assert (figures["episodes"], figures["steps"], figures["skipped"]) == (EPISODES, data.total_steps, 0)
    assert figures["bytes"] < data.total_steps * 22 * 22 * 3 / 2, "compressed"
    episodes = list(data.iterate_episodes())
    assert figures["mean_return"] == pytest.approx(np.mean([e.rewards.sum() for e in episodes]))
    assert all(e.rewards.sum() > 0.5 and e.terminations[-1] and not e.truncations.any() for e in episodes)
    env = data.recover_environment()
    first, _ = env.reset(seed=3 + 7)
    assert (episodes[7].observations["image"][0] == first["image"]).all()
    assert episodes[7].observations["mission"][0] == first["mission"]
    with pytest.raises(BadInput, match="already there"):
        make_dataset(MakeDatasetConfig(episodes=1), RecordingMonitor())


def test_in_the_states_of_highest_value_the_target_can_be_picked_up(learned, pickup):
    data = open_dataset(pickup[0])
    for at in learned.figures["highest"][:2]:
        observed = data[at["episode"]].observations
        state = unpack(pack({key: column[at["step"]] for key, column in observed.items()}))
        *_, colour, kind = state.mission.split()
        assert state.ahead[:2] == (OBJECT_TO_IDX[kind], COLOR_TO_IDX[colour])
        assert (at["action"], at["mission"]) == (PICK_UP, state.mission)
    shape = (4, 22 * 16, 22 * 16, 3)
    assert learned.arrays["highest"].shape == learned.arrays["lowest"].shape == shape
    first = learned.figures["highest"][0]
    own = {key: column[first["step"]] for key, column in data[first["episode"]].observations.items()}
    assert (learned.arrays["highest"][0] == picture(unpack(pack(own)))).all()
    assert learned.figures["value_max"] == first["value"] > learned.figures["lowest"][0]["value"] > 0


def test_the_greedy_policy_solves_the_bots_levels_as_well_as_the_bot(learned, pickup):
    figures = learned.figures
    assert figures["training_data_return"] == pytest.approx(pickup[1]["mean_return"])
    assert figures["training_return"] >= figures["training_data_return"]
    assert (figures["training_episodes"], figures["training_unknown"], figures["training_other_starts"]) == (
        EPISODES,
        0,
        0,
    )
    assert figures["max_change"] == 0.0


def test_twice_the_same_and_a_directory_is_as_good_as_an_id(learned, pickup, root):
    settings = OfflineQConfig(dataset=str(root / pickup[0]), training_seeds=2)
    again = offline_q(settings, PICKUP, 2, RecordingMonitor())
    for name, array in learned.arrays.items():
        np.testing.assert_array_equal(array, again.arrays[name])
    assert again.figures["training_episodes"] == 2


def test_a_dataset_that_minari_itself_wrote_is_read(pickup):
    """As the published ones: Minari's own layout, another text space, its own seeds, nothing of ours in the metadata."""
    source = open_dataset(pickup[0])
    text = gym.spaces.Text(30, charset="abcdefghijklmnopqrstuvwxyz ")
    buffers = [
        minari.data_collector.EpisodeBuffer(
            seed=100 + e.id,
            observations=e.observations,
            actions=e.actions,
            rewards=e.rewards,
            terminations=e.terminations,
            truncations=e.truncations,
        )
        for e in list(source.iterate_episodes())[:2]
    ]
    name = "minigrid/BabyAI-Pickup/optimal-fullobs-v0"
    minari.create_dataset_from_buffers(
        name,
        buffers,
        env=source.env_spec,
        action_space=source.action_space,
        observation_space=gym.spaces.Dict({**source.observation_space.spaces, "mission": text}),
    )
    theirs, ours = read(name, PICKUP), read(pickup[0], PICKUP)
    assert theirs.seeds == (100, 101)
    for own, column in ((theirs.s_tm1, ours.s_tm1), (theirs.a_tm1, ours.a_tm1), (theirs.r_t, ours.r_t)):
        assert (own == column[: len(own)]).all()
    assert list(theirs.states.by_bytes) == list(ours.states.by_bytes)[: theirs.states.count]


def test_actions_and_states_that_do_not_begin_at_0_are_counted_from_it(tmp_path):
    spaces = gym.spaces.Tuple((gym.spaces.Discrete(2), gym.spaces.Discrete(24))), gym.spaces.Discrete(4, start=0)
    with NewDataset(str(tmp_path / "d-v0"), *spaces, None, {}) as dataset:
        columns = (np.array([0, 1]), np.array([3, 5]))
        ends = {"terminations": np.array([True]), "truncations": np.array([False])}
        dataset.add(columns, np.array([1.0]), actions=np.array([2]), infos={}, **ends)
    data = read(str(tmp_path / "d-v0"), CLIFF)
    assert (data.s_tm1.tolist(), data.s_t.tolist(), data.a_tm1.tolist()) == ([3], [24 + 5], [2])


BOX = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
ONE = [([0, 1], [0], [1.0], "terminated")]
BAD = {
    "missing": (lambda d: "qfleet/none-v0", "qfleet classic make-dataset"),
    "no version": (lambda d: "pickup", "must end in its version"),
    "empty": (lambda d: write(d, []), "is empty"),
    "floats": (lambda d: write(d, [(np.eye(2), [0], [1.0], "terminated")], space=BOX), "fitted-q, or `qfleet train"),
    "continuous actions": (
        lambda d: write(d, [([0, 1], np.zeros((1, 2)), [1.0], "terminated")], action_space=BOX),
        "Disc",
    ),
    "other states": (lambda d: write(d, ONE, states=7), "names no environment.*write --env ID"),
    "other actions": (lambda d: write(d, ONE, action_space=gym.spaces.Discrete(2)), "CliffWalking-v1 has"),
    "beyond its space": (lambda d: write(d, [([0, 50], [0], [1.0], "terminated")]), "cannot be read"),
    "action outside": (lambda d: write(d, [([0, 1], [9], [1.0], "terminated")]), "an action lies outside"),
    "nan": (lambda d: write(d, [([0, 1], [0], [np.nan], "terminated")]), "not finite"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_dataset_that_does_not_fit_is_one_line(tmp_path, case):
    make, match = BAD[case]
    with pytest.raises(BadInput, match=match) as caught:
        learn(make(str(tmp_path / "d-v0")))
    assert "\n" not in str(caught.value)


def test_a_dataset_of_another_environment_names_its_own(pickup):
    with pytest.raises(BadInput, match=r"was played on BabyAI-Pickup-v0.* write --env BabyAI-Pickup-v0"):
        learn(pickup[0], CLIFF)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("gamma", 1.1),
        ("alpha", 0.0),
        ("sweeps", 0),
        ("tolerance", -1.0),
        ("epsilon", 2),
        ("epsilon_end", 1.5),
        ("epsilon_decay", -0.1),
        ("training_seeds", -1),
        ("extremes", -1),
    ],
)
def test_settings_are_checked(field, value):
    with pytest.raises(BadInput, match=f"{field} is {value:g}: write"):
        OfflineQConfig(**{field: value})


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"env": "CartPole-v1"}, "env is 'CartPole-v1'"),
        ({"episodes": 0}, "episodes is 0"),
        ({"first_seed": -1}, "first_seed is -1"),
        ({"env": "BabyAI-Nothing-v0"}, "not a Gymnasium environment"),
        ({"to": "pickup"}, "must end in its version"),
    ],
)
def test_what_cannot_be_made_is_one_line(settings, match):
    with pytest.raises(BadInput, match=match):
        make_dataset(MakeDatasetConfig(**settings), RecordingMonitor())


def test_levels_that_the_bot_cannot_solve_are_left_out_and_said(tmp_path, monkeypatch):
    said, solved = [], babyai.solved
    monitor = RecordingMonitor()
    monitor.note = said.append

    def unlucky(env, seed):
        if seed == 1:
            raise babyai.Unsolved("the bot gave up")
        return solved(env, seed)

    monkeypatch.setattr(babyai, "solved", unlucky)
    figures = make_dataset(MakeDatasetConfig(episodes=2, to=str(tmp_path / "a-v0")), monitor)
    assert (figures["episodes"], figures["skipped"]) == (2, 1)
    seeds = [e["seed"] for e in open_dataset(str(tmp_path / "a-v0")).storage.get_episode_metadata([0, 1])]
    assert seeds == [0, 2]
    assert said == ["seed 1 is left out: the bot gave up"]


def test_a_level_beyond_the_bot_ends_with_a_fault_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(babyai, "GIVE_UP", 3)
    config = MakeDatasetConfig(env="BabyAI-KeyInBox-v0", episodes=1, to=str(tmp_path / "a-v0"))
    with pytest.raises(RunFault, match=r"solved none of 3 seeds in a row of BabyAI-KeyInBox-v0: the bot gave up"):
        make_dataset(config, RecordingMonitor())
    assert list(tmp_path.iterdir()) == []


def test_partial_observations_are_named(tmp_path):
    """The same shape as the whole grid's, but no agent in it."""
    env = single(EnvConfig(id="MiniGrid-Empty-6x6-v0"), "table")
    state, _ = env.reset(seed=0)
    grid = unpack(state)
    space = gym.spaces.Dict(
        direction=gym.spaces.Discrete(4),
        image=gym.spaces.Box(0, 255, grid.image.shape, np.uint8),
        mission=gym.spaces.Text(90),
    )
    with NewDataset(str(tmp_path / "a-v0"), space, env.action_space, None, {}) as dataset:
        observations = {
            "direction": np.zeros(2, int),
            "image": np.zeros((2, *grid.image.shape), np.uint8),
            "mission": ["a"] * 2,
        }
        ends = {"terminations": np.array([True]), "truncations": np.array([False])}
        dataset.add(observations, np.array([1.0]), actions=np.array([2]), infos={}, **ends)
    with pytest.raises(BadInput, match="not the whole grid"):
        learn(str(tmp_path / "a-v0"), EnvConfig(id="MiniGrid-Empty-6x6-v0"))
