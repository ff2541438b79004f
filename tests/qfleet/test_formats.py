"""Files that an older Qfleet wrote can be read; files of a newer one are rejected with one line.

The fixtures are of format 0, from before there were numbers (tests/fixtures/format-0/README.md).
"""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import pytest
import yaml

from learner.checkpoint import Checkpoint, CheckpointStore
from qfleet.cli import main as cli
from qfleet.config import from_yaml, to_yaml
from qfleet.presets import preset
from qfleet.run.directory import RunDir
from replay.datasets.dataset import Dataset
from replay.store.snapshot_files import open_snapshot
from rl.envs.grid_worlds import GridWorld
from rl.envs.minari_files import open_dataset
from rl.errors import BadInput
from rl.formats import upgraded
from rl.returns import ReturnConfig
from tests.conftest import ROOT

FIXTURES = ROOT / "tests" / "fixtures" / "format-0"
BEST_RETURN = -63.333333333333336


@pytest.fixture
def run(tmp_path):
    return shutil.copytree(FIXTURES / "run", tmp_path / "run")


def figures(capsys):
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def error_line(capsys):
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize(
    ("weights", "mean", "std", "updates"), [("best", -89.1, None, 280), ("last", -94.5, 23.97, 1305)]
)
def test_an_old_run_can_be_evaluated(run, capsys, weights, mean, std, updates):
    assert cli.main(["eval", str(run), "--weights", weights, "--episodes", "20", "--json"]) == 0
    found = figures(capsys)
    assert found["mean_return"] == pytest.approx(mean)
    assert std is None or found["std_return"] == pytest.approx(std, abs=0.005)
    assert (found["weights"], found["updates"]) == (weights, updates)


def test_an_old_run_is_resumed_with_the_whole_state_of_its_checkpoint(run, capsys):
    before = RunDir.open(run).newest_checkpoint().state
    assert before["evaluation"]["best_return"] == pytest.approx(BEST_RETURN)
    assert (before["updates"], before["target_syncs"], before["replay"]["drawn"]) == (1305, 2, 1306)
    assert "judge" not in before
    flags = ["--replay.snapshot-minutes", "0", "--max-steps", "21500", "--evaluation.period", "0"]
    assert cli.main(["train", "--resume", str(run), "--serial", *flags, "--json"]) == 0
    summary = figures(capsys)
    assert summary["best_return"] == pytest.approx(BEST_RETURN)  # no evaluation since
    assert summary["agent_steps"] >= 21500
    assert summary["updates"] > 1305
    assert yaml.safe_load((run / "config.yaml").read_text())["format"] == 2
    state = run / "checkpoints" / f"{summary['updates']:012d}" / "state.json"
    assert json.loads(state.read_text())["format"] == 2
    after = RunDir.open(run).newest_checkpoint().state
    assert after["evaluation"]["best_return"] == pytest.approx(BEST_RETURN)
    assert "format" not in after


def test_a_renamed_setting_is_read():
    text = (FIXTURES / "run" / "config.yaml").read_text()
    assert text.count("prefetch: 4") == 1
    config = from_yaml(text.replace("prefetch: 4", "prefetch: 7"), "config.yaml")
    assert (config.replay.batches_ahead, config.learner.batch_size, config.seed) == (7, 64, 3)
    assert from_yaml(to_yaml(config), "config.yaml") == config


def test_an_old_name_is_unknown_in_a_file_of_the_current_format():
    text = to_yaml(preset("cartpole")).replace("batches_ahead", "prefetch")
    with pytest.raises(BadInput, match="replay: unknown setting 'prefetch'"):
        from_yaml(text, "config.yaml")


def test_upgraded_renames_keys_format_by_format():
    renamed = ({"a": "b", "in.x": "in.y"}, {"b": "c"})
    assert upgraded({"a": 1, "in": {"x": 2, "z": 3}}, renamed, "here") == {"c": 1, "in": {"y": 2, "z": 3}}
    assert upgraded({"format": 1, "a": 1, "b": 2}, renamed, "here") == {"a": 1, "c": 2}
    assert upgraded({"format": 2, "a": 1, "b": 2}, renamed, "here") == {"a": 1, "b": 2}
    assert upgraded({"a": 1, "b": 2}, renamed[:1], "here") == {"a": 1, "b": 2}  # nothing is written over
    assert upgraded({"in": 5}, renamed, "here") == {"in": 5}
    moved = ({"in.x": "out.y"},)
    given = {"in": {"x": 2, "z": 3}, "out": {"w": 1}}
    assert upgraded(given, moved, "here") == {"in": {"z": 3}, "out": {"w": 1, "y": 2}}
    assert given == {"in": {"x": 2, "z": 3}, "out": {"w": 1}}
    for kept in (
        {"in": {"x": 2}, "out": {"y": 1}},
        {"in": {"x": 2}},
        {"in": {"z": 3}, "out": {}},
        {"in": 5, "out": {}},
    ):
        assert upgraded(kept, moved, "here") == kept


@pytest.mark.parametrize("data", [[], 3, None, {"format": "x"}, {"format": -1}, {"format": True}, {"format": 1.0}])
def test_a_malformed_format_raises(data):
    with pytest.raises(ValueError, match="must contain a mapping of names|must be an integer of at least 0"):
        upgraded(data, (), "here")


