"""Commands whose output is no longer read (`| head`) end with 141 and no message; a run writes a last checkpoint.

So does a run whose terminal is gone; it ends with 129.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys

import pytest

from qfleet.cli import main as cli
from qfleet.cli.main import CLOSED_PIPE
from qfleet.run.directory import STATUS, SUMMARY, RunDir

QFLEET = [sys.executable, "-m", "qfleet"]
ENV = {**os.environ, "PYTHONUNBUFFERED": ""}  # output is buffered, as by default
RUN = ["train", "cartpole", "--serial", "--replay.limiter.min-size", "200", "--evaluation.quick-episodes", "1"]


@pytest.fixture
def unread():
    """The write end, a file descriptor, of a pipe whose read end is closed."""
    read, write = os.pipe()
    os.close(read)
    yield write
    os.close(write)


def run_unread(args, unread, unbuffered=""):
    """(exit status, stderr) of `qfleet ARGS` with its stdout on the closed pipe."""
    done = subprocess.run(
        [*QFLEET, *args],
        stdout=unread,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        env={**ENV, "PYTHONUNBUFFERED": unbuffered},
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    "args",
    [
        ["train", "--help"],
        ["bench"],
        ["replay", "serve", "--port", "0", "--capacity", "1000"],
    ],
    ids=" ".join,
)
def test_a_command_ends_quietly(args, unread):
    assert run_unread(args, unread) == (CLOSED_PIPE, "")


def test_plot_writes_its_picture_even_if_its_output_is_not_read(unread, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.csv").write_text("wall_seconds,agent_steps,greedy_return\n1,10,1.0\n2,20,2.0\n")
    (run / "eval.csv").write_text("wall_seconds,agent_steps,mean_return\n2,20,2.0\n")
    args = ["plot", str(run), "--to", str(tmp_path / "curves.png")]
    assert run_unread(args, unread, unbuffered="1") == (CLOSED_PIPE, "")
    assert (tmp_path / "curves.png").is_file()


def test_an_error_message_that_is_not_read_ends_the_command_with_141(unread):
    done = subprocess.run([*QFLEET, "trian"], stdout=subprocess.PIPE, stderr=unread, text=True, timeout=60, env=ENV)
    assert (done.returncode, done.stdout) == (CLOSED_PIPE, "")


def test_a_broken_pipe_other_than_the_output_is_raised(monkeypatch):
    def broken(args):
        raise BrokenPipeError

    monkeypatch.setitem(cli.COMMANDS, "bench", broken)
    with pytest.raises(BrokenPipeError):
        cli.main(["bench"])


def test_a_classic_method_ends_quietly(unread, tmp_path):
    args = ["q-learning", "--env", "FrozenLake-v1", "--no-video", "--run-dir", str(tmp_path / "run")]
    command = [*QFLEET, "classic", *args]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=unread, text=True, timeout=60, env=ENV)
    assert (done.returncode, done.stdout) == (CLOSED_PIPE, "")


def start_run(run, *more, **streams):
    return subprocess.Popen([*QFLEET, *RUN, "--run-dir", str(run), *more], text=True, **{"env": ENV, **streams})


def wait_for_updates(run, process):
    while not (run / STATUS).is_file() or not json.loads((run / STATUS).read_text())["updates"]:
        assert process.poll() is None


def checked_state(run):
    """The last checkpoint's state, after a check that summary, status and checkpoint agree."""
    summary = json.loads((run / SUMMARY).read_text())
    status = json.loads((run / STATUS).read_text())
    state = RunDir.open(run).newest_checkpoint().state
    assert 200 < summary["agent_steps"] == state["agent_steps"] == status["agent_steps"]
    assert 0 < summary["updates"] == state["updates"]
    return state


@pytest.mark.parametrize(
    "color", [pytest.param({}, id="lines", marks=pytest.mark.slow), pytest.param({"FORCE_COLOR": "1"}, id="table")]
)
def test_a_run_whose_progress_is_no_longer_read_writes_its_last_checkpoint(color, tmp_path):
    run = tmp_path / "run"
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": {**ENV, **color}}
    with start_run(run, "--evaluation.period", "400", **streams) as process:
        while "evaluation (quick)" not in (line := process.stderr.readline()):
            assert line, process.wait()
        process.stderr.close()
        output = process.stdout.read()
        assert process.wait(timeout=60) == CLOSED_PIPE, output
    assert output.startswith("not solved: ")
    assert len(output.splitlines()) == 1
    assert checked_state(run)["agent_steps"] < 50_000


def test_a_run_whose_whole_output_is_no_longer_read_writes_its_last_checkpoint(tmp_path):
    run = tmp_path / "run"
    with start_run(run, "--evaluation.period", "400", stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        while "evaluation (quick)" not in (line := process.stdout.readline()):
            assert line, process.wait()
        process.stdout.close()
        assert process.wait(timeout=60) == CLOSED_PIPE
    checked_state(run)


def test_a_run_whose_progress_is_not_read_still_stops_cleanly_on_a_signal(tmp_path):
    run = tmp_path / "run"
    with start_run(run, "--evaluation.period", "0", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stderr.readline() == f"Qfleet CartPole-v1  {run}\n"
        assert re.search(r" eval -( at most \d+:\d\d:\d\d left)?\n$", process.stderr.readline())
        process.stderr.close()
        wait_for_updates(run, process)
        process.send_signal(signal.SIGINT)
        output = process.stdout.read()
        assert process.wait(timeout=60) == 130, output
    assert output.startswith("not solved: ")
    checked_state(run)


def test_a_run_whose_terminal_is_gone_writes_its_last_checkpoint(tmp_path):
    """As when an ssh session drops: the terminal hangs up, and SIGHUP goes to the process."""
    run = tmp_path / "run"
    terminal, side = os.openpty()
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), side)
    with start_run(run, "--evaluation.period", "0", **streams) as process:
        os.close(side)
        wait_for_updates(run, process)
        os.close(terminal)
        process.send_signal(signal.SIGHUP)
        assert process.wait(timeout=60) == 128 + signal.SIGHUP
    checked_state(run)
