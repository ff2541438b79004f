"""Evaluations: whose episodes count, what is cut, and that a seed gives the same result twice."""

from __future__ import annotations

import numpy as np
import pytest

from rl.envs.config import EnvConfig
from rl.envs.make import make_environments
from rl.evaluation import evaluate
from tests.rl.envs import countdown  # noqa: F401, registers it


def noop(observation):
    return np.zeros(len(observation), np.int64)


@pytest.fixture
def envs():
    envs = make_environments(EnvConfig(id="qfleet-test/Countdown-v0"), 2)
    yield envs
    envs.close()


def test_an_evaluation_counts_each_environments_share_and_repeats(envs):
    results = [evaluate(noop, envs, 5, 0.5, seed=3) for _ in range(2)]
    assert [e.episode_return for e in results[0].episodes] == [1 + 2 + 3] * 5
    assert [e.length for e in results[0].episodes] == [3] * 5
    assert results[0].episodes == results[1].episodes


def test_episodes_that_the_limit_ends_are_counted_as_cut(envs):
    result = evaluate(noop, envs, 3, 0.0, seed=3, max_steps=2)
    assert [e.episode_return for e in result.episodes] == [1 + 2] * 3
    assert result.cut == 3
    assert all(e.truncated for e in result.episodes)
    assert evaluate(noop, envs, 3, 0.0, seed=3, max_steps=3).cut == 0


def test_an_evaluation_that_is_stopped_returns_what_is_finished(envs):
    asked = iter([False] * 4 + [True])
    assert len(evaluate(noop, envs, 6, 0.0, seed=3, should_stop=lambda: next(asked)).episodes) == 2
    assert evaluate(noop, envs, 6, 0.0, seed=3, should_stop=lambda: True).episodes == ()
