"""`qfleet scale`: replay shards join and leave a run while it trains."""

from __future__ import annotations

import json
import re
import signal
import time

import pytest

from tests.integration.runs import FAST, run_command, start_qfleet, wait_for_output


@pytest.mark.timeout(300)
def test_shards_join_and_leave_a_run(tmp_path):
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
        assert "2 replay shard(s)" in run_command("scale", run, "--shards", 2)[1]
        assert "shards: 2" in (run / "config.yaml").read_text()
        _, output = run_command("scale", run, "--shards", 1)
        assert re.search(r"removed replay shard-1, moved its [\d,]+ transitions", output + status()["scale_news"])
        status_code, output = run_command("scale", run, "--shards", 300)
        assert (status_code, "slack" in output) == (2, True), output
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
