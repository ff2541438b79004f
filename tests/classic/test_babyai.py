"""Datasets of BabyAI levels that the bot plays, and `offline_q` on them."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

from classic import babyai
from classic.babyai import MakeDatasetConfig, make_dataset
from classic.interface import RecordingMonitor
from classic.offline_data import read_tabular
from classic.offline_q import OfflineQConfig, offline_q
from rl.envs.config import EnvConfig
from rl.envs.grid_states import draw_grid, is_grid, pack_grid, unpack_grid
from rl.envs.minari_files import NewDataset, open_dataset
from rl.envs.vector import make_env
from rl.errors import BadInput, RunFault
from tests.classic.offline_datasets import CLIFF, learn

minari = pytest.importorskip("minari")
pytest.importorskip("minigrid")
from minigrid.core.constants import COLOR_TO_IDX, OBJECT_TO_IDX  # noqa: E402

PICKUP = EnvConfig(id="BabyAI-Pickup-v0")
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
    """The name of a dataset that the bot played, and the metrics that `make_dataset` returned."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(root))
        config = MakeDatasetConfig(episodes=EPISODES, first_seed=3)
        return config.name, make_dataset(config, RecordingMonitor())


@pytest.fixture(scope="module")
def learned(root, pickup):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(root))
        return offline_q(OfflineQConfig(dataset=pickup[0]), PICKUP, 1, RecordingMonitor())


def test_the_bots_dataset_keeps_seeds_and_observations(pickup):
    name, metrics = pickup
    assert name == "qfleet/babyai-pickup-fullobs-v0"
    data = open_dataset(name)
    assert is_grid(data.observation_space)
    kept = list(data.storage.get_episode_metadata(range(EPISODES)))
    assert [episode["seed"] for episode in kept] == list(range(3, 3 + EPISODES))
    assert (metrics["episodes"], metrics["steps"], metrics["skipped"]) == (EPISODES, data.total_steps, 0)
    assert metrics["bytes"] < data.total_steps * 22 * 22 * 3 / 2, "compressed"
    episodes = list(data.iterate_episodes())
    assert metrics["mean_return"] == pytest.approx(np.mean([e.rewards.sum() for e in episodes]))
    assert all(e.rewards.sum() > 0.5 and e.terminations[-1] and not e.truncations.any() for e in episodes)
    env = data.recover_environment()
    first, _ = env.reset(seed=3 + 7)
    assert (episodes[7].observations["image"][0] == first["image"]).all()
    assert episodes[7].observations["mission"][0] == first["mission"]
    with pytest.raises(BadInput, match="already exists"):
        make_dataset(MakeDatasetConfig(episodes=1), RecordingMonitor())


def test_in_the_states_of_highest_value_the_target_can_be_picked_up(learned, pickup):
    data = open_dataset(pickup[0])
    for at in learned.metrics["highest"][:2]:
        observed = data[at["episode"]].observations
        state = unpack_grid(pack_grid({key: column[at["step"]] for key, column in observed.items()}))
        *_, colour, kind = state.mission.split()
        assert state.ahead[:2] == (OBJECT_TO_IDX[kind], COLOR_TO_IDX[colour])
        assert (at["action"], at["mission"]) == (PICK_UP, state.mission)
    shape = (4, 22 * 16, 22 * 16, 3)
    assert learned.arrays["highest"].shape == learned.arrays["lowest"].shape == shape
    first = learned.metrics["highest"][0]
    own = {key: column[first["step"]] for key, column in data[first["episode"]].observations.items()}
    assert (learned.arrays["highest"][0] == draw_grid(unpack_grid(pack_grid(own)))).all()
    assert learned.metrics["value_max"] == first["value"] > learned.metrics["lowest"][0]["value"] > 0


