"""Serial mode: reproducibility, resume and evaluations."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest

from qfleet.api import load_policy, train
from qfleet.cli import main as cli
from qfleet.presets import cartpole, preset
from qfleet.run.directory import RunDir
from qfleet.run.serial import SerialComponents
from rl.envs.config import EnvConfig
from rl.errors import BadInput
from rl.evaluation import EvaluationConfig
from rl.parameters import weights_of
from rl.ports import Publication
from tests.conftest import ROOT
from tests.qfleet.configs import short


def losses_of(config, updates):
    """The losses of the first ``updates`` updates of a serial run."""
    parts, found = SerialComponents(config), []
    update = parts.learner.updater.update

    def spy(batch):
        result = update(batch)
        found.append(float(result[1]["loss"]))
        return result

    parts.learner.updater.update = spy
    parts.learner.publisher.publish()
    while len(found) < updates:
        if parts.replay.may_insert():
            parts.actors[0].step()
        parts.learner.step(0.0)
    return found


def test_the_same_seed_gives_identical_losses_and_another_seed_others():
    first, second, other = losses_of(short(), 60), losses_of(short(), 60), losses_of(short(seed=2), 60)
    assert first == second
    assert first != other
    assert len(set(first)) > 50


def test_serial_atari_is_reproducible():
    config = preset("pong")
    config = replace(
        config,
        actors=replace(config.actors, environments=2, segment_items=10),
        replay=replace(config.replay, capacity=2000, limiter=replace(config.replay.limiter, min_size=100)),
        learner=replace(config.learner, batch_size=8, device="cpu"),
    )
    assert losses_of(config, 5) == losses_of(config, 5)


def test_a_serial_run_saves_loads_and_continues(tmp_path):
    summary = train(short(), run_dir=tmp_path / "run", serial=True)
    assert 1500 <= summary["agent_steps"] < 1600
    assert summary["updates"] > 200
    assert not summary["solved"]
    on_disk = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert {k: v for k, v in summary.items() if k != "interrupted_by"} == on_disk
    more = train(short(max_steps=2500), resume=tmp_path / "run", serial=True)
    assert more["agent_steps"] >= 2500
    assert more["updates"] > summary["updates"]
    assert more["wall_seconds"] >= summary["wall_seconds"]
    with (tmp_path / "run" / "metrics.csv").open() as file:
        steps = [int(row["agent_steps"]) for row in csv.DictReader(file)]
    assert steps == sorted(steps)
    with (tmp_path / "run" / "eval.csv").open() as file:
        assert len(list(csv.DictReader(file))) >= 2
    for name in ("config.yaml", "tensorboard", "checkpoints", "best"):
        assert (tmp_path / "run" / name).exists()
    for which in ("best", "last"):
        policy = load_policy(tmp_path / "run", which)
        assert policy.which == which
        assert policy.act(np.zeros((3, 4))).shape == (3,)


def test_the_last_policy_is_the_average_that_acted(tmp_path):
    config = short(max_steps=400)
    train(replace(config, learner=replace(config.learner, average_tau=0.01)), run_dir=tmp_path / "run", serial=True)
    arrays = RunDir.open(tmp_path / "run").newest_checkpoint().arrays
    for name, x in weights_of(load_policy(tmp_path / "run", "last").network).items():
        np.testing.assert_array_equal(x, arrays["average"][name])
        assert (x != arrays["online"][name]).any()


def test_a_run_directory_is_not_overwritten(tmp_path):
    train(short(max_steps=300), run_dir=tmp_path / "run", serial=True)
    with pytest.raises(BadInput, match="already holds a run"):
        train(short(max_steps=300), run_dir=tmp_path / "run", serial=True)


def test_every_actor_receives_every_publication():
    config = short(actors=replace(cartpole().actors, count=3, environments=2))
    parts = SerialComponents(config)
    learned = {k: v + 1 for k, v in weights_of(parts.learner.updater.online).items()}
    parts.learner.publisher.publish()
    parts.weights.publish(Publication(2, 20, learned, 1, learned))
    for actor in parts.actors:
        actor.step()
    assert [actor.version for actor in parts.actors] == [2, 2, 2]
    for actor in parts.actors:
        for network in (actor.online, actor.target):
            for name, x in weights_of(network).items():
                np.testing.assert_array_equal(x, learned[name])


def test_a_solved_run_resumed_with_a_higher_goal_trains_on(tmp_path):
    config = short(max_steps=2000)
    easy = replace(config.evaluation, goal=5.0, margin=0.0)
    first = train(replace(config, evaluation=easy), run_dir=tmp_path / "run", serial=True)
    assert first["solved"]
    assert first["agent_steps"] < 2000
    harder = replace(easy, goal=1e6)
    second = train(replace(config, evaluation=harder), resume=tmp_path / "run", serial=True)
    assert not second["solved"]
    assert second["agent_steps"] >= 2000


def test_a_solved_run_that_continues_is_still_evaluated(tmp_path):
    config = short(max_steps=3000)
    on = replace(config.evaluation, goal=5.0, margin=0.0, stop_when_solved=False)
    summary = train(replace(config, evaluation=on), run_dir=tmp_path / "run", serial=True)
    assert summary["solved"]
    with (tmp_path / "run" / "eval.csv").open() as file:
        rows = list(csv.DictReader(file))
    solved_at = next(i for i, row in enumerate(rows) if row["kind"] == "confirm")
    assert [row["kind"] for row in rows[solved_at + 1 :]] == ["full"] * (len(rows) - solved_at - 1)
    assert len(rows) - solved_at - 1 >= 3
    assert summary["mean_return"] == pytest.approx(float(rows[-1]["mean_return"]), rel=1e-4)


def test_an_evaluation_cuts_endless_episodes_and_reports_it(tmp_path, capfd):
    """An untrained greedy policy on CliffWalking walks into a wall forever."""
    config = replace(
        preset("generic"),
        env=EnvConfig(id="CliffWalking-v1"),
        evaluation=EvaluationConfig(period=500, quick_episodes=2, environments=2, epsilon=0.0, max_episode_steps=300),
        max_steps=1200,
    )
    train(config, run_dir=tmp_path / "run", serial=True)
    assert "2 of 2 episodes cut at 300 steps" in capfd.readouterr().err
    assert cli.main(["eval", str(tmp_path / "run"), "--episodes", "3", "--epsilon", "0"]) == 0
    assert "3 of 3 episodes cut at 300 steps" in capfd.readouterr().out
    with (tmp_path / "run" / "eval.csv").open() as file:
        assert len(list(csv.DictReader(file))) >= 2


def test_a_rejected_resume_leaves_the_run_unchanged(tmp_path):
    train(short(max_steps=600), run_dir=tmp_path / "run", serial=True)
    before = {f: f.read_bytes() for f in (tmp_path / "run").rglob("*") if f.is_file() and f.name != ".lock"}
    other = short(max_steps=900)
    other = replace(other, learner=replace(other.learner, optimizer="rmsprop"))
    with pytest.raises(BadInput, match=r"learner.optimizer is 'rmsprop', but .* was trained with 'adam'"):
        train(other, resume=tmp_path / "run", serial=True)
    assert {f: f.read_bytes() for f in (tmp_path / "run").rglob("*") if f.is_file() and f.name != ".lock"} == before
    assert train(short(max_steps=900), resume=tmp_path / "run", serial=True)["agent_steps"] >= 900


def test_the_readme_example_from_python_runs(tmp_path):
    """The example of docs/python.md, with fewer steps."""

    text = (ROOT / "docs" / "python.md").read_text()
    code = text.split("```python\n", 1)[1].split("```", 1)[0]
    code = code.replace("300_000", "600").replace('"runs/cartpole-example"', repr(str(tmp_path / "run")))
    names: dict = {}
    exec(code, names)
    assert names["summary"]["agent_steps"] >= 600
    assert names["actions"].shape == (1,)
