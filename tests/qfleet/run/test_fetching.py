"""Copies of runs: complete while the run goes on, and never over something else."""

from __future__ import annotations

import json

import numpy as np
import pytest

from learner.checkpoint import MANIFEST, Checkpoint, CheckpointStore
from qfleet.cli import main as cli
from qfleet.run.directory import RunDir
from qfleet.run.fetching import FETCHED, copy_run


@pytest.fixture
def run(tmp_path):
    """A run's directory as a running process has it: a half-written CSV row, and a save in progress."""
    run = tmp_path / "cluster" / "pong"
    save(run, 10)
    save(run, 20)
    (run / "checkpoints" / "000000000030").mkdir()  # without a manifest
    (run / "config.yaml").write_text("env: {}\n")
    (run / "metrics.csv").write_text("agent_steps,loss\n1,0.5\n2,0.")
    (run / "status.json").write_text("{}")
    (run / "tensorboard").mkdir()
    (run / "tensorboard" / "events").write_bytes(b"\0\1")
    (run / "replay" / "shard-0").mkdir(parents=True)
    return run


def save(run, step, folder="checkpoints"):
    checkpoint = Checkpoint({"online": {"w": np.full(3, step, np.float32)}}, {"updates": step})
    return CheckpointStore(str(run / folder)).save(step, checkpoint)


def fetch(run, to):
    return cli.main(["fetch", str(run), "--to", str(to)])


def test_a_copy_has_the_newest_checkpoint_the_curves_and_no_half_row(run, tmp_path, capsys):
    save(run, 15, "best")
    assert fetch(f"file://{run}", tmp_path / "home") == 0
    copy = tmp_path / "home" / "pong"
    assert sorted(p.relative_to(copy).as_posix() for p in copy.rglob("*") if p.is_file()) == sorted(
        [
            *(f"{folder}/{file}" for folder in ("best/000000000015", "checkpoints/000000000020") for file in SAVED),
            *("config.yaml", FETCHED, "metrics.csv", "tensorboard/events"),
        ]
    )
    assert (copy / "metrics.csv").read_text() == "agent_steps,loss\n1,0.5\n"
    newest = CheckpointStore(str(copy / "checkpoints")).load_newest()
    assert (newest.state["updates"], newest.arrays["online"]["w"][0]) == (20, 20.0)
    assert json.loads((copy / FETCHED).read_text())["from"] == f"file://{run}"
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].endswith("config.yaml, metrics.csv, tensorboard, best weights, newest checkpoint")
    assert printed[1:] == [
        f"  evaluate it   qfleet eval {copy}",
        f"  plot it       qfleet plot {copy}",
        f"  continue it   qfleet train --resume {copy}",
    ]
    assert [p.name for p in (tmp_path / "home").iterdir()] == ["pong"]


SAVED = (MANIFEST, "online.safetensors", "state.json")


def test_a_damaged_checkpoint_is_not_copied(run, tmp_path):
    (run / "checkpoints" / "000000000020" / "online.safetensors").write_bytes(b"half")
    copied = copy_run(str(run), tmp_path / "copy")
    assert copied.checkpoint == "000000000010"
    assert [p.name for p in (tmp_path / "copy" / "checkpoints").iterdir()] == ["000000000010"]


def test_fetching_again_replaces_the_copy_unless_it_was_trained_further(run, tmp_path, capsys):
    copy = tmp_path / "pong"
    assert fetch(run, tmp_path) == 0
    save(run, 40)
    assert fetch(run, tmp_path) == 0
    assert CheckpointStore(str(copy / "checkpoints")).steps() == [40]
    save(copy, 41)
    capsys.readouterr()
    assert fetch(run, tmp_path) == 2
    error = capsys.readouterr().err
    assert error == f"qfleet: {copy} was trained further since it was fetched: write another folder with --to\n"
    assert CheckpointStore(str(copy / "checkpoints")).steps() == [40, 41]


def test_fetching_again_keeps_what_the_user_has_added_to_the_copy(run, tmp_path):
    copy = tmp_path / "pong"
    assert fetch(run, tmp_path) == 0
    (copy / "videos").mkdir()
    (copy / "videos" / "episode.mp4").write_bytes(b"film")
    (copy / "notes.txt").write_text("good")
    (copy / "status.json").write_text("{}")
    (run / "metrics.csv").write_text("agent_steps,loss\n9,0.1\n")
    assert fetch(run, tmp_path) == 0
    assert (copy / "videos" / "episode.mp4").read_bytes() == b"film"
    assert (copy / "notes.txt").read_text() == "good"
    assert not (copy / "status.json").exists()
    assert (copy / "metrics.csv").read_text() == "agent_steps,loss\n9,0.1\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cluster", "pong"]


def test_a_copy_in_which_a_process_trains_is_not_replaced(run, tmp_path, capsys):
    assert fetch(run, tmp_path) == 0
    training = RunDir.open(tmp_path / "pong")
    training.lock()
    capsys.readouterr()
    assert fetch(run, tmp_path) == 2
    words = "is being trained by another process: wait until it ends, or stop it with Ctrl-C"
    assert capsys.readouterr().err == f"qfleet: {tmp_path / 'pong'} {words}\n"
    training.unlock()
    assert fetch(run, tmp_path) == 0
