"""A node joins the cluster of a run late and leaves it: actors come and go, and `qfleet scale` says what it waits for."""

from __future__ import annotations

import json
import os
import re
import signal

import pytest

from tests.integration.runs import (
    FAST,
    run_command,
    start_qfleet,
    wait_for_output,
    wait_until,
)
from tests.integration.test_distributed_cluster import start_cluster


@pytest.mark.slow  # `make cluster-test` kills a worker
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
