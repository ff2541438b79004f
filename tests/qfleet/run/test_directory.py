"""A run's directory: made once, trained in by one, read while it is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qfleet.run.directory import CONFIG, RunDir, versions
from rl.errors import BadInput
from tests.qfleet.configs import short


def test_a_run_is_made_locked_and_opened_again(tmp_path):
    config = short(seed=7)
    run = RunDir.create(tmp_path / "deep" / "run", config)
    again = RunDir.open(run.path)
    assert again.config() == config
    with pytest.raises(BadInput, match="is being trained by another process"):
        again.lock()
    run.unlock()
    again.lock()
    again.unlock()


def test_a_directory_of_its_own_is_dated_and_named_after_game_and_seed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = RunDir.create(None, short(seed=3))
    assert run.path.parent == Path("runs")
    assert run.path.match("cartpole-v1-*-seed3")
    run.unlock()


def test_where_no_run_can_be_is_said(tmp_path):
    taken = RunDir.create(tmp_path / "taken", short())
    taken.unlock()
    (tmp_path / "file").write_text("")
    for path, words in {
        tmp_path / "taken": "already holds a run: write another directory, or resume it",
        tmp_path / "file": "is a file",
        Path("/proc/run"): "cannot be written",
        Path(): "this very directory",
    }.items():
        with pytest.raises(BadInput, match=words):
            RunDir.create(path, short())


def test_what_is_no_run_is_said(tmp_path):
    (tmp_path / "empty").mkdir()
    for name, words in {"nowhere": "is no run's directory", "empty": f"holds no run .{CONFIG} is missing"}.items():
        with pytest.raises(BadInput, match=words):
            RunDir.open(tmp_path / name)


def test_a_run_without_a_checkpoint_is_not_resumed(tmp_path):
    run = RunDir.create(tmp_path / "run", short())
    run.unlock()
    with pytest.raises(BadInput, match="no whole checkpoint to resume from"):
        run.newest_checkpoint()


def test_a_reader_never_sees_half_a_file(tmp_path):
    """A file is replaced whole: who has the old one open reads it to its end."""
    run = RunDir(tmp_path)
    run.write_json("status.json", {"rows": [1] * 9_000})
    with (tmp_path / "status.json").open() as opened:
        run.write_json("status.json", {"rows": []})
        assert json.load(opened) == {"rows": [1] * 9_000}
    assert run.read_json("status.json") == {"rows": []}
    assert run.read_json("another.json") is None
    assert [p.name for p in tmp_path.iterdir()] == ["status.json"]


def test_versions_are_of_what_is_installed():
    found = versions()
    assert found["numpy"][0].isdigit()
    assert "torch" in found
