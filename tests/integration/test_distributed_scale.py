"""`qfleet scale`: replay shards and actors join and leave a run while it trains; so do nodes of its cluster."""

from __future__ import annotations

import json
import os
import re
import signal
import time

import pytest

from tests.integration.runs import FAST, run_command, start_qfleet, wait_for_output, wait_until
from tests.integration.test_distributed_cluster import start_cluster


@pytest.mark.timeout(300)
def test_shards_and_actors_join_and_leave_a_run(tmp_path):
    """Scale up and down: the content of the leaving shard moves to the other, and the run continues to its end."""
    run = tmp_path / "run"
    args = [
        "--actors.count",
        1,
        "--replay.shards",
        1,
        "--evaluation.goal",
        "inf",
        "--max-steps",
        1_000_000,
        "--replay.limiter.min-size",
        300,
        "--run-dir",
        run,
    ]
    process = start_qfleet("train", "cartpole", *args, *FAST)

    def status():
        return json.loads((run / "status.json").read_text()) if (run / "status.json").exists() else {}

    try:
        deadline = time.monotonic() + 120
        while "shards" not in status() or status()["updates"] < 50:
            assert time.monotonic() < deadline, "the run did not start to train"
            time.sleep(0.2)
        _, output = run_command("scale", run, "--shards", 2, "--actors", 2)
        assert "2 replay shard(s), 2 actor(s)" in output
        assert (status()["actors"], status()["actors_wanted"], status()["shards"]) == (2, 2, 2)
        assert "shards: 2" in (run / "config.yaml").read_text()
        assert "actors:\n  count: 2" in (run / "config.yaml").read_text()
        _, output = run_command("scale", run, "--shards", 1)
        assert re.search(r"removed replay shard-1, moved its [\d,]+ transitions", output + status()["scale_news"])
        status_code, output = run_command("scale", run, "--shards", 300)
        assert (status_code, "slack" in output) == (2, True), output
        assert run_command("scale", run, "--actors", 1)[0] == 0
        assert "actors:\n  count: 1" in (run / "config.yaml").read_text()
        before = status()["updates"]
        while status()["updates"] < before + 50:
            assert time.monotonic() < deadline + 60, "the run made no updates after the change"
            time.sleep(0.2)
    finally:
        process.send_signal(signal.SIGINT)
        output = wait_for_output(process, 60)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    status_code, output = run_command("scale", run, "--shards", 2)
    assert (status_code, "not training on Ray" in output) == (2, True), output


@pytest.mark.timeout(600)
def test_a_node_is_added_late_and_removed_later(tmp_path):
    """The run starts with the one actor for which the head has room; the other plays while there is a second node."""
    cluster = start_cluster(num_cpus=5)  # the learner needs 2, shard and evaluator 1 each
    run, output = tmp_path / "run", tmp_path / "output"
    args = ["--address", cluster.address, "--actors.count", 2, "--actors.environments", 2, "--run-dir", run]
    args += ["--exploration.kind", "ladder", "--evaluation.goal", "inf", "--max-steps", 1_000_000]
    with output.open("w") as file:
        process = start_qfleet(
            *("train", "cartpole", *args, "--replay.limiter.min-size", 300, *FAST),
            stdout=file,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )

    def actors():
        file = run / "status.json"
        figures = json.loads(file.read_text()) if file.exists() else {}
        return (figures["actors"], figures["actors_wanted"]) if "shards" in figures else None

    try:
        wait_until(process, lambda: actors() == (1, 2), 200)
        assert "1 actor(s) (of 2: the others join when there is room) x 2 environments" in output.read_text()
        code, words = run_command("scale", run, "--actors", 3, "--timeout", 1)
        assert (code, "has 1 of 3 actors after 1 s: the rest waits for nodes with free CPUs" in words) == (1, True), (
            words
        )
        assert run_command("scale", run, "--actors", 2, "--timeout", 1)[0] == 1
        node = cluster.add_node(num_cpus=2)
        wait_until(process, lambda: actors() == (2, 2), 150)
        cluster.remove_node(node, allow_graceful=False)
        wait_until(process, lambda: actors() == (1, 2), 90)
        before = json.loads((run / "status.json").read_text())["agent_steps"]
        wait_until(process, lambda: json.loads((run / "status.json").read_text())["agent_steps"] > before + 100)
    finally:
        process.send_signal(signal.SIGINT)
        wait_for_output(process, 60)
        cluster.shutdown()
    text = output.read_text()
    assert process.returncode == 130, text
    assert re.search(r"warning: actor-\d does not answer: the ladder is spread over 1 actor\n", text)
    assert "Traceback" not in text
