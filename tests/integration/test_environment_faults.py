"""A run on Ray whose environment raises errors: it goes on, and ends only when no episode is finished any more."""

from __future__ import annotations

import pytest

from tests.integration.runs import FAST, start_qfleet, wait_for_output
from tests.rl.envs.faulty import RAISED_AT

TIRING = "tests.rl.envs.faulty:Tiring-v0"  # fails now and then, and after 900 steps for good


@pytest.mark.timeout(180)
def test_a_run_on_ray_warns_of_a_failed_environment_and_ends_when_no_episode_is_finished(tmp_path):
    flags = ["--actors.count", 1, "--actors.environments", 2, "--replay.limiter.min-size", 1_000]
    process = start_qfleet("train", "--env.id", TIRING, *flags, *FAST, "--run-dir", tmp_path / "run")
    lines = wait_for_output(process, 150).splitlines()
    assert process.returncode == 1, lines
    what = f"RuntimeError: tired (faulty.py:{RAISED_AT})"
    warnings = [i for i, line in enumerate(lines) if line.startswith("warning: actor-0: ")]
    assert lines[warnings[0]] == f"warning: actor-0: its environment raised {what} in step and was made anew"
    fault = f"the environment {TIRING} has failed 5 times without finishing an episode, last in step: {what}"
    assert lines[-1] == f"qfleet: actor-0: {fault}"
    assert not [line for line in lines if "Traceback" in line]
