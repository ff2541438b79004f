"""`qfleet replay export` and `import` with running shards."""

from __future__ import annotations

import json

import gymnasium as gym
import pytest

from qfleet.cli import main as cli
from qfleet.cli.datasets import writer_name
from replay.datasets.dataset import Dataset
from replay.store.shard import MAX_NAME_BYTES
from rl.envs.config import EnvConfig
from rl.types import ObservationSpec
from tests.conftest import ROOT
from tests.integration.shards import sampler, shards_fixture  # noqa: F401
from tests.replay.datasets.made import BOX, datasets_fixture, episode, run_fixture, write_dataset  # noqa: F401


def test_an_exported_dataset_can_be_imported(run, shards, capsys):
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


def test_importing_into_a_shard_with_other_observations_names_the_shard(shards, capsys):
    write_dataset("plain-v0", BOX, gym.spaces.Discrete(2), [episode(3)])
    (pixels,) = shards(1, "--shape", 20, 20, "--dtype", "uint8", "--stack", 4)
    assert cli.main(["replay", "import", "plain-v0", "--to", pixels.address]) == 2
    assert "float64 4, the shard at" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["qfleet/pong-v0", "./" + "é" * 150, "./x" + "€" * 150, "./\udcff-v0"])
def test_the_writer_name_imported_episodes_is_the_end_of_the_datasets_name(name):
    """It has as many bytes as a shard accepts. It is valid UTF-8, even if the name is not."""
    origin = writer_name(name)
    assert (
        MAX_NAME_BYTES - 3 < len(origin.encode()) <= MAX_NAME_BYTES
        or len(name.encode(errors="replace")) < MAX_NAME_BYTES
    )
    assert name.encode(errors="replace").decode().endswith(origin)
    assert origin
