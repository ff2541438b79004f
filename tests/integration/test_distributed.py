"""`qfleet train` on a local Ray: shards, actors and learner in processes of their own."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from tests.integration.runs import (
    FAST,
    read_rows,
    run_command,
    start_qfleet,
    wait_for_output,
)


def processes_marked(mark):
    """Command lines of the other processes whose environment contains ``mark``."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                if mark.encode() in (folder / "environ").read_bytes():
                    found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue
    return [f for f in found if f.strip()]


@pytest.mark.timeout(400)
@pytest.mark.parametrize("goal", [195, pytest.param(475, marks=pytest.mark.slow)])  # of 500
def test_two_actors_and_two_shards_solve_cartpole_and_leave_no_process_behind(tmp_path, goal):
    run, mark = tmp_path / "run", f"qfleet-test-{os.getpid()}-{time.time_ns()}"
    args = ["train", "cartpole", "--actors.count", 2, "--replay.shards", 2, "--run-dir", run, "--json", *FAST]
    args += ["--evaluation.goal", goal, *(["--exploration.steps", 3000] if goal == 195 else [])]
    process = start_qfleet(*args, env={**os.environ, "QFLEET_TEST_MARK": mark})
    output = wait_for_output(process, 360)
    assert process.returncode == 0, output
    summary = json.loads(output.splitlines()[-1])
    assert summary["solved"], output
    assert summary["mean_return"] >= goal
    assert summary["updates"] > 100
    evaluations = read_rows(run / "eval.csv")
    assert [e["kind"] for e in evaluations[-2:]] == ["full", "confirm"]
    assert int(evaluations[-1]["episodes"]) == 30
    deadline = time.monotonic() + 20
    while (left := processes_marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left
    status, check = run_command("eval", run, "--episodes", 20, "--json")
    assert status == 0
    assert json.loads(check.splitlines()[-1])["mean_return"] >= 0.8 * goal


@pytest.mark.timeout(120)
def test_a_ray_that_does_not_start_is_reported_in_one_line(tmp_path):
    mark = f"qfleet-test-{os.getpid()}-{time.time_ns()}"
    no_time = {"RAY_gcs_server_port_wait_time_s": "0", "QFLEET_TEST_MARK": mark}  # so that Ray gives up at once
    process = start_qfleet("train", "cartpole", "--run-dir", tmp_path / "run", *FAST, env={**os.environ, **no_time})
    output = wait_for_output(process, 100)
    assert process.returncode == 1, output
    assert output.splitlines()[-1].startswith("qfleet: Ray could not be started on this machine: ")
    assert "Traceback" not in output
    deadline = time.monotonic() + 20
    while (left := processes_marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left
