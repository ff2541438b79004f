"""Datasets into running shards, by the command line."""

from __future__ import annotations

import json

import gymnasium as gym
import pytest

from qfleet.cli import main as cli
from qfleet.cli.datasets import writer_name
from replay.datasets.dataset import Dataset
from replay.store.shard import MAX_WRITER
from rl.envs.config import EnvConfig
from rl.types import ObservationSpec
from tests.conftest import ROOT
from tests.integration.shards import sampler, shards_fixture  # noqa: F401
from tests.replay.datasets.made import BOX, datasets_fixture, episode, foreign, run_fixture  # noqa: F401


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


def test_shards_of_another_kind_are_named(shards, capsys):
    foreign("plain-v0", BOX, gym.spaces.Discrete(2), [episode(3)])
    (pixels,) = shards(1, "--shape", 20, 20, "--dtype", "uint8", "--stack", 4)
    assert cli.main(["replay", "import", "plain-v0", "--to", pixels.address]) == 2
    assert "float64 4, the shard at" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["qfleet/pong-v0", "./" + "é" * 150, "./x" + "€" * 150, "./\udcff-v0"])
def test_a_datasets_episodes_bear_as_much_of_its_name_as_a_shard_takes(name):
    """In bytes: no letter is cut in two, and a name that is no text is one all the same."""
    origin = writer_name(name)
    assert MAX_WRITER - 3 < len(origin.encode()) <= MAX_WRITER or len(name.encode(errors="replace")) < MAX_WRITER
    assert name.encode(errors="replace").decode().endswith(origin)
    assert origin
