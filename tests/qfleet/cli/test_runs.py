"""`qfleet status` and `qfleet scale` over a run's directory; the driver of the run is a thread of the test."""

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


def pin(run, shards=1, **changes):
    status = {"time": time.time(), "shards": shards, "scale_request": None, "scale_news": "", **FIGURES, **changes}
    run.write_json(STATUS, status)


@contextlib.contextmanager
def driver(run, answer):
    """Pins up that there is 1 shard, and then ``answer`` once a number of shards is asked for."""
    ended = threading.Event()

    def drive():
        while not ended.is_set():
            asked = run.read_json(SCALE)
            pin(run, **({} if asked is None else {"scale_request": asked, **answer}))
            ended.wait(0.05)

    pin(run)
    thread = threading.Thread(target=drive)
    thread.start()
    yield
    ended.set()
    thread.join()


def test_status_before_within_and_after_a_run(run, capsys):
    assert command("status", run.path) == 0
    assert "started, nothing to report yet" in capsys.readouterr().out
    summary = {**FIGURES, "solved": True, "mean_return": 480.5, "best_return": 490.0, "run_dir": str(run.path)}
    run.write_json(SUMMARY, summary)
    assert command("status", run.path, "--json") == 0
    line, last = capsys.readouterr().out.splitlines()
    assert line.startswith("solved: mean return 480.50 (best 490.00) after 2,000 agent steps (2,000 frames), 30 upd")
    assert json.loads(last) == summary


def test_status_of_a_classic_run_is_refused_in_a_line(run, capsys):
    run.write_json(SUMMARY, {"method": "sarsa"})
    assert command("status", run.path) == 2
    assert "is a run of qfleet classic" in capsys.readouterr().err


def test_scale_waits_until_the_run_has_its_shards(run, capsys):
    with driver(run, {"shards": 3, "scale_news": "replay shard-2 has joined"}):
        assert command("scale", run.path, "--shards", 3, "--json") == 0
    out = capsys.readouterr().out.splitlines()
    assert json.loads(out[-1]) == {"shards": 3}
    assert out[-2].endswith("3 replay shard(s)")
    assert run.read_json(SCALE)["shards"] == 3


def test_two_requests_for_the_same_are_two(run):
    asked = []
    for _ in range(2):
        with driver(run, {"shards": 2}):
            assert command("scale", run.path, "--shards", 2) == 0
        asked.append(run.read_json(SCALE))
    assert asked[0] != asked[1]


def test_what_the_driver_refuses_is_a_fault_with_its_words(run, capsys):
    with driver(run, {"scale_news": "warning: the replay stays at 1 shard(s): no CPU is free"}):
        assert command("scale", run.path, "--shards", 2) == 1
    assert capsys.readouterr().err == "qfleet: the replay stays at 1 shard(s): no CPU is free\n"


def test_news_of_somebody_elses_request_is_not_this_ones(run, capsys):
    with driver(run, {"scale_request": {"shards": 9, "number": "x"}, "scale_news": "warning: 9 are too many"}):
        assert command("scale", run.path, "--shards", 2, "--timeout", 0.7) == 1
    assert "has 1 replay shard(s) after 0.7 s, not 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("status", "ended", "words"),
    [
        (None, False, "it has not begun, is a --serial one, or was killed"),
        ({"time": time.time() - 2 * runs.SILENT}, False, "was killed"),
        ({}, True, "it has ended"),
    ],
)
def test_a_run_that_nobody_trains_is_not_scaled(run, capsys, status, ended, words):
    if status is not None:
        pin(run, **status)
    if ended:
        run.write_json(SUMMARY, {"solved": False})
    assert command("scale", run.path, "--shards", 2) == 2
    assert words in capsys.readouterr().err
    assert run.read_json(SCALE) is None


def test_a_number_that_the_configuration_forbids_is_refused_before_it_is_asked_for(run, capsys):
    pin(run)
    assert command("scale", run.path, "--shards", 300) == 2
    assert "slack" in capsys.readouterr().err
    assert run.read_json(SCALE) is None
