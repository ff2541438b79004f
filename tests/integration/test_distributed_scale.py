"""Replay shards that join and leave a run while it trains."""

from __future__ import annotations

import json
import re
import signal
import time

import pytest

from tests.integration.runs import FAST, finish, qfleet, said


@pytest.mark.timeout(300)
def test_shards_join_and_leave_a_run(tmp_path):
    """`qfleet scale` up and down while it trains; what was stored moves along, and the run goes on to its end."""
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
    process = qfleet("train", "cartpole", *args, *FAST)

    def status():
        return json.loads((run / "status.json").read_text()) if (run / "status.json").exists() else {}

    try:
        deadline = time.monotonic() + 120
        while "shards" not in status() or status()["updates"] < 50:
            assert time.monotonic() < deadline, "the run did not begin"
            time.sleep(0.2)
        assert "2 replay shard(s)" in said("scale", run, "--shards", 2)[1]
        assert "shards: 2" in (run / "config.yaml").read_text()
        _, down = said("scale", run, "--shards", 1)
        assert re.search(r"removed replay shard-1, moved its [\d,]+ transitions", down + status()["scale_news"])
        refused, words = said("scale", run, "--shards", 300)
        assert (refused, "slack" in words) == (2, True), words
        before = status()["updates"]
        while status()["updates"] < before + 50:
            assert time.monotonic() < deadline + 60, "the run does not go on"
            time.sleep(0.2)
    finally:
        process.send_signal(signal.SIGINT)
        output = finish(process, 60)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    over, words = said("scale", run, "--shards", 2)
    assert (over, "not training on Ray" in words) == (2, True), words
