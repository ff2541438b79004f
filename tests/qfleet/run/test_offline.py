"""Offline training, and runs that end after a number of updates."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest

from qfleet.api import load_policy, train
from qfleet.cli import main as cli
from qfleet.presets import cartpole
from qfleet.run.offline import offline_preset
from replay.datasets.dataset import Dataset
from replay.rate_limiter import LimiterConfig
from tests.replay.datasets.made import balance, datasets_fixture, exported  # noqa: F401


def offline(name, **changes):
    config = offline_preset(name, "cartpole", None)
    return replace(config, learner=replace(config.learner, device="cpu", metrics_period=50), **changes)


def test_offline_training_writes_a_run_and_resumes_it(tmp_path, capsys):
    exported(balance(1_500, [0.3, 1.0])[0], "cartpole-v0")
    goal_out_of_reach = replace(cartpole().evaluation, period=100, quick_episodes=2, goal=1e9)
    config = offline("cartpole-v0", max_updates=200, evaluation=goal_out_of_reach)
    small = replace(config, replay=replace(config.replay, capacity=1_200, limiter=LimiterConfig(min_size=100)))
    summary = train(small, run_dir=tmp_path / "run")
    assert (summary["updates"], summary["agent_steps"], summary["solved"]) == (200, 0, False)
    assert summary["mean_return"] is not None
    again = train(config, run_dir=tmp_path / "again")
    assert again["mean_return"] == summary["mean_return"]  # same seed; the configured capacity does not matter
    steps = Dataset("cartpole-v0").steps
    assert f"replay.capacity is {steps:,}" in capsys.readouterr().err.replace("\n", " ")
    more = ["train", "--resume", str(tmp_path / "run"), "--max-updates", "350", "--json"]
    assert cli.main([*more, "--address", "auto"]) == 0  # `qfleet submit` does not know that the run is offline
    printed = capsys.readouterr()
    assert printed.err.startswith(
        f"qfleet: {tmp_path / 'run'} trains on a dataset, without Ray: --address auto is left out\n"
    )
    assert json.loads(printed.out.splitlines()[-1])["updates"] == 350
    with (tmp_path / "run" / "eval.csv").open() as file:
        assert [int(row["updates"]) for row in csv.DictReader(file)] == [100, 200, 300]
    for name in ("config.yaml", "tensorboard", "checkpoints", "best", "metrics.csv", "summary.json"):
        assert (tmp_path / "run" / name).exists()
    assert load_policy(tmp_path / "run").act(np.zeros((3, 4))).shape == (3,)


def test_the_environment_defaults_to_the_datasets(tmp_path):
    exported(balance(200, [1.0])[0], "cartpole-v0")
    args = ["train", "--offline", "cartpole-v0", "--max-updates", "20", "--run-dir", str(tmp_path / "run")]
    assert cli.main(args) == 0
    assert "id: CartPole-v1" in (tmp_path / "run" / "config.yaml").read_text()


def test_max_updates_also_ends_a_run_with_actors(tmp_path):
    config = replace(cartpole(), max_updates=30)
    config = replace(config, replay=replace(config.replay, limiter=replace(config.replay.limiter, min_size=200)))
    summary = train(config, run_dir=tmp_path / "run", serial=True)
    assert 30 <= summary["updates"] < 60
    assert summary["agent_steps"] < 2_000


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_cartpole_is_learned_from_the_dataset_of_a_poor_player(tmp_path, seed):
    """50,000 steps of a player with at least half of its actions random; its mean return is below 100."""
    shard, mean = balance(50_000, [0.5, 0.7, 1.0])
    assert mean < 100
    exported(shard, "poor-v0")
    summary = train(offline("poor-v0", seed=seed, max_updates=50_000), run_dir=tmp_path / "run")
    assert summary["solved"]
    assert summary["mean_return"] >= 475
