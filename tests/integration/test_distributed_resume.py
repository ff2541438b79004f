"""A distributed run that was stopped or killed resumes from its last checkpoint."""

from __future__ import annotations

import json
import os
import signal
import time

import psutil
import pytest

from tests.integration.runs import (
    FAST,
    evaluate_last_weights,
    newest_checkpoint_state,
    read_rows,
    start_qfleet,
    wait_for_checkpoint,
    wait_for_output,
    worker_process,
)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("stop_signal", [signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_resuming_a_stopped_or_killed_run_continues_its_counters(tmp_path, stop_signal):
    run = tmp_path / "run"
    common = ["--actors.count", 1, *FAST, "--learner.checkpoint-minutes", 0.05]
    process = start_qfleet("train", "cartpole", "--run-dir", run, *common, start_new_session=True)
    wait_for_checkpoint(process, run)
    workers = [worker_process(process, name) for name in ("ShardWorker", "ActorWorker", "LearnerWorker")]
    if stop_signal == signal.SIGHUP:
        os.killpg(process.pid, stop_signal)  # as when an ssh session drops: Ray's processes get it too
    else:
        process.send_signal(stop_signal)
    output = wait_for_output(process, 90)
    assert process.returncode == (-stop_signal if stop_signal == signal.SIGKILL else 128 + stop_signal), output
    alive = psutil.wait_procs(workers, timeout=60)[1]
    assert not alive, alive
    before = newest_checkpoint_state(run)
    if stop_signal != signal.SIGKILL:
        assert json.loads((run / "summary.json").read_text())["updates"] == before["updates"]
    goal = before["agent_steps"] + 3000
    rows_before = read_rows(run / "metrics.csv")
    resumed = start_qfleet("train", "--resume", run, "--max-steps", goal, "--evaluation.goal", 1000, "--json")
    output = wait_for_output(resumed, 120)
    assert resumed.returncode == 0, output
    summary = json.loads(output.splitlines()[-1])
    assert summary["agent_steps"] >= goal
    assert summary["updates"] > before["updates"]
    assert newest_checkpoint_state(run)["target_syncs"] >= before["target_syncs"]
    after = read_rows(run / "metrics.csv")[len(rows_before) :]
    assert after
    assert all(int(r["agent_steps"]) >= before["agent_steps"] and int(r["updates"]) >= before["updates"] for r in after)
    # only the new steps were made after the resume: the others were taken over
    assert summary["agent_steps"] < goal + 3000
    assert summary["wall_seconds"] > before["wall_seconds"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_after_ctrl_c_and_resume_the_policy_is_still_good(tmp_path):
    run = tmp_path / "run"
    learning_rate = ["--learner.learning-rate-updates", 4000, "--learner.learning-rate-end", 1e-4]
    process = start_qfleet("train", "cartpole", "--run-dir", run, "--evaluation.goal", 1000, *learning_rate, *FAST)
    deadline = time.monotonic() + 150
    while not (run / "eval.csv").exists() or all(float(r["mean_return"]) < 200 for r in read_rows(run / "eval.csv")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "no evaluation of 200 within 150 s"
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    wait_for_output(process, 90)
    before, state = evaluate_last_weights(run), newest_checkpoint_state(run)
    resumed = start_qfleet("train", "--resume", run, "--max-steps", state["agent_steps"] + 2000)
    output = wait_for_output(resumed, 120)
    assert resumed.returncode == 0, output
    after = evaluate_last_weights(run)
    assert after["updates"] > before["updates"] >= state["updates"]
    assert before["mean_return"] >= 100
    assert after["mean_return"] >= 0.6 * before["mean_return"], (before, after)
