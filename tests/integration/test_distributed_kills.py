"""Parts of a run that are killed and come back, and a killed learner, without which it ends."""

from __future__ import annotations

import re

import psutil
import pytest

from tests.integration.runs import (
    FAST,
    child,
    finish,
    newest_state,
    qfleet,
    rows,
    saved_state,
    versions_acted_on,
    wait_for_checkpoint,
    wait_until,
)


@pytest.mark.timeout(300)
def test_who_is_killed_comes_back_and_a_killed_learner_ends_the_run_with_its_reason(tmp_path):
    """A shard with its content, in a resumed run too, an actor, and the driver, with which all parts end; without a learner
    the shards still save theirs."""
    run = tmp_path / "run"
    args = ["--replay.snapshot-minutes", 0.02, "--learner.checkpoint-minutes", 0.02, "--evaluation.goal", 1000]
    args += ["--replay.limiter.min-size", 300]
    process = qfleet("train", "cartpole", "--run-dir", run, *args, *FAST)
    wait_for_checkpoint(process, run)
    wait_until(process, lambda: saved_state(run)["end_key"] > 600)
    child(process, "ShardWorker").kill()
    stored = saved_state(run)["end_key"]
    wait_until(process, lambda: saved_state(run)["end_key"] > stored + 200)
    updates = newest_state(run)["updates"]
    wait_until(process, lambda: newest_state(run)["updates"] > updates + 50)
    actor = child(process, "ActorWorker")
    actor.kill()
    wait_until(process, lambda: child(process, "ActorWorker") not in (None, actor))
    steps = newest_state(run)["agent_steps"]
    wait_until(process, lambda: newest_state(run)["agent_steps"] > steps + 500)
    parts = [child(process, name) for name in ("ShardWorker", "ActorWorker", "LearnerWorker")]
    process.kill()
    words = " ".join(finish(process, 90).split())
    alive = psutil.wait_procs(parts, timeout=60)[1]
    assert not alive, alive
    assert re.search(
        r"replay shard-0 restarted at 127.0.0.1:\d+: restored [\d,]+ transitions from a snapshot \d+ sec", words
    )
    assert min(versions_acted_on(run)) >= 1  # never the seed's weights, after the restart neither
    saved, before = saved_state(run), newest_state(run)
    rows_before = len(rows(run / "metrics.csv"))
    resumed = qfleet("train", "--resume", run, "--max-steps", 1_000_000, "--replay.snapshot-minutes", 10)
    wait_until(resumed, lambda: newest_state(run)["agent_steps"] > before["agent_steps"] + 600)
    child(resumed, "LearnerWorker").kill()
    output = finish(resumed, 120)
    assert resumed.returncode == 1
    assert "learner: the process ended" in output.splitlines()[-1]
    items = saved["end_key"] - saved["first_key"]
    assert f"replay shard-0 restored {items:,} transitions from a snapshot" in " ".join(output.split())
    assert saved_state(run)["end_key"] >= saved["end_key"] + 300  # the last snapshot, at the end
    assert (run / "summary.json").exists()
    after = rows(run / "metrics.csv")[rows_before:]
    assert after
    assert all(int(r["agent_steps"]) >= before["agent_steps"] and int(r["updates"]) >= before["updates"] for r in after)
    assert min(versions_acted_on(run)) >= 1
