"""The presets: complete configurations by name."""

from __future__ import annotations

from dataclasses import replace

from actors.actor import ActorConfig
from learner.learner import LearnerConfig
from qfleet.config import TrainConfig
from replay.config import ReplayConfig
from replay.importance_weights import BetaConfig
from replay.rate_limiter import LimiterConfig
from replay.store.selectors import SelectorConfig
from rl.envs.config import EnvConfig
from rl.errors import BadInput, suggestion
from rl.evaluation import EvaluationConfig
from rl.exploration import ExplorationConfig
from rl.networks import NetworkConfig
from rl.returns import ReturnConfig


def pong() -> TrainConfig:
    """Settings that reach a mean return of 19 in Pong on a small machine, with the network of Mnih et al. 2013.

    Plain DQN targets and narrow dueling streams make updates cheap. Centering the pixels keeps the background from
    hiding the ball. Actors use an average of the weights, so that the learning rate can stay high to the end
    (docs/results).
    """
    return TrainConfig(
        env=EnvConfig(id="PongNoFrameskip-v4"),
        network=NetworkConfig(kind="small", hidden=(128,), dueling=True, layer_norm=True, center=True),
        returns=ReturnConfig(n_step=5, clip_reward=1.0),
        exploration=ExplorationConfig(kind="ladder", ladder_alpha=5.0),
        actors=ActorConfig(count=1, environments=16, precision="auto"),
        replay=ReplayConfig(
            capacity=200_000,
            selector=SelectorConfig(alpha=0.3),
            limiter=LimiterConfig(samples_per_insert=8.0, min_size=5_000, slack=8_000),
        ),
        learner=LearnerConfig(
            batch_size=64,
            threads=1,
            double=False,
            learning_rate=5e-4,
            learning_rate_end=3e-4,
            learning_rate_updates=60_000,
            target_update_period=100,
            average_tau=0.002,
            precision="auto",
        ),
        beta=BetaConfig(0.4, 0.4),
        evaluation=EvaluationConfig(goal=19.0, margin=3.0, period=50_000, quick_episodes=10),
        max_steps=2_000_000,
    )


def breakout() -> TrainConfig:
    """Settings for Breakout, with the network of Mnih et al. 2015. No score is guaranteed."""
    return TrainConfig(
        env=EnvConfig(id="BreakoutNoFrameskip-v4"),
        network=NetworkConfig(kind="nature", hidden=(512,), dueling=True),
        returns=ReturnConfig(n_step=3, clip_reward=1.0, life_loss_terminates=True),
        exploration=ExplorationConfig(kind="ladder"),
        actors=ActorConfig(count=1, environments=16, precision="auto"),
        replay=ReplayConfig(
            capacity=500_000, limiter=LimiterConfig(samples_per_insert=8.0, min_size=20_000, slack=8_000)
        ),
        learner=LearnerConfig(
            batch_size=32,
            learning_rate=1e-4,
            target_update_period=2_500,
            precision="auto",
        ),
        evaluation=EvaluationConfig(goal=400.0, margin=20.0, period=500_000, quick_episodes=10),
        max_steps=10_000_000,
    )


def atari() -> TrainConfig:
    """Settings for any Atari game, chosen by `env.id` when no preset is given: those of `breakout` without a goal."""
    base = breakout()
    return replace(base, evaluation=replace(base.evaluation, goal=float("inf"), margin=0.0))


def cartpole() -> TrainConfig:
    """Settings that reach a mean return of 475 (of 500) in CartPole-v1 in about a minute."""
    return TrainConfig(
        env=EnvConfig(id="CartPole-v1"),
        network=NetworkConfig(kind="mlp", hidden=(256, 256), dueling=False),
        returns=ReturnConfig(n_step=3),
        exploration=ExplorationConfig(kind="linear", start=1.0, end=0.02, steps=10_000, greedy_below=0.05),
        actors=ActorConfig(count=1, environments=8, segment_items=20),
        replay=ReplayConfig(
            capacity=50_000, limiter=LimiterConfig(samples_per_insert=16.0, min_size=1_000, slack=4_000)
        ),
        learner=LearnerConfig(
            batch_size=64,
            threads=1,
            learning_rate=2.3e-3,
            target_update_period=50,
        ),
        evaluation=EvaluationConfig(goal=475.0, margin=50.0, period=10_000, quick_episodes=10),
        max_steps=300_000,
    )


def flappybird() -> TrainConfig:
    """Settings that reach 40 pipes or more in FlappyBird-v0, observed as 12 features, in a few minutes.

    The goal is a return of 6 + 5.1 * 40 (classic/scores.py). Epsilon starts small, because a random action flaps half
    the time, while one flap in 19 steps keeps the bird at its height.
    """
    return TrainConfig(
        env=EnvConfig(id="FlappyBird-v0", kwargs='{"use_lidar": false}', max_episode_steps=3_000),
        network=NetworkConfig(kind="mlp", hidden=(256, 256), dueling=False, layer_norm=True),
        returns=ReturnConfig(n_step=5, gamma=0.98),
        exploration=ExplorationConfig(kind="linear", start=0.1, end=0.0, steps=60_000, greedy_below=0.01),
        actors=ActorConfig(count=1, environments=16, segment_items=40),
        replay=ReplayConfig(
            capacity=100_000, limiter=LimiterConfig(samples_per_insert=16.0, min_size=2_000, slack=6_000)
        ),
        learner=LearnerConfig(
            batch_size=128,
            threads=1,
            learning_rate=1e-3,
            learning_rate_end=2e-4,
            learning_rate_updates=20_000,
            target_update_period=200,
        ),
        evaluation=EvaluationConfig(
            episodes=20, epsilon=0.0, environments=20, goal=210.0, margin=50.0, period=10_000, quick_episodes=10
        ),
        max_steps=500_000,
    )


def generic() -> TrainConfig:
    """Settings for any other environment, chosen by `env.id` when no preset is given: a small network, no goal."""
    return TrainConfig(
        env=EnvConfig(id="CartPole-v1"),
        network=NetworkConfig(kind="mlp", hidden=(256, 256), dueling=True),
        returns=ReturnConfig(n_step=3),
        exploration=ExplorationConfig(kind="linear", start=1.0, end=0.02, steps=50_000),
        actors=ActorConfig(count=1, environments=8),
        replay=ReplayConfig(
            capacity=100_000, limiter=LimiterConfig(samples_per_insert=8.0, min_size=2_000, slack=4_000)
        ),
        learner=LearnerConfig(
            batch_size=64,
            threads=1,
            learning_rate=5e-4,
        ),
        evaluation=EvaluationConfig(goal=float("inf"), period=50_000),
        max_steps=500_000,
    )


PRESETS = {
    "pong": pong,
    "cartpole": cartpole,
    "flappybird": flappybird,
    "breakout": breakout,
    "atari": atari,
    "generic": generic,
}


def preset(name: str) -> TrainConfig:
    """The configuration of the preset ``name``. Raises BadInput, with the nearest name, if there is none."""
    if name not in PRESETS:
        raise BadInput(f"unknown preset {name!r}: {suggestion(name, PRESETS)}")
    return PRESETS[name]()
