"""Streams of steps: next observations, terminations and truncations."""

from __future__ import annotations

import itertools

import gymnasium as gym
import pytest

from classic.steps import Step, episode_result, next_episode, play_steps
from rl.types import EpisodeResult


class Line(gym.Env):
    """States 0, 1, 2; an episode ends in 2 with ``ends`` = (terminated, truncated). Actions are numbered from 5."""

    observation_space, action_space = gym.spaces.Discrete(100), gym.spaces.Discrete(2, start=5)

    def __init__(self, *ends):
        self._ends, self._at, self.seeds = ends, 0, []

    def reset(self, *, seed=None, options=None):
        self.seeds.append(seed)
        self._at = 0
        return 0, {}

    def step(self, action):
        assert self.action_space.contains(action)
        self._at += 1
        over = self._at == 2
        return self._at, 10 * (action - 5) + self._at, over and self._ends[0], over and self._ends[1], {}


@pytest.mark.parametrize("ends", [(True, False), (False, True), (True, True)])
def test_the_last_step_has_the_last_observation_of_its_episode(ends):
    stream = play_steps(Line(*ends), lambda s: s % 2, seed=3)
    first, second, third = itertools.islice(stream, 3)
    assert first == Step(0, 0, 1.0, 1, False, False)
    assert second == Step(
        1, 1, 10.0 + 2, 2, ends[0], ends == (False, True)
    )  # terminated takes precedence over truncated
    assert third == first  # of the next episode


def test_next_episode_yields_one_episode_after_the_other():
    env = Line(False, True)
    stream = play_steps(env, lambda s: 0, seed=3)
    for _ in range(3):
        played = list(next_episode(stream))
        assert [step.s for step in played] == [0, 1]
        assert episode_result(played, 0.2) == EpisodeResult(1.0 + 2.0, 2, 0.2, True)
    assert env.seeds == [3, None, None]  # seeded once
