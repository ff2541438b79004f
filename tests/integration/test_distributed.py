"""`qfleet train` on a local Ray: shards, actors and learner in processes of their own."""

from __future__ import annotations

import json

import pytest

from tests.integration.runs import (
    FAST,
    marked_environment,
    processes_left,
    read_rows,
    run_command,
    start_qfleet,
    wait_for_output,
)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_two_actors_and_two_shards_solve_cartpole(tmp_path):
    run = tmp_path / "run"
    args = ["train", "cartpole", "--actors.count", 2, "--replay.shards", 2, "--run-dir", run, "--json", *FAST]
    process = start_qfleet(*args)
    output = wait_for_output(process, 360)
    assert process.returncode == 0, output
    summary = json.loads(output.splitlines()[-1])
    assert summary["solved"], output
    assert summary["mean_return"] >= 475  # of 500
    assert summary["updates"] > 100
    evaluations = read_rows(run / "eval.csv")
    assert [e["kind"] for e in evaluations[-2:]] == ["full", "confirm"]
    assert int(evaluations[-1]["episodes"]) == 30
    status, check = run_command("eval", run, "--episodes", 20, "--json")
    assert status == 0
    assert json.loads(check.splitlines()[-1])["mean_return"] >= 0.8 * 475


@pytest.mark.timeout(120)
def test_a_ray_that_does_not_start_is_reported_in_one_line(tmp_path):
    no_time, mark = {"RAY_gcs_server_port_wait_time_s": "0"}, marked_environment()  # so that Ray gives up at once
    process = start_qfleet("train", "cartpole", "--run-dir", tmp_path / "run", *FAST, env={**mark, **no_time})
    output = wait_for_output(process, 100)
    assert process.returncode == 1, output
    assert output.splitlines()[-1].startswith("qfleet: Ray could not be started on this machine: ")
    assert "Traceback" not in output
    assert not processes_left(mark)
