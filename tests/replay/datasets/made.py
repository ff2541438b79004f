"""Builders of datasets and of a run's snapshots, and a fixture for a temporary Minari directory."""

from __future__ import annotations

import asyncio

import gymnasium as gym
import numpy as np
import pytest

from qfleet.config import to_yaml
from qfleet.presets import cartpole
from replay.datasets.episodes import episode_fragments
from replay.datasets.export import DatasetWriter
from replay.importance_weights import BetaConfig
from replay.local import LocalReplay
from replay.rate_limiter import RateLimiter
from replay.store.selectors import SelectorConfig
from replay.store.shard import Shard
from replay.store.snapshots import Snapshots
from rl.envs.config import EnvConfig
from rl.envs.minari_files import dataset_path
from rl.returns import ReturnConfig
from rl.segments import SegmentBuilder
from rl.types import ObservationSpec
from tests.integration.shards import FREE

minari = pytest.importorskip("minari")


@pytest.fixture(name="datasets", autouse=True)
def datasets_fixture(tmp_path, monkeypatch):
    """A temporary directory for Minari's datasets."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path / "minari"


def add_step(builder, **step):
    """Add a step; returns a list with the segment that it completes, with |TD error| 1, or an empty list."""
    step = {"reward": 1.0, "terminated": False, "truncated": False, "lost_life": False, "version": 0} | step
    cut = builder.add(**step)
    return [cut.with_td_errors(np.ones(cut.items, np.float32))] if cut else []


def write_dataset(name, observations, actions, episodes, env_spec=None):
    """Write a dataset with Minari alone, without Qfleet's metadata; ``episodes`` are arguments of an EpisodeBuffer."""
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


def balance(steps, epsilons, seed=0, items=20):
    """Play CartPole with a simple controller that is random with each of ``epsilons`` in turn.

    Returns a shard with the transitions, and the mean return.
    """
    spec, rng = ObservationSpec((4,), "float32"), np.random.default_rng(seed)
    shard = Shard(steps + 600, spec, SelectorConfig(), limited=False)
    local = LocalReplay(shard, RateLimiter(FREE, items + 2, 32), BetaConfig())
    builder, env = SegmentBuilder(ReturnConfig(), spec, items, seed << 24), gym.make("CartPole-v1")
    returns: list[float] = []
    while sum(returns) < steps:  # the reward is 1 for each step
        epsilon, done, played = epsilons[len(returns) % len(epsilons)], False, 0
        x, _ = env.reset(seed=int(rng.integers(2**31)))
        builder.begin(x)
        while not done:
            action = int(rng.integers(2)) if rng.random() < epsilon else int(x[2] + 0.5 * x[3] > 0)
            x, reward, terminated, truncated, _ = env.step(action)
            done, played = terminated or truncated, played + 1
            ends = {"terminated": terminated, "truncated": truncated and not terminated}
            for segment in add_step(builder, action=action, reward=float(reward), **ends, frame=x):
                local.write(segment)
        returns.append(played)
    return shard, float(np.mean(returns))


@pytest.fixture(name="run", scope="module")
def run_fixture(tmp_path_factory):
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


def exported(shard, name):
    """Export the shard's content as the dataset ``name``."""
    with DatasetWriter(name, shard.spec, 2, EnvConfig(id="CartPole-v1")) as writer:
        for joined in episode_fragments(shard.storage.segments(), shard.spec):
            writer.append(joined)
