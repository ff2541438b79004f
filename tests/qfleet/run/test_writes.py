"""A disk that is full: the run goes on, says so once, keeps its last checkpoint, and writes what it owes later."""

from __future__ import annotations

import contextlib
import json
import resource
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from learner.checkpoint import CheckpointStore
from qfleet.api import train
from qfleet.run import run as run_module
from qfleet.run import writes as writes_module
from qfleet.run.directory import RunDir
from qfleet.run.run import Run
from qfleet.run.writes import Writes
from rl.errors import RunFault
from tests.qfleet.configs import short
from tests.qfleet.run.test_log import events, rows

FULL = "File too large"  # what a process is told that may write no file


def test_a_warning_names_the_files_and_the_end_is_said_once(monkeypatch):
    now, lines = [100.0], []
    monkeypatch.setattr(writes_module.time, "monotonic", lambda: now[0])
    writes = Writes("runs/x", lines.append)

    def attempt(what, *, works):
        now[0] += 1
        with writes.attempt(what):
            if not works:
                raise OSError(28, "No space left on device")

    attempt("a", works=True)
    attempt("a", works=False)
    attempt("b", works=False)
    attempt("a", works=True)
    assert writes.failing() == "b (No space left on device)"
    attempt("b", works=False)
    assert lines == ["warning: runs/x: a (No space left on device) cannot be written; the run goes on, and tries again"]
    now[0] += writes_module.REMIND_AFTER
    attempt("b", works=False)
    attempt("b", works=True)
    assert lines[1:] == [
        "warning: runs/x: b (No space left on device) cannot be written; the run goes on, and tries again",
        "runs/x is written again, after 305 s",
    ]
    assert writes.failing() == ""
    attempt("a", works=False)  # a disk that is nearly full: it fails and works in turn
    attempt("a", works=True)
    assert len(lines) == 3
    with pytest.raises(ZeroDivisionError), writes.attempt("a"):
        1 / 0  # noqa: B018


@contextlib.contextmanager
def full_disk():
    """Until `end` is called, this process can write no file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield (
            lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard)),
            lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard)),
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def config(monkeypatch):
    """A run that writes each of its files many times in a second."""
    for name in ("LOG_PERIOD", "STATUS_PERIOD", "SAVE_RETRY"):
        monkeypatch.setattr(run_module, name, 0.05)
    made = short(max_steps=10**6)
    evaluation = replace(made.evaluation, period=200, quick_episodes=1)
    learner = replace(made.learner, checkpoint_minutes=0.001, metrics_period=10)
    return replace(made, learner=learner, evaluation=evaluation)


def newest(run):
    return CheckpointStore(str(run / "checkpoints")).load_newest().state["agent_steps"]


def test_a_run_outlives_a_full_disk(config, tmp_path, capsys):
    run, seen, played = tmp_path / "run", {}, 0
    with full_disk() as (fill, empty):

        def on_episode(result):
            nonlocal played
            played += result.length
            if not seen and (run / "eval.csv").exists() and rows(run / "eval.csv") and list(run.glob("checkpoints/0*")):
                seen.update(full=played, step=newest(run), steps=logged("metrics.csv"), evals=logged("eval.csv"))
                fill()
            elif "full" in seen and "kept" not in seen and played > seen["full"] + 1000:
                seen.update(kept=newest(run), left=[f.name for f in (run / "checkpoints").iterdir()])
                empty()
            elif "kept" in seen and played > seen["full"] + 2000:
                raise KeyboardInterrupt

        def logged(file):
            return [int(row["agent_steps"]) for row in rows(run / file)]

        with pytest.raises(KeyboardInterrupt):
            train(config, run_dir=run, serial=True, on_episode=on_episode)
    told = capsys.readouterr().err
    assert told.count("cannot be written; the run goes on, and tries again") == 1
    assert f"({FULL})" in told
    assert f"{run} is written again, after " in told
    assert seen["kept"] == seen["step"]  # the last whole checkpoint is there while the disk is full
    assert not [name for name in seen["left"] if name.startswith(".")]  # and no part of another one
    assert newest(run) > seen["step"]
    assert json.loads((run / "status.json").read_text())["agent_steps"] > seen["step"]
    assert CheckpointStore(str(run / "best")).load_newest() is not None
    for file, before, least in (("metrics.csv", seen["steps"], 3), ("eval.csv", seen["evals"], 1)):
        steps = logged(file)
        assert steps[: len(before)] == before
        assert steps == sorted(steps)
        meanwhile = [step for step in steps[len(before) :] if step < before[-1] + 1000]  # while the disk was full
        assert len(meanwhile) >= least
        assert all(None not in row.values() for row in rows(run / file))
    assert sum(1 for _ in events(run)) > 100


def test_a_run_that_ends_with_a_full_disk_says_what_is_missing(config, tmp_path):
    run = tmp_path / "run"
    with full_disk() as (fill, _):

        def on_episode(result):
            if list(run.glob("checkpoints/0*")):
                fill()

        with pytest.raises(RunFault) as caught:
            train(replace(config, max_steps=1500), run_dir=run, serial=True, on_episode=on_episode)
    assert str(caught.value).endswith(
        f"({FULL}) could not be written in {run}: make room there, and continue the run from its last checkpoint with "
        "--resume"
    )
    assert "checkpoints" in str(caught.value)
    assert "summary.json" in str(caught.value)
    before = newest(run)
    summary = train(replace(config, max_steps=before + 500), resume=run, serial=True)
    assert summary["agent_steps"] >= before + 500


def test_the_first_checkpoint_is_due_after_30_seconds_of_training(tmp_path, monkeypatch):
    """Not of the start, which may take as long: it would hold no update."""
    now = [1000.0]
    run = Run(short(), RunDir.create(tmp_path / "run", short()), None)
    monkeypatch.setattr("qfleet.run.run.time", SimpleNamespace(monotonic=lambda: now[0], time=time.time))
    now[0] += 40.0
    run.start_clock()
    due = []
    for _ in range(4):
        due.append(run.is_checkpoint_due())
        now[0] += 10.0
    assert due == [False, False, False, True]
    run.dir.unlock()
