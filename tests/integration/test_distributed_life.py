"""The life of a run on Ray: its parts are killed and frozen, it is scaled, learns, is interrupted and resumed."""

from __future__ import annotations

import json
import re
import signal

import pytest

from tests.integration.runs import (
    FAST,
    SLOW_ENV,
    marked_environment,
    newest_checkpoint_state,
    processes_left,
    read_rows,
    run_command,
    snapshot_state,
    snapshot_weights_versions,
    start_qfleet,
    wait_for_checkpoint,
    wait_for_output,
    wait_until,
    worker_process,
)

OFTEN = ["--replay.snapshot-minutes", 0.02, "--learner.checkpoint-minutes", 0.02]


def status(run):
    file = run / "status.json"
    return json.loads(file.read_text()) if file.exists() else {}


@pytest.mark.timeout(400)
def test_a_run_survives_kills_scales_learns_and_is_resumed(tmp_path):
    run, environment = tmp_path / "run", marked_environment()
    args = ["--env.id", SLOW_ENV, "--exploration.steps", 3000, "--evaluation.goal", "inf", "--max-steps", 1_000_000]
    args += ["--replay.limiter.min-size", 300, "--actors.count", 1, "--run-dir", run]
    process = start_qfleet("train", "cartpole", *args, *OFTEN, *FAST, env=environment)
    try:
        wait_for_checkpoint(process, run)
        check_that_parts_are_started_again(process, run)
        check_scaling(process, run)
    finally:
        process.send_signal(signal.SIGINT)
        output = wait_for_output(process, 60)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert not processes_left(environment)
    words = " ".join(output.split())
    assert re.search(
        r"replay shard-0 restarted at 127.0.0.1:\d+: restored [\d,]+ transitions from a snapshot \d+ sec", words
    )
    # no action was chosen by the initial weights, not even after the actor restarted
    assert min(snapshot_weights_versions(run)) >= 1
    status_code, output = run_command("scale", run, "--shards", 2)
    assert (status_code, "not training on Ray" in output) == (2, True), output
    check_resume_and_death_of_the_learner(run, environment)


def check_that_parts_are_started_again(process, run):
    """A frozen shard restores its content, an actor and the board that die at once are replaced, while the others go on."""
    wait_until(process, lambda: snapshot_state(run)["end_key"] > 600)
    worker_process(process, "ShardWorker").suspend()
    stored = snapshot_state(run)["end_key"]
    wait_until(process, lambda: snapshot_state(run)["end_key"] > stored + 200)
    assert status(run)["restarts_by_kind"] == {"shard": 1}
    updates = newest_checkpoint_state(run)["updates"]
    wait_until(process, lambda: newest_checkpoint_state(run)["updates"] > updates + 50)
    parts = [worker_process(process, name) for name in ("ActorWorker", "RunBoard")]
    for part in parts:
        part.kill()
    wait_until(process, lambda: worker_process(process, "ActorWorker") not in (None, parts[0]))
    steps = newest_checkpoint_state(run)["agent_steps"]
    wait_until(process, lambda: newest_checkpoint_state(run)["agent_steps"] > steps + 500)
    assert status(run)["restarts_by_kind"] == {"shard": 1, "actor": 1, "board": 1}


def check_scaling(process, run):
    """More shards and actors join; the run learns; the content of a leaving shard moves, and the run goes on."""
    _, output = run_command("scale", run, "--shards", 2, "--actors", 2)
    assert "2 replay shard(s), 2 actor(s)" in output
    assert (status(run)["actors"], status(run)["actors_wanted"], status(run)["shards"]) == (2, 2, 2)
    assert "shards: 2" in (run / "config.yaml").read_text()
    assert "actors:\n  count: 2" in (run / "config.yaml").read_text()
    learned = lambda: any(float(row["mean_return"]) >= 195 for row in read_rows(run / "eval.csv"))  # noqa: E731
    wait_until(process, lambda: (run / "eval.csv").exists() and learned(), 200)  # of 500
    _, output = run_command("scale", run, "--shards", 1)
    assert re.search(r"removed replay shard-1, moved its [\d,]+ transitions", output + status(run)["scale_news"])
    status_code, output = run_command("scale", run, "--shards", 300)
    assert (status_code, "slack" in output) == (2, True), output
    assert run_command("scale", run, "--actors", 1)[0] == 0
    assert "actors:\n  count: 1" in (run / "config.yaml").read_text()
    before = status(run)["updates"]
    wait_until(process, lambda: status(run)["updates"] > before + 50, 60)


def check_resume_and_death_of_the_learner(run, environment):
    """A resumed run restores the last snapshot; its learner, killed with the weight store, goes on from its checkpoint."""
    saved, before = snapshot_state(run), newest_checkpoint_state(run)
    rows_before = len(read_rows(run / "metrics.csv"))
    args = ["--replay.snapshot-minutes", 10, "--replay.shards", 2, "--replay.capacity", 200_000]
    resumed = start_qfleet("train", "--resume", run, *args, env=environment)
    wait_until(resumed, lambda: newest_checkpoint_state(run)["agent_steps"] > before["agent_steps"] + 1200)
    known = status(run)
    for part in ("LearnerWorker", "WeightStore"):
        worker_process(resumed, part).kill()
    # New weights reach the actors: their versions, in the segments, go on from what the actors have.
    wait_until(resumed, lambda: status(run)["restarts"] == 2 and status(run)["updates"] > known["updates"] + 100)
    assert status(run)["weights_version"] > known["weights_version"]
    steps = status(run)["agent_steps"]
    wait_until(resumed, lambda: status(run)["agent_steps"] > steps + 200)
    resumed.send_signal(signal.SIGINT)
    output = wait_for_output(resumed, 120)
    assert resumed.returncode == 130, output
    items = saved["end_key"] - saved["first_key"]
    words = " ".join(output.split())
    assert re.search(r"the learner is requested again, to go on from its state after [\d,]+ updates", words)
    assert f"replay shard-0 restored {items:,} transitions from a snapshot" in words
    assert re.search(rf"replay shard-1 found no snapshot in {run}/replay/shard-1 on 127.0.0.1: it starts empty", words)
    assert snapshot_state(run)["end_key"] >= saved["end_key"] + 300  # the snapshot written at the end of the run
    assert (run / "summary.json").exists()
    after = read_rows(run / "metrics.csv")[rows_before:]
    assert after
    assert all(int(r["agent_steps"]) >= before["agent_steps"] and int(r["updates"]) >= before["updates"] for r in after)
    versions = snapshot_weights_versions(run)
    assert min(versions) >= 1
    assert max(versions) > known["weights_version"] + 100  # the driver did not know the last one exactly
    assert not processes_left(environment)
