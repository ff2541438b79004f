"""A run's directory: created once, locked by one process, read while it is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qfleet.run.directory import CONFIG, METRICS, SUMMARY, RunDir
from qfleet.run.run import Run
from rl.errors import BadInput
from tests.qfleet.configs import short


def test_a_run_is_created_locked_and_opened_again(tmp_path):
    config = short(seed=7)
    run = RunDir.create(tmp_path / "deep" / "run", config)
    again = RunDir.open(run.path)
    assert again.config() == config
    with pytest.raises(BadInput, match="is being trained by another process"):
        again.lock()
    run.unlock()
    again.lock()
    again.unlock()


def test_the_default_directory_is_named_after_environment_date_and_seed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = RunDir.create(None, short(seed=3))
    assert run.path.parent == Path("runs")
    assert run.path.match("cartpole-v1-*-seed3")
    run.unlock()


def test_create_rejects_a_path_that_cannot_hold_a_new_run(tmp_path):
    taken = RunDir.create(tmp_path / "taken", short())
    taken.unlock()
    (tmp_path / "file").write_text("")
    for path, words in {
        tmp_path / "taken": "already holds a run: write another directory, or continue that run",
        tmp_path / "file": "is a file",
        Path("/proc/run"): "cannot be written",
        Path(): "is the current one",
    }.items():
        with pytest.raises(BadInput, match=words):
            RunDir.create(path, short())


def test_a_run_that_ended_before_its_first_step_is_replaced(tmp_path):
    check_that_an_unused_run_is_replaced(tmp_path / "run")


def check_that_an_unused_run_is_replaced(place):
    """Check at the path or URL ``place``, where there is no run yet; afterwards there is one."""
    for number in range(2):
        run = Run(config := short(seed=number), RunDir.create(place, config), None)
        run.close()
        run.dir.unlock()
    last = RunDir.open(place)
    assert last.config().seed == 1
    assert len((last.path / METRICS).read_text().splitlines()) == 2  # a header, and the last row of one run
    RunDir.create(place, short()).unlock()
    assert RunDir.open(place).read_json(SUMMARY) is None


UNUSED = {"agent_steps": 0, "updates": 0}


@pytest.mark.parametrize(
    ("summary", "checkpoint"),
    [
        ({**UNUSED, "agent_steps": 1}, ""),
        ({**UNUSED, "updates": 1}, ""),
        (None, ""),
        ({}, ""),
        (UNUSED, "checkpoints"),
        (UNUSED, "best"),
    ],
)
def test_a_run_that_may_hold_something_is_not_replaced(tmp_path, summary, checkpoint):
    run = RunDir.create(tmp_path, short())
    run.write(METRICS, "agent_steps\n")
    if summary is not None:
        run.write_json(SUMMARY, summary)
    if checkpoint:
        (tmp_path / checkpoint).mkdir()
    run.unlock()
    before = {file: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()}
    with pytest.raises(BadInput, match="already holds a run"):
        RunDir.create(tmp_path, short(seed=2))
    assert {file: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()} == before
    RunDir.open(tmp_path).lock()  # it is not left locked


def test_a_run_that_another_process_makes_meanwhile_is_not_replaced(tmp_path, monkeypatch):
    """It trains and ends between the first look and the lock."""

    def lock(run):
        monkeypatch.undo()
        other = RunDir.create(tmp_path, short(seed=7))
        other.write_json(SUMMARY, {"agent_steps": 500, "updates": 1})
        other.unlock()
        run.lock()

    monkeypatch.setattr(RunDir, "lock", lock)
    with pytest.raises(BadInput, match="already holds a run"):
        RunDir.create(tmp_path, short())
    assert RunDir.open(tmp_path).config().seed == 7


def test_files_that_belong_to_no_run_are_kept(tmp_path):
    (tmp_path / SUMMARY).write_text("mine")
    RunDir.create(tmp_path, short()).unlock()
    assert (tmp_path / SUMMARY).read_text() == "mine"


def test_open_rejects_a_path_that_is_not_a_run(tmp_path):
    (tmp_path / "empty").mkdir()
    for name, words in {"nowhere": "is not a directory", "empty": f"holds no run .{CONFIG} is missing"}.items():
        with pytest.raises(BadInput, match=words):
            RunDir.open(tmp_path / name)


def test_a_run_without_a_checkpoint_cannot_be_resumed(tmp_path):
    run = RunDir.create(tmp_path / "run", short())
    run.unlock()
    with pytest.raises(BadInput, match="no complete checkpoint to resume from"):
        run.newest_checkpoint()


def test_a_reader_never_sees_half_a_file(tmp_path):
    """Writing replaces the file: a reader that has the old one open still reads all of it."""
    run = RunDir(tmp_path)
    run.write_json("status.json", {"rows": [1] * 9_000})
    with (tmp_path / "status.json").open() as opened:
        run.write_json("status.json", {"rows": []})
        assert json.load(opened) == {"rows": [1] * 9_000}
    assert run.read_json("status.json") == {"rows": []}
    assert run.read_json("another.json") is None
    assert [p.name for p in tmp_path.iterdir()] == ["status.json"]


def test_the_last_row_of_metrics_is_written_once(tmp_path):
    """Also if its period has passed just before the end."""
    config = short()
    run = Run(config, RunDir.create(tmp_path / "run", config), None)
    run.tick(force=True)
    run.close()
    run.dir.unlock()
    assert len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) == 2  # with the header