def test_the_greedy_policy_solves_the_bots_levels_as_well_as_the_bot(learned, pickup):
    metrics = learned.metrics
    assert metrics["training_data_return"] == pytest.approx(pickup[1]["mean_return"])
    assert metrics["training_return"] >= metrics["training_data_return"]
    assert (metrics["training_episodes"], metrics["training_unknown"], metrics["training_other_starts"]) == (
        EPISODES,
        0,
        0,
    )
    assert metrics["max_change"] == 0.0


def test_learning_is_reproducible_and_a_directory_works_like_an_id(learned, pickup, root):
    settings = OfflineQConfig(dataset=str(root / pickup[0]), training_seeds=2)
    again = offline_q(settings, PICKUP, 2, RecordingMonitor())
    for name, array in learned.arrays.items():
        np.testing.assert_array_equal(array, again.arrays[name])
    assert again.metrics["training_episodes"] == 2


def test_a_dataset_written_by_minari_can_be_read(pickup):
    """Like the published ones: the layout of Minari, another text space, other seeds, no metadata of Qfleet."""
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
    theirs, ours = read_tabular(name, PICKUP), read_tabular(pickup[0], PICKUP)
    assert theirs.seeds == (100, 101)
    for own, column in ((theirs.s_tm1, ours.s_tm1), (theirs.a_tm1, ours.a_tm1), (theirs.r_t, ours.r_t)):
        assert (own == column[: len(own)]).all()
    assert list(theirs.states.by_bytes) == list(ours.states.by_bytes)[: theirs.states.count]


def test_a_dataset_of_another_environment_names_its_own(pickup):
    with pytest.raises(BadInput, match=r"collected on BabyAI-Pickup-v0.* write id: BabyAI-Pickup-v0"):
        learn(pickup[0], CLIFF)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"env": "CartPole-v1"}, "env is 'CartPole-v1'"),
        ({"episodes": 0}, "episodes is 0"),
        ({"first_seed": -1}, "first_seed is -1"),
        ({"env": "BabyAI-Nothing-v0"}, "not a Gymnasium environment"),
        ({"to": "pickup"}, "must end in a version"),
    ],
)
def test_bad_input_raises_bad_input(settings, match):
    with pytest.raises(BadInput, match=match):
        make_dataset(MakeDatasetConfig(**settings), RecordingMonitor())


def test_seeds_that_the_bot_cannot_solve_are_skipped_with_a_note(tmp_path, monkeypatch):
    notes, play_bot = [], babyai.play_bot
    monitor = RecordingMonitor()
    monitor.note = notes.append

    def fail_on_seed_1(env, seed):
        if seed == 1:
            raise babyai.Unsolved("the bot failed")
        return play_bot(env, seed)

    monkeypatch.setattr(babyai, "play_bot", fail_on_seed_1)
    metrics = make_dataset(MakeDatasetConfig(episodes=2, to=str(tmp_path / "a-v0")), monitor)
    assert (metrics["episodes"], metrics["skipped"]) == (2, 1)
    seeds = [e["seed"] for e in open_dataset(str(tmp_path / "a-v0")).storage.get_episode_metadata([0, 1])]
    assert seeds == [0, 2]
    assert notes == ["seed 1 is skipped: the bot failed"]


def test_a_level_that_the_bot_cannot_solve_raises_and_leaves_no_files(tmp_path, monkeypatch):
    monkeypatch.setattr(babyai, "MAX_UNSOLVED", 3)
    config = MakeDatasetConfig(env="BabyAI-KeyInBox-v0", episodes=1, to=str(tmp_path / "a-v0"))
    with pytest.raises(RunFault, match=r"solved none of 3 seeds in a row of BabyAI-KeyInBox-v0 \(the bot failed"):
        make_dataset(config, RecordingMonitor())
    assert list(tmp_path.iterdir()) == []


def test_partial_observations_are_rejected(tmp_path):
    """They have the shape of the whole grid, but no agent in it."""
    env = make_env(EnvConfig(id="MiniGrid-Empty-6x6-v0"), "table")
    state, _ = env.reset(seed=0)
    grid = unpack_grid(state)
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
