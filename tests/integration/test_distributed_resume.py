"""A distributed run that was stopped or killed goes on where it stood."""

from __future__ import annotations

import json
import signal
import time

import pytest

from tests.integration.runs import (
    FAST,
    evaluation,
    finish,
    newest_state,
    qfleet,
    rows,
    wait_for_checkpoint,
)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_stop_or_kill_and_resume_goes_on_from_the_counters(tmp_path, how):
    run = tmp_path / "run"
    common = ["--actors.count", 1, *FAST, "--learner.checkpoint-minutes", 0.05]
    process = qfleet("train", "cartpole", "--run-dir", run, *common)
    wait_for_checkpoint(process, run)
    process.send_signal(how)
    output = finish(process, 90)
    assert process.returncode == (130 if how == signal.SIGINT else -signal.SIGKILL), output
    before = newest_state(run)
    if how == signal.SIGINT:
        assert json.loads((run / "summary.json").read_text())["updates"] == before["updates"]
    goal = before["agent_steps"] + 3000
    rows_before = rows(run / "metrics.csv")
    resumed = qfleet("train", "--resume", run, "--max-steps", goal, "--evaluation.goal", 1000, "--json")
    output = finish(resumed, 120)
    assert resumed.returncode == 0, output
    summary = json.loads(output.splitlines()[-1])
    assert summary["agent_steps"] >= goal
    assert summary["updates"] > before["updates"]
    assert newest_state(run)["target_syncs"] >= before["target_syncs"]
    after = rows(run / "metrics.csv")[len(rows_before) :]
    assert after
    assert all(int(r["agent_steps"]) >= before["agent_steps"] and int(r["updates"]) >= before["updates"] for r in after)
    # no more new steps and updates than this part of the run made: the rest was carried over
    assert summary["agent_steps"] < goal + 3000
    assert summary["wall_seconds"] > before["wall_seconds"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_after_ctrl_c_and_resume_the_policy_is_as_good_as_before(tmp_path):
    run = tmp_path / "run"
    fading = ["--learner.learning-rate-updates", 4000, "--learner.learning-rate-end", 1e-4]
    process = qfleet("train", "cartpole", "--run-dir", run, "--evaluation.goal", 1000, *fading, *FAST)
    deadline = time.monotonic() + 150
    while not (run / "eval.csv").exists() or all(float(r["mean_return"]) < 200 for r in rows(run / "eval.csv")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "no evaluation of 200 within 150 s"
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    finish(process, 90)
    before, state = evaluation(run), newest_state(run)
    resumed = qfleet("train", "--resume", run, "--max-steps", state["agent_steps"] + 2000)
    output = finish(resumed, 120)
    assert resumed.returncode == 0, output
    after = evaluation(run)
    assert after["updates"] > before["updates"] >= state["updates"]
    assert before["mean_return"] >= 100
    assert after["mean_return"] >= 0.6 * before["mean_return"], (before, after)
