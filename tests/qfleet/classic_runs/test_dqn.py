"""DQN on FlappyBird: the twelve features, the preset in serial mode, and the count of pipes."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from classic.scores import pipes
from qfleet.api import load_policy, train
from qfleet.config import TrainConfig, check_config
from qfleet.presets import preset
from rl.envs.config import EnvConfig
from rl.envs.make import make_environments, make_rendered, spec_and_actions
from rl.evaluation import evaluate

FLAPPY = preset("flappybird")


def hover(observations):
    """A good policy: flap if the bird (at x = 57, 24 pixels high) is less than 15 pixels above the next gap's lower edge."""
    o = observations
    behind = o[:, 0] * 288 + 52 < 57
    lower_edge = np.where(behind, o[:, 5], o[:, 2]) * 512
    return (o[:, 9] * 512 + 24 > lower_edge - 15).astype(np.int64)


def never_flap(observations):
    return np.zeros(len(observations), np.int64)


def limited(steps, **kwargs) -> EnvConfig:
    return replace(FLAPPY.env, max_episode_steps=steps, kwargs=json.dumps({"use_lidar": False, **kwargs}))


def short() -> TrainConfig:
    """The preset with a few hundred steps."""
    return replace(
        FLAPPY,
        actors=replace(FLAPPY.actors, environments=4),
        replay=replace(FLAPPY.replay, limiter=replace(FLAPPY.replay.limiter, min_size=200)),
        learner=replace(FLAPPY.learner, device="cpu"),
        evaluation=replace(FLAPPY.evaluation, period=300, quick_episodes=4, environments=2),
        max_steps=600,
    )


def test_twelve_features_and_two_actions():
    check_config(FLAPPY)
    spec, actions = spec_and_actions(FLAPPY.env)
    assert (spec.shape, spec.dtype, actions) == ((12,), "float32", 2)


def test_pipes_are_counted_by_the_game():
    assert pipes(never_flap, FLAPPY.env, 3, seed=1) == [0, 0, 0]
    assert pipes(hover, limited(60), 3, seed=1) == [0, 0, 0]  # the first pipe is passed at step 61
    assert pipes(hover, limited(61), 3, seed=1) == [1, 1, 1]
    assert pipes(hover, limited(2_000, score_limit=3), 2, seed=1) == [3, 3]  # the game itself ends there
    assert pipes(hover, FLAPPY.env, 2, seed=1) == pipes(hover, FLAPPY.env, 2, seed=1)


def test_the_return_bounds_the_pipes():
    """A return is at most 6 + 5.1 per pipe, so the goal of the preset implies a mean of at least 20 pipes."""
    for steps in (40, 133, 900):
        played = evaluate(hover, make_environments(limited(steps), 1), 6, 0.0, seed=1)
        for episode, count in zip(played.episodes, pipes(hover, limited(steps), 6, seed=1), strict=True):
            assert episode.episode_return <= 6 + 5.1 * count + 1e-3
            exactly = 0.1 * (episode.length - count) + count  # for a policy that never touches the top
            assert episode.episode_return == pytest.approx(exactly if episode.truncated else exactly - 1.1, abs=1e-3)
    assert FLAPPY.evaluation.goal >= 6 + 5.1 * 20
    assert FLAPPY.evaluation.episodes >= 20


def test_serial_training_is_reproducible(tmp_path):
    """Two whole runs of one seed end with the same metrics and the same weights."""
    summaries, weights = [], []
    for name in ("one", "two"):
        summaries.append(train(short(), run_dir=tmp_path / name, serial=True))
        state = load_policy(tmp_path / name, "last").network.state_dict()
        weights.append(np.concatenate([x.numpy().ravel() for x in state.values()]))
    one, two = summaries
    assert one["updates"] > 10
    assert one["mean_return"] is not None
    metrics = ("agent_steps", "updates", "episodes", "mean_return", "best_return")
    assert [one[k] for k in metrics] == [two[k] for k in metrics]
    np.testing.assert_array_equal(weights[0], weights[1])
    assert len(pipes(load_policy(tmp_path / "one").act, FLAPPY.env, 2, seed=1)) == 2


def test_it_renders_without_a_display(monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)
    env = make_rendered(FLAPPY.env)
    env.reset(seed=1)
    assert env.render().shape == (512, 288, 3)
    env.close()
