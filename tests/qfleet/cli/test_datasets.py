"""`qfleet replay export`, `qfleet replay import` and `qfleet train --offline`: outputs and bad input."""

from __future__ import annotations

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest

from qfleet.cli import main as cli
from replay.datasets.dataset import Dataset
from rl.envs.config import EnvConfig
from tests.replay.datasets.made import BOX, datasets_fixture, episode, run_fixture, write_dataset  # noqa: F401


def test_export_of_one_shard_without_its_run(run, capsys):
    shard = run / "replay" / "shard-1"
    assert cli.main(["replay", "export", str(shard), "--to", "one-v0"]) == 0
    assert Dataset("one-v0").env is None
    assert cli.main(["replay", "export", str(shard), "--to", "two-v0", "--env", "CartPole-v1"]) == 0
    assert Dataset("two-v0").env == EnvConfig(id="CartPole-v1")
    assert Dataset("two-v0").steps == Dataset("one-v0").steps


@pytest.fixture
def examples(tmp_path, run):
    """Datasets that cannot be used; returns the paths of the placeholders HERE and RUN."""
    discrete = gym.spaces.Discrete(2)
    write_dataset(
        "wide-v0", gym.spaces.Box(-9, 9, (9,), np.float32), discrete, [episode(3, (9,))], gym.spec("CartPole-v1")
    )
    write_dataset("many-v0", BOX, gym.spaces.Discrete(5), [episode(3)], gym.spec("CartPole-v1"))
    write_dataset("nameless-v0", BOX, discrete, [episode(3)])
    write_dataset("nowhere-v0", BOX, discrete, [episode(3)], replace(gym.spec("CartPole-v1"), id="Nowhere-v9"))
    write_dataset("push-v0", BOX, gym.spaces.Box(-1, 1, (1,)), [episode(3, actions=np.zeros((3, 1)))])
    both = gym.spaces.Dict({"a": BOX})
    write_dataset("dict-v0", both, discrete, [episode(3, observations={"a": np.zeros((4, 4))})])
    write_dataset("empty-v0", BOX, discrete, [])
    (tmp_path / "here-v0" / "data").mkdir(parents=True)
    (tmp_path / "bare").mkdir()
    return {"HERE": tmp_path, "RUN": run}


BAD = {
    "no such dataset": (["train", "--offline", "qfleet/pongg-v0"], "there is no dataset qfleet/pongg-v0"),
    "no version": (["train", "--offline", "qfleet/pong"], "end in a version"),
    "a directory without data": (["train", "--offline", "HERE/here-v0"], "cannot be read"),
    "continuous actions": (["train", "--offline", "push-v0"], "Discrete action space"),
    "dict observations": (["train", "--offline", "dict-v0"], "Box space"),
    "empty": (["train", "--offline", "empty-v0"], "has no episodes"),
    "no environment": (["train", "--offline", "nameless-v0"], "--env.id is not given"),
    "an unknown environment in the dataset": (
        ["train", "--offline", "nowhere-v0"],
        "--env.id is not given, and that of dataset nowhere-v0 cannot be used: env.id 'Nowhere-v9'",
    ),
    "observations of another size": (["train", "--offline", "wide-v0"], "float32 9, CartPole-v1 has float32 4"),
    "another number of actions": (["train", "--offline", "many-v0"], "5 actions, CartPole-v1 has 2"),
    "a preset for another environment": (
        ["train", "pong", "--offline", "wide-v0"],
        "2 actions, PongNoFrameskip-v4 has 6",
    ),
    "no limit": (["train", "cartpole", "--offline", "nameless-v0", "--max-updates", "0"], "--max-updates"),
    "on a cluster": (
        ["train", "cartpole", "--offline", "nameless-v0", "--address", "auto"],
        "--offline trains in this process, without Ray: leave out the address",
    ),
    "negative updates": (["train", "cartpole", "--max-updates", "-1"], "--max-updates is -1"),
    "export of a directory without snapshots": (
        ["replay", "export", "HERE/bare", "--to", "x-v0"],
        "no replay snapshot",
    ),
    "export to a name without a version": (["replay", "export", "RUN", "--to", "x"], "end in a version"),
    "export to an existing dataset": (["replay", "export", "RUN", "--to", "many-v0"], "already exists"),
    "export with another environment": (
        ["replay", "export", "RUN", "--to", "x-v0", "--env", "Acrobot-v1"],
        "Acrobot-v1 gives",
    ),
    "export with an unknown environment": (["replay", "export", "RUN", "--to", "x-v0", "--env", "Nope-v1"], "Nope-v1"),
    "import to an address without a shard": (
        ["replay", "import", "many-v0", "--to", "127.0.0.1:1"],
        "no replay shard answers at 127.0.0.1:1",
    ),
    "import of a missing dataset": (
        ["replay", "import", "none-v0", "--to", "127.0.0.1:1"],
        "there is no dataset none-v0",
    ),
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


def test_without_minari_the_message_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    assert cli.main(["train", "--offline", "qfleet/pong-v0"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert '".[datasets]"' in line
