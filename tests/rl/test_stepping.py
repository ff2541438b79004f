"""The stepping loop: what it yields, when it restarts environments, and with which seeds."""

from __future__ import annotations

import itertools
import pickle

import numpy as np
import pytest

from rl.envs.config import EnvConfig
from rl.envs.make import make_environments
from rl.errors import EnvironmentFault, describe_error
from rl.stepping import SeedSequence, rollout
from rl.types import EpisodeResult
from tests.rl.envs import countdown  # noqa: F401, registers it
from tests.rl.envs.faulty import FAULTY, RAISED_AT, world


def counted(start=10):
    """Seeds start, start + 1, ..."""
    numbers = itertools.count(start)
    return lambda count: np.array([next(numbers) for _ in range(count)])


def noop(observation):
    return np.zeros(len(observation), np.int64)


@pytest.mark.parametrize("env_id", ["qfleet-test/Countdown-v0", "qfleet-test/Truncated-v0"])
def test_two_episodes_step_by_step(env_id):
    """Observation [seed, t], reward t, end at t = 3. Successors are the true ones; each episode has the next seed."""
    envs = make_environments(EnvConfig(id=env_id), 1)
    rows = [
        (*s.observation[0], *s.step.observation[0], s.is_first[0], s.ended[0], s.episode_return[0], s.length[0])
        for s in itertools.islice(rollout(envs, noop, counted()), 4)
    ]
    envs.close()
    assert rows == [
        (10, 0, 10, 1, True, False, 1, 1),
        (10, 1, 10, 2, False, False, 1 + 2, 2),
        (10, 2, 10, 3, False, True, 1 + 2 + 3, 3),
        (11, 0, 11, 1, True, False, 1, 1),
    ]


def test_yielded_arrays_are_not_written_to_again():
    """Two environments whose episodes end at different times."""
    envs = make_environments(EnvConfig(id="CartPole-v1"), 2)
    rng = np.random.default_rng(1)
    steps = list(itertools.islice(rollout(envs, lambda s: rng.integers(0, 2, len(s)), SeedSequence(1, 0).draw), 60))
    envs.close()
    assert any(s.ended.sum() == 1 for s in steps)
    for before, after in itertools.pairwise(steps):
        same = ~before.ended
        np.testing.assert_array_equal(before.step.observation[same], after.observation[same])
        assert (before.step.observation[~same] != after.observation[~same]).any(axis=1).all()
        np.testing.assert_array_equal(after.is_first, before.ended)
        np.testing.assert_array_equal(after.length, np.where(before.ended, 0, before.length) + 1)
        np.testing.assert_array_equal(after.episode_return, after.length)  # CartPole pays 1 a step


def test_an_episode_is_cut_at_max_steps_and_counts_as_truncated():
    envs = make_environments(EnvConfig(id="qfleet-test/Countdown-v0"), 2)
    first, second, third = itertools.islice(rollout(envs, noop, counted(), max_steps=2), 3)
    envs.close()
    assert list(first.finished_episodes(0.5)) == []
    assert second.ended.tolist() == [True, True]
    assert not second.step.done.any()
    epsilons = np.array([0.25, 0.5])
    assert list(second.finished_episodes(epsilons)) == [
        (0, EpisodeResult(1 + 2, 2, 0.25, truncated=True)),
        (1, EpisodeResult(1 + 2, 2, 0.5, truncated=True)),
    ]
    assert third.observation.tolist() == [[12, 0], [13, 0]]


def test_terminated_episodes_are_not_reported_as_truncated():
    for env_id, truncated in (("qfleet-test/Countdown-v0", False), ("qfleet-test/Truncated-v0", True)):
        envs = make_environments(EnvConfig(id=env_id), 1)
        *_, last = itertools.islice(rollout(envs, noop, counted()), 3)
        envs.close()
        assert list(last.finished_episodes(0.0)) == [(0, EpisodeResult(1 + 2 + 3, 3, 0.0, truncated))]


def test_no_environment_is_restarted_after_the_last_step():
    drawn = []

    def seeds(count):
        drawn.append(count)
        return np.arange(count)

    envs = make_environments(EnvConfig(id="qfleet-test/Countdown-v0"), 2)
    steps = rollout(envs, noop, seeds)
    for _ in range(3):
        next(steps)
    assert drawn == [2]
    next(steps)
    assert drawn == [2, 2]
    envs.close()


def test_seeds_depend_on_seed_stream_and_start_alone():
    """Not on how many are drawn at a time."""
    seeds = SeedSequence(1, 2)
    first = [*seeds.draw(3), *seeds.draw(4)]
    assert SeedSequence(1, 2).draw(7).tolist() == first
    for other in ((2, 2), (1, 3), (1, 2, 9)):
        assert SeedSequence(*other).draw(7).tolist() != first


@pytest.mark.parametrize(("call", "number", "steps"), [("reset", 1, 0), ("step", 2, 1), ("reset", 2, 3)])
def test_an_error_of_the_environment_says_in_which_call_it_was_raised(call, number, steps):
    """Episodes of 3 steps: the second reset follows the third step."""
    error = ValueError("bad\n  action")
    world.reset(faults={(call, number): error})
    played, environments = [], make_environments(EnvConfig(id=FAULTY), 1)
    with pytest.raises(EnvironmentFault) as fault:
        for step in rollout(environments, noop, counted()):
            played.append(step)
    environments.close()
    assert len(played) == steps
    assert fault.value.call == call
    assert fault.value.__cause__ is error
    text = f"the environment raised ValueError: bad action (faulty.py:{RAISED_AT}) in {call}"
    assert str(fault.value) == str(pickle.loads(pickle.dumps(fault.value))) == text


def test_errors_of_the_policy_and_of_the_seeds_are_raised_as_they_are():
    def broken(_):
        raise ValueError("mine")

    world.reset()
    environments = make_environments(EnvConfig(id=FAULTY), 1)
    for act, seeds in ((broken, counted()), (noop, broken)):
        with pytest.raises(ValueError, match="mine"):
            next(rollout(environments, act, seeds))
    environments.close()


def test_an_error_is_described_in_one_line_of_limited_length():
    assert describe_error(KeyError()) == "KeyError"
    assert describe_error(OSError("a" * 400)) == f"OSError: {'a' * 300} ..."
