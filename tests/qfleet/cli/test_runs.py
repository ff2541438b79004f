"""`qfleet status` and `qfleet scale` on a run's directory; a thread of the test plays the driver of the run."""

from __future__ import annotations

import contextlib
import json
import threading
import time

import pytest

from qfleet.cli import main as cli
from qfleet.cli import runs
from qfleet.run.directory import SCALE, STATUS, SUMMARY, RunDir
from tests.qfleet.configs import short

FIGURES = {"agent_steps": 2_000, "frames": 2_000, "updates": 30, "wall_seconds": 90.0, "last_return": None}


@pytest.fixture
def run(tmp_path):
    made = RunDir.create(tmp_path / "run", short())
    yield made
    made.unlock()


def command(*args):
    return cli.main([str(a) for a in args])


def write_status(run, shards=1, **changes):
    status = {"time": time.time(), "shards": shards, "scale_request": None, "scale_news": "", **FIGURES, **changes}
    run.write_json(STATUS, status)


@contextlib.contextmanager
def driver(run, answer):
    """Plays the driver: reports 1 shard, and ``answer`` once a number of shards is requested."""
    ended = threading.Event()

    def drive():
        while not ended.is_set():
            request = run.read_json(SCALE)
            write_status(run, **({} if request is None else {"scale_request": request, **answer}))
            ended.wait(0.05)

    write_status(run)
    thread = threading.Thread(target=drive)
    thread.start()
    yield
    ended.set()
    thread.join()


def test_status_before_and_after_a_run(run, capsys):
    assert command("status", run.path) == 0
    assert "the run has no status yet" in capsys.readouterr().out
    summary = {
        **FIGURES,
        "solved": True,
        "goal": 475.0,
        "mean_return": 480.5,
        "best_return": 490.0,
        "run_dir": str(run.path),
    }
    run.write_json(SUMMARY, summary)
    assert command("status", run.path, "--json") == 0
    line, last = capsys.readouterr().out.splitlines()
    assert line.startswith("solved: mean return 480.50 (best 490.00) after 2,000 agent steps (2,000 frames), 30 upd")
    assert json.loads(last) == summary


def test_status_of_a_classic_run_is_rejected(run, capsys):
    run.write_json(SUMMARY, {"method": "sarsa"})
    assert command("status", run.path) == 2
    assert "is a run of qfleet classic" in capsys.readouterr().err


def test_scale_waits_until_the_run_has_its_shards(run, capsys):
    with driver(run, {"shards": 3, "scale_news": "added replay shard-2"}):
        assert command("scale", run.path, "--shards", 3, "--json") == 0
    out = capsys.readouterr().out.splitlines()
    assert json.loads(out[-1]) == {"shards": 3}
    assert out[-2].endswith("3 replay shard(s)")
    assert run.read_json(SCALE)["shards"] == 3


def test_two_equal_requests_are_told_apart(run):
    requests = []
    for _ in range(2):
        with driver(run, {"shards": 2}):
            assert command("scale", run.path, "--shards", 2) == 0
        requests.append(run.read_json(SCALE))
    assert requests[0] != requests[1]


def test_a_request_that_the_driver_rejects_fails_with_its_reason(run, capsys):
    with driver(run, {"scale_news": "warning: the run keeps 1 replay shard(s): no CPU is free"}):
        assert command("scale", run.path, "--shards", 2) == 1
    assert capsys.readouterr().err == "qfleet: the run keeps 1 replay shard(s): no CPU is free\n"


def test_the_answer_to_another_request_is_ignored(run, capsys):
    with driver(run, {"scale_request": {"shards": 9, "number": "x"}, "scale_news": "warning: 9 are too many"}):
        assert command("scale", run.path, "--shards", 2, "--timeout", 0.7) == 1
    assert "has 1 replay shard(s) after 0.7 s, not 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("status", "ended", "words"),
    [
        (None, False, "it has not started yet, is a --serial run, or was killed"),
        ({"time": time.time() - 2 * runs.STATUS_MAX_AGE}, False, "was killed"),
        ({}, True, "it has ended"),
    ],
)
def test_scale_rejects_a_run_that_is_not_training(run, capsys, status, ended, words):
    if status is not None:
        write_status(run, **status)
    if ended:
        run.write_json(SUMMARY, {"solved": False})
    assert command("scale", run.path, "--shards", 2) == 2
    assert words in capsys.readouterr().err
    assert run.read_json(SCALE) is None


def test_scale_rejects_an_invalid_number_before_it_requests_it(run, capsys):
    write_status(run)
    assert command("scale", run.path, "--shards", 300) == 2
    assert "slack" in capsys.readouterr().err
    assert run.read_json(SCALE) is None


def test_a_run_without_a_goal_is_not_called_unsolved(run, capsys):
    summary = {**FIGURES, "solved": False, "goal": None, "mean_return": 5.0, "best_return": 5.0, "run_dir": "r"}
    run.write_json(SUMMARY, summary)
    assert command("status", run.path) == 0
    assert capsys.readouterr().out.startswith("ended (no goal): mean return 5.00 after 2,000 agent steps")


def test_status_of_a_killed_run_gives_the_age_of_its_figures(run, capsys):
    write_status(
        run, time=time.time() - 75, steps_per_s=1.0, updates_per_s=1.0, samples_per_insert=8.0, epsilon_min=0.1
    )
    figures = run.read_json(STATUS)
    run.write_json(STATUS, {**figures, "train_return": None, "greedy_return": None})
    assert command("status", run.path) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("not updated for 0:01:15: the run was probably killed")


@pytest.mark.parametrize("name", [STATUS, SUMMARY])
def test_status_of_a_damaged_file_is_one_line(run, name, capsys):
    (run.path / name).write_text('{"updates"')
    assert command("status", run.path) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"qfleet: {run.path / name} is damaged (")
