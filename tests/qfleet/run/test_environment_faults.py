"""Runs in serial mode on an environment that raises errors, and what the commands say about it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qfleet.api import train
from qfleet.cli import main as cli
from qfleet.presets import preset
from qfleet.run.directory import RunDir
from qfleet.run.run import Run
from rl.envs.config import EnvConfig
from rl.envs.make import spec_and_actions
from rl.errors import RunFault
from tests.rl.envs.faulty import FAULTY, RAISED_AT, world

BAD = ValueError("bad action")
WHAT = f"ValueError: bad action (faulty.py:{RAISED_AT})"


@pytest.fixture(autouse=True)
def _known_spec():
    """The spec of the environment is known and cached, so that no later call makes an environment for it."""
    spec_and_actions(EnvConfig(id=FAULTY))


def short(max_steps=300, environments=2, period=0):
    config = preset("generic")
    return replace(
        config,
        env=EnvConfig(id=FAULTY),
        actors=replace(config.actors, environments=environments, count=1),
        replay=replace(config.replay, limiter=replace(config.replay.limiter, min_size=100)),
        learner=replace(config.learner, device="cpu"),
        evaluation=replace(config.evaluation, period=period, quick_episodes=2),
        max_steps=max_steps,
    )


def test_a_run_goes_on_after_errors_of_its_environment_and_warns_once(tmp_path, capfd):
    """Six errors, all before the first update: one line tells of the first."""
    world.reset(faults={("step", k): BAD for k in range(10, 70, 10)})
    summary = train(short(), run_dir=tmp_path / "run", serial=True)
    assert summary["agent_steps"] == 300
    assert summary["updates"] > 10
    assert summary["episodes"] >= 300 // 3 - 2 * 6 - 2  # two unfinished ones for each error
    assert world.calls["make"] == 2 + 2 * 6 + 1  # one by the check of the settings
    output = capfd.readouterr().err
    warnings = [line for line in output.splitlines() if "warning" in line]
    assert warnings == [f"warning: actor-0: its environment raised {WHAT} in step and was made anew"]
    assert "Traceback" not in output


def test_warnings_about_any_actor_are_ten_seconds_apart(tmp_path, capfd, monkeypatch):
    config = short()
    run = Run(config, RunDir.create(tmp_path / "run", config), None)
    now = 0.0
    monkeypatch.setattr("qfleet.run.run.time.monotonic", lambda: now)
    for moment, name in ((1000.0, "actor-0"), (1009.0, "actor-1"), (1010.5, "actor-2"), (1011.0, "actor-3")):
        now = moment
        run.warn_of_actor(name, "news")
    monkeypatch.undo()
    run.close()
    assert [x for x in capfd.readouterr().err.splitlines() if "news" in x] == [
        "warning: actor-0: news",
        "warning: actor-2: news",
    ]


def test_an_environment_that_always_fails_ends_the_run_with_one_line(tmp_path, capfd):
    world.reset(faults={("step", "all"): BAD})
    flags = ["--env.id", FAULTY, "--serial", "--run-dir", str(tmp_path / "run"), "--learner.device", "cpu"]
    assert cli.main(["train", *flags]) == 1
    line = f"the environment {FAULTY} has failed 5 times without finishing an episode, last in step: {WHAT}"
    output = capfd.readouterr().err
    assert f"qfleet: {line}" in output.splitlines()
    assert "Traceback" not in output


def test_python_code_sees_the_error_of_the_environment_as_the_cause(tmp_path):
    world.reset(faults={("reset", "all"): BAD})
    with pytest.raises(RunFault, match="has failed 5 times") as fault:
        train(short(), run_dir=tmp_path / "run", serial=True)
    assert fault.value.__cause__.__cause__ is BAD


def test_an_evaluation_that_fails_is_lost_and_five_in_a_row_end_the_run(tmp_path, capfd):
    """The fourth environment and those after it are of evaluations: the check makes one, the actor two."""
    why = f"the environment {FAULTY} raised {WHAT} in an evaluation"
    world.reset(faults={("make", number): BAD for number in (4, 5, 6, 7)})
    result = train(short(period=100, max_steps=1_000), run_dir=tmp_path / "run", serial=True)
    assert result["mean_return"] is not None  # of the fifth
    assert capfd.readouterr().err.count(f"warning: lost an evaluation: {why}\n") == 4
    world.reset(faults={("make", number): BAD for number in range(4, 9)})
    with pytest.raises(RunFault) as fault:
        train(short(period=100, max_steps=1_000), run_dir=tmp_path / "again", serial=True)
    assert str(fault.value) == f"5 evaluations in a row have failed: {why}"


def test_commands_that_play_say_what_the_environment_raised(tmp_path, capfd):
    world.reset()
    train(short(max_steps=100), run_dir=tmp_path / "run", serial=True)
    capfd.readouterr()
    line = f"qfleet: the environment raised {WHAT} in step\n"
    world.reset(faults={("step", 3): BAD})
    assert cli.main(["eval", str(tmp_path / "run"), "--weights", "last"]) == 1
    assert capfd.readouterr().err == line
    world.reset(faults={("step", 3): BAD})
    words = ["--env", FAULTY, "--no-video", "--run-dir", str(tmp_path / "classic")]
    assert cli.main(["classic", "online-q", *words]) == 1
    assert capfd.readouterr().err.splitlines()[-1] == line.strip()