@pytest.mark.parametrize("text", ["format: x", "format: -1"])
def test_a_config_with_a_malformed_format_is_rejected(text):
    with pytest.raises(BadInput, match=r"^here: its format is ('x'|-1), but must be an integer of at least 0$"):
        from_yaml(text, "here")


@pytest.mark.parametrize("state", [[], "x", {"format": "y"}])
def test_a_checkpoint_with_malformed_state_is_skipped_for_the_previous_one(run, state):
    store = CheckpointStore(str(run / "checkpoints"))
    store.save(9999, Checkpoint(store.load(1305).arrays, state if isinstance(state, dict) else {}))
    folder = run / "checkpoints" / f"{9999:012d}"
    if not isinstance(state, dict):
        (folder / "state.json").write_text(json.dumps(state))
        manifest = json.loads((folder / "MANIFEST.json").read_text())
        manifest["sha256"]["state.json"] = hashlib.sha256((folder / "state.json").read_bytes()).hexdigest()
        (folder / "MANIFEST.json").write_text(json.dumps(manifest))
    assert store.load_newest().state["updates"] == 1305


@pytest.mark.parametrize("manifest", ["[]", "3", '{"format": "x"}'])
def test_a_malformed_manifest_is_a_one_line_error(run, tmp_path, capsys, manifest):
    (run / "replay" / "shard-0" / "MANIFEST.json").write_text(manifest)
    assert cli.main(["replay", "export", str(run), "--to", str(tmp_path / "x-v0")]) == 2
    error_line(capsys)


def test_an_old_snapshot_exports_the_same_dataset_as_before(run, tmp_path, capsys):
    spec, segments = open_snapshot(run / "replay" / "shard-0")
    assert (spec.frame_shape, spec.dtype, spec.stack) == ((2, 4, 4), "float32", 1)
    assert next(segments).first_key == 20567
    assert cli.main(["replay", "export", str(run), "--to", str(tmp_path / "again-v0"), "--json"]) == 0
    found = figures(capsys)
    assert (found["episodes"], found["steps"]) == (10, 241)
    old, new = (Dataset(str(path)) for path in (FIXTURES / "grid-v0", tmp_path / "again-v0"))
    assert old.env == new.env
    for one, other in zip(*(d.segments(spec, ReturnConfig(), 20) for d in (old, new)), strict=True):
        np.testing.assert_array_equal(one.frames, other.frames)
        np.testing.assert_array_equal(one.r_t, other.r_t)


def test_an_old_dataset_can_be_trained_on_and_its_environment_recovered(tmp_path, capsys):
    grid = shutil.copytree(FIXTURES / "grid-v0", tmp_path / "grid-v0")
    env = open_dataset(str(grid)).recover_environment()
    assert isinstance(env.unwrapped, GridWorld)
    env.close()
    flags = ["--max-updates", "20", "--network.hidden", "8", "--learner.device", "cpu", "--evaluation.period", "0"]
    run_dir = ["--run-dir", str(tmp_path / "run")]
    assert cli.main(["train", "--offline", str(grid), *flags, *run_dir, "--json"]) == 0
    summary = figures(capsys)
    assert (summary["updates"], summary["env"]) == (20, "qfleet/GridWorld-v0")


def test_a_config_of_a_newer_format_is_rejected(run, capsys):
    file = run / "config.yaml"
    file.write_text(f"format: 3\n{file.read_text()}")
    assert cli.main(["eval", str(run)]) == 2
    assert (
        error_line(capsys)
        == f"qfleet: {file} has format 3, but this Qfleet reads formats up to 2: use the Qfleet that wrote it"
    )


def test_a_checkpoint_of_a_newer_format_is_rejected(run, capsys):
    store = CheckpointStore(str(run / "checkpoints"))
    old = store.load(1305)
    folder = store.save(9999, Checkpoint(old.arrays, {**old.state, "format": 7}))
    assert cli.main(["eval", str(run), "--weights", "last"]) == 2
    assert error_line(capsys) == (
        f"qfleet: {folder}/state.json has format 7, but this Qfleet reads formats up to 2: use the Qfleet that wrote it"
    )
    assert cli.main(["train", "--resume", str(run), "--serial", "--replay.snapshot-minutes", "0"]) == 2
    assert "state.json has format 7" in error_line(capsys)


def test_a_snapshot_of_a_newer_format_is_rejected(run, tmp_path, capsys):
    file = run / "replay" / "shard-0" / "MANIFEST.json"
    file.write_text(file.read_text().replace('"format": 1', '"format": 3'))
    assert cli.main(["replay", "export", str(run), "--to", str(tmp_path / "x-v0")]) == 2
    assert (
        error_line(capsys)
        == f"qfleet: {file} has format 3, but this Qfleet reads formats up to 1: use the Qfleet that wrote it"
    )


def test_the_fixtures_are_unchanged():
    manifest = json.loads((FIXTURES / "run" / "checkpoints" / "000000001305" / "MANIFEST.json").read_text())
    state = (FIXTURES / "run" / "checkpoints" / "000000001305" / "state.json").read_bytes()
    assert manifest["sha256"]["state.json"] == hashlib.sha256(state).hexdigest()
    assert b"format" not in state
