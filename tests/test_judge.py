"""When to evaluate, what is best, what is solved."""

from __future__ import annotations

from dataclasses import replace

import pytest

from launch.judge import Judge
from launch.presets import cartpole
from launch.tally import Tally
from rl.evaluation import EvaluationConfig, EvaluationResult
from rl.types import EpisodeResult

CONFIG = EvaluationConfig(goal=19.0, margin=1.0, period=1000)


def result(mean, episodes=30):
    return EvaluationResult(tuple(EpisodeResult(mean, 10, 0.01, False) for _ in range(episodes)))


def test_solved_takes_a_full_and_a_confirming_evaluation():
    judge = Judge(CONFIG)
    assert judge.take("quick", result(10.0)) == (None, True)
    assert judge.take("quick", result(19.5)) == ("full", True)
    assert judge.take("full", result(18.0)) == (None, False)
    assert judge.take("full", result(19.2)) == ("confirm", False)
    assert not judge.solved
    assert judge.take("confirm", result(18.9)) == (None, False)
    assert not judge.solved
    assert judge.take("full", result(19.1))[0] == "confirm"
    assert judge.take("confirm", result(19.05)) == (None, True)  # kept as the best, though a lucky few scored more
    assert judge.solved
    assert judge.solved_return == pytest.approx(19.05)
    assert judge.best_return == judge.solved_return


def test_evaluations_come_by_period_and_when_the_greedy_end_is_near_the_goal():
    config = replace(cartpole(), evaluation=CONFIG)
    tally, judge = Tally(config), Judge(CONFIG)
    assert judge.due(tally) is None
    tally.actor(0, 1000, [EpisodeResult(5.0, 10, 0.01, False)] * 12)
    assert judge.due(tally) == "quick"
    assert judge.due(tally) is None
    tally.actor(0, 1100, [EpisodeResult(30.0, 10, 0.5, False)] * 40)  # exploring ones do not count
    assert judge.due(tally) is None
    tally.actor(0, 1200, [EpisodeResult(18.2, 10, 0.01, False)] * 20)
    assert judge.due(tally) == "full"
    assert judge.due(tally) is None  # not again before new episodes


def test_a_restarted_actor_counts_on():
    tally = Tally(cartpole(), {"agent_steps": 100, "updates": 7})
    tally.actor(0, 50, [])
    tally.actor(0, 80, [])
    tally.actor(0, 10, [])  # restarted
    assert tally.agent_steps == 100 + 80 + 10
    assert tally.updates == 7
