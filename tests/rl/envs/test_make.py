"""Environments: frames and rewards equal those of Gymnasium's wrappers, and a reset never becomes a step."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

from rl.envs.atari import atari_game
from rl.envs.config import EnvConfig
from rl.envs.make import check_env, make_environments, make_rendered, spec_and_actions
from rl.errors import BadInput
from rl.types import ObservationSpec
from tests.rl.envs import countdown  # noqa: F401, registers it


@pytest.mark.parametrize("env_id", ["qfleet-test/Countdown-v0", "qfleet-test/Truncated-v0"])
def test_the_last_observation_is_the_true_one_and_a_restart_is_not_a_step(env_id):
    envs = make_environments(EnvConfig(id=env_id), 2)
    observation = envs.reset(np.array([10, 20]))
    assert observation.tolist() == [[10, 0], [20, 0]]
    for t in (1, 2, 3):
        step = envs.step(np.array([0, 2]))
        assert step.observation.tolist() == [[10, t], [20, t]]
        assert step.reward.tolist() == [t, t]
    truncates = "Truncated" in env_id
    assert step.terminated.tolist() == [not truncates] * 2
    assert step.truncated.tolist() == [truncates] * 2
    observation = envs.restart(np.array([True, True]), np.array([30, 40]))
    assert observation.tolist() == [[30, 0], [40, 0]]
    envs.close()


def play_wrapped(env_id, sticky, seed, actions):
    env = gym.make(env_id, frameskip=1, repeat_action_probability=sticky)
    env = gym.wrappers.AtariPreprocessing(env, noop_max=0)
    env = gym.wrappers.FrameStackObservation(env, 4, padding_type="zero")
    observation, _ = env.reset(seed=seed)
    frames, rewards = [observation], []
    for action in actions:
        observation, reward, terminated, truncated, _ = env.step(int(action))
        frames.append(observation)
        rewards.append(reward)
        if terminated or truncated:
            break
    env.close()
    return np.stack(frames), rewards


@pytest.mark.parametrize("env_id", ["PongNoFrameskip-v4", "BreakoutNoFrameskip-v4"])
def test_atari_equals_gymnasiums_wrappers(env_id, rng):
    config = EnvConfig(id=env_id, noop_max=0)
    envs = make_environments(config, 1)
    actions = rng.integers(0, envs.actions, 400)
    expected, rewards = play_wrapped(env_id, 0.0, 5, actions)
    got = [envs.reset(np.array([5]))[0]]
    got_rewards = []
    for action in actions[: len(rewards)]:
        step = envs.step(np.array([action]))
        got.append(step.observation[0])
        got_rewards.append(float(step.reward[0]))
    difference = np.abs(np.stack(got).astype(int) - expected.astype(int))
    assert difference.max() <= 1  # rounding of the two resizers
    assert (difference > 0).mean() < 0.02
    assert got_rewards == rewards
    envs.close()


def test_a_lost_life_is_reported_and_does_not_end_the_game(rng):
    envs = make_environments(EnvConfig(id="BreakoutNoFrameskip-v4"), 1)
    envs.reset(np.array([1]))
    lost = 0
    for _ in range(2000):
        step = envs.step(rng.integers(0, 4, 1))
        lost += int(step.lost_life[0])
        if step.done[0]:
            break
    assert step.terminated[0]
    assert lost == 5
    envs.close()


def test_atari_restarts_only_the_masked_environments_with_their_seeds(rng):
    envs = make_environments(EnvConfig(), 2)
    first = envs.reset(np.array([3, 4])).copy()
    for _ in range(10):
        step = envs.step(rng.integers(0, envs.actions, 2))
    kept = step.observation[1].copy()
    observation = envs.restart(np.array([True, False]), np.array([3]))
    np.testing.assert_array_equal(observation[0], first[0])
    np.testing.assert_array_equal(observation[1], kept)
    assert not observation[0][:3].any()  # zero-padded stack
    envs.close()


def test_atari_truncates_at_the_frame_limit(rng):
    envs = make_environments(EnvConfig(max_frames=200, noop_max=0), 1)
    envs.reset(np.array([1]))
    for t in range(1, 60):
        step = envs.step(np.array([0]))
        if step.done[0]:
            ended = t
            break
    assert step.truncated[0]
    assert not step.terminated[0]
    assert ended == 200 // 4
    envs.close()


def test_discrete_observations_become_one_hot():
    spec, actions = spec_and_actions(EnvConfig(id="FrozenLake-v1"))
    assert spec == ObservationSpec((16,), "float32")
    assert actions == 4
    envs = make_environments(EnvConfig(id="FrozenLake-v1"), 3)
    assert envs.reset(np.arange(3)).sum(axis=1).tolist() == [1, 1, 1]
    envs.close()


def test_atari_game_maps_an_id_to_the_name_of_the_game():
    assert atari_game("ALE/Pong-v5") == "pong"
    assert atari_game("PongNoFrameskip-v4") == "pong"
    assert atari_game("CartPole-v1") is None


@pytest.mark.parametrize(
    ("env_id", "words"),
    [
        ("CartPole-v11", "CartPole-v1"),
        ("Pendulum-v1", "with Discrete actions"),
        ("Blackjack-v1", "Box or Discrete"),
    ],
)
def test_unsuitable_environments_are_rejected(env_id, words):
    with pytest.raises(BadInput, match=words):
        check_env(EnvConfig(id=env_id))


def test_the_rendered_environment_has_the_observations_that_the_network_takes():
    for config in (EnvConfig(), EnvConfig(id="CartPole-v1")):
        env = make_rendered(config)
        observation, _ = env.reset(seed=1)
        assert np.asarray(observation).shape == spec_and_actions(config)[0].shape
        assert env.render().shape[-1] == 3
        env.close()


@pytest.mark.parametrize("env_id", ["PongNoFrameskip-v4", "CartPole-v1", "qfleet-test/Countdown-v0", "Taxi-v4"])
def test_returned_arrays_are_never_written_to_again(env_id, rng):
    """Vector environments reuse one buffer, so a later step could overwrite an observation returned earlier."""
    envs = make_environments(EnvConfig(id=env_id), 2)
    returned = [envs.reset(np.array([1, 2]))]
    copies = [returned[0].copy()]
    for t in range(60):
        step = envs.step(rng.integers(0, envs.actions, 2))
        arrays = [step.observation, step.reward, step.terminated, step.truncated, step.lost_life]
        if (ended := step.done | (t % 20 == 19)).any():
            arrays.append(envs.restart(ended, rng.integers(0, 100, int(ended.sum()))))
        returned += arrays
        copies += [x.copy() for x in arrays]
    envs.close()
    for array, copy in zip(returned, copies, strict=True):
        np.testing.assert_array_equal(array, copy)
