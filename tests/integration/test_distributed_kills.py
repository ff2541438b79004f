"""Processes of a run are killed: a shard and an actor restart, a killed learner ends the run."""

from __future__ import annotations

import re

import psutil
import pytest

from tests.integration.runs import (
    FAST,
    SLOW_ENV,
    newest_checkpoint_state,
    read_rows,
    snapshot_state,
    snapshot_weights_versions,
    start_qfleet,
    wait_for_checkpoint,
    wait_for_output,
    wait_until,
    worker_process,
)


@pytest.mark.timeout(300)
def test_killed_shards_and_actors_restart_and_a_killed_learner_ends_the_run(tmp_path):
    """A killed shard restores its content, also in a resumed run. A killed driver ends all processes.

    When the learner is killed, the shards still write their last snapshots.
    """
    run = tmp_path / "run"
    args = ["--replay.snapshot-minutes", 0.02, "--learner.checkpoint-minutes", 0.02, "--evaluation.goal", 1000]
    args += ["--replay.limiter.min-size", 300, "--env.id", SLOW_ENV]
    process = start_qfleet("train", "cartpole", "--run-dir", run, *args, *FAST)
    wait_for_checkpoint(process, run)
    wait_until(process, lambda: snapshot_state(run)["end_key"] > 600)
    worker_process(process, "ShardWorker").kill()
    stored = snapshot_state(run)["end_key"]
    wait_until(process, lambda: snapshot_state(run)["end_key"] > stored + 200)
    updates = newest_checkpoint_state(run)["updates"]
    wait_until(process, lambda: newest_checkpoint_state(run)["updates"] > updates + 50)
    actor = worker_process(process, "ActorWorker")
    actor.kill()
    wait_until(process, lambda: worker_process(process, "ActorWorker") not in (None, actor))
    steps = newest_checkpoint_state(run)["agent_steps"]
    wait_until(process, lambda: newest_checkpoint_state(run)["agent_steps"] > steps + 500)
    workers = [worker_process(process, name) for name in ("ShardWorker", "ActorWorker", "LearnerWorker")]
    process.kill()
    output = " ".join(wait_for_output(process, 90).split())
    alive = psutil.wait_procs(workers, timeout=60)[1]
    assert not alive, alive
    assert re.search(
        r"replay shard-0 restarted at 127.0.0.1:\d+: restored [\d,]+ transitions from a snapshot \d+ sec", output
    )
    # no action was chosen by the initial weights, not even after the actor restarted
    assert min(snapshot_weights_versions(run)) >= 1
    saved, before = snapshot_state(run), newest_checkpoint_state(run)
    rows_before = len(read_rows(run / "metrics.csv"))
    args = ["--max-steps", 1_000_000, "--replay.snapshot-minutes", 10, "--replay.shards", 2]
    resumed = start_qfleet("train", "--resume", run, *args)
    wait_until(resumed, lambda: newest_checkpoint_state(run)["agent_steps"] > before["agent_steps"] + 1200)
    worker_process(resumed, "LearnerWorker").kill()
    output = wait_for_output(resumed, 120)
    assert resumed.returncode == 1
    assert "learner: the process ended" in output.splitlines()[-1]
    items = saved["end_key"] - saved["first_key"]
    words = " ".join(output.split())
    assert f"replay shard-0 restored {items:,} transitions from a snapshot" in words
    assert re.search(rf"replay shard-1 found no snapshot in {run}/replay/shard-1 on 127.0.0.1: it starts empty", words)
    assert snapshot_state(run)["end_key"] >= saved["end_key"] + 300  # the snapshot written at the end of the run
    assert (run / "summary.json").exists()
    after = read_rows(run / "metrics.csv")[rows_before:]
    assert after
    assert all(int(r["agent_steps"]) >= before["agent_steps"] and int(r["updates"]) >= before["updates"] for r in after)
    assert min(snapshot_weights_versions(run)) >= 1
