"""A run that a Qfleet before format numbers left goes on on Ray, its replay restored from the snapshot of then."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.conftest import ROOT
from tests.integration.runs import finish, newest_state, qfleet, saved_state

FIXTURE = ROOT / "tests" / "fixtures" / "format-0" / "run"


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_run_of_format_0_goes_on_with_its_replay(tmp_path):
    run = shutil.copytree(FIXTURE, tmp_path / "run")
    flags = ["--max-steps", 21500, "--evaluation.period", 0, "--json"]
    process = qfleet("train", "--resume", run, *flags)
    output = finish(process, 150)
    assert process.returncode == 0, output
    assert "restored 241 transitions from a snapshot" in output
    summary = json.loads(output.splitlines()[-1])
    assert summary["agent_steps"] >= 21500
    assert summary["updates"] > 1305
    assert summary["best_return"] == pytest.approx(-63.333333333333336)
    assert newest_state(run)["evaluation"]["best_return"] == summary["best_return"]
    assert saved_state(run)["end_key"] > 20808
