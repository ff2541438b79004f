"""A run of format 0 (from before format numbers) is resumed on Ray and restores its replay from its snapshot."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.conftest import ROOT
from tests.integration.runs import newest_checkpoint_state, snapshot_state, start_qfleet, wait_for_output

FIXTURE = ROOT / "tests" / "fixtures" / "format-0" / "run"


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_run_of_format_0_resumes_with_its_replay(tmp_path):
    run = shutil.copytree(FIXTURE, tmp_path / "run")
    flags = ["--max-steps", 21500, "--evaluation.period", 0, "--json"]
    process = start_qfleet("train", "--resume", run, *flags)
    output = wait_for_output(process, 150)
    assert process.returncode == 0, output
    assert "restored 241 transitions from a snapshot" in output
    summary = json.loads(output.splitlines()[-1])
    assert summary["agent_steps"] >= 21500
    assert summary["updates"] > 1305
    assert summary["best_return"] == pytest.approx(-63.333333333333336)
    assert newest_checkpoint_state(run)["evaluation"]["best_return"] == summary["best_return"]
    assert snapshot_state(run)["end_key"] > 20808
