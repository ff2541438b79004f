"""Deep Q-learning without what made DQN work, and with it: no replay and no target network, unless asked for.

    w <- w + alpha (r + gamma max_a' q(s', a'; w) - q(s, a; w)) grad q(s, a; w)

at every step, from that step alone (Sutton & Barto 2018, 11.1, and the deadly triad of 11.3). Two things make it swing:
consecutive steps resemble each other, so that the network forgets what it saw before them; and each update moves its own
target. DQN (Mnih et al. 2015) answers the first by ``replay`` and the second by ``target_period``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from classic.interface import Learned, Method, Monitor, Setting, from_values
from classic.replay_buffer import Batch, ReplayBuffer
from rl import td
from rl.bounds import at_least, between, layers, positive
from rl.envs.config import EnvConfig
from rl.envs.make import make_environments
from rl.errors import RunFault
from rl.networks import NetworkConfig, QNetwork, make_network
from rl.policies import epsilon_greedy
from rl.schedules import linear
from rl.stepping import SeedSequence, rollout
from rl.types import Array

LOSSES = {"huber": td.huber, "squared": td.squared}
REPORT_PERIOD = 1_000  # steps between reports of the loss


@dataclass(frozen=True)
class OnlineQConfig:
    """One step of the environment, one gradient step."""

    steps: int = 40_000
    """Steps of training."""
    gamma: float = 0.95
    """Discount a step."""
    epsilon_end: float = 0.1
    """Probability of a random action that epsilon falls to, on a straight line from 1."""
    epsilon_steps: int = 20_000
    """Steps in which epsilon falls."""
    hidden: tuple[int, ...] = (128, 128)
    """Units of the fully connected layers."""
    learning_rate: float = 5e-4
    """Adam's step size."""
    loss: Literal["huber", "squared"] = "huber"
    """Loss of a TD error; huber is linear beyond 1."""
    replay: int = 0
    """Transitions kept, of which `batch` are drawn for each gradient step; 0: it learns from the present step alone."""
    batch: int = 32
    """Transitions of a gradient step (with `replay` alone)."""
    target_period: int = 0
    """Gradient steps between copies into a network that computes the targets; 0: the network that learns computes them."""

    def __post_init__(self) -> None:
        at_least(self, 1, "steps", "epsilon_steps", "batch")
        at_least(self, 0, "replay", "target_period")
        between(self, 0, 1, "gamma", "epsilon_end")
        layers(self, "hidden")
        positive(self, "learning_rate")


class OnlineLearner:
    """A network, the network that computes its targets (itself, or a copy updated now and then), and their updates."""

    def __init__(self, config: OnlineQConfig, network: QNetwork) -> None:
        self.c, self.network = config, network
        self.target = copy.deepcopy(network) if config.target_period else network
        self._optimizer = torch.optim.Adam(network.parameters(), lr=config.learning_rate)
        self.updates = 0

    def update(self, batch: Batch) -> float:
        """One gradient step on the mean loss of a batch of B transitions; returns that loss.

        Only a termination stops the bootstrap.
        """
        s, a, r, terminated, s_next = (torch.from_numpy(np.asarray(column)) for column in batch)
        discount = self.c.gamma * (1.0 - terminated.float())
        with torch.no_grad():
            q_next = self.target(s_next)
        losses = LOSSES[self.c.loss](td.q_learning_error(self.network(s), a, r, discount, q_next))
        loss = td.weighted_loss(losses, torch.ones_like(losses))
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self.updates += 1
        if self.c.target_period and self.updates % self.c.target_period == 0:
            self.target.load_state_dict(self.network.state_dict())
        return float(loss.detach())

    @torch.no_grad()
    def values(self, s: Array) -> Array:
        """q float32 [N, A] of observations [N, *observation]."""
        return np.asarray(self.network(torch.from_numpy(s)))


def batches(config: OnlineQConfig, steps: Iterator[Batch], seed: int) -> Iterator[Batch]:
    """The batch of each gradient step: the newest step itself, or `batch` of the last ``config.replay`` steps."""
    replay, rng = None, np.random.default_rng([seed, 1])
    for step in steps:
        if config.replay == 0:
            yield step
            continue
        replay = replay or ReplayBuffer(config.replay, step.s.shape[1:], (), step.s.dtype, np.int64)
        replay.append(*(column[0] for column in step))
        yield replay.sample(rng, config.batch)


def play(config: OnlineQConfig, learner: OnlineLearner, env: EnvConfig, seed: int, monitor: Monitor) -> Iterator[Batch]:
    """``config.steps`` epsilon-greedy steps, each as a batch of one; reports every episode to the monitor."""
    environments, rng = make_environments(env, 1), np.random.default_rng([seed, 2])
    epsilon = 1.0  # of the next step
    steps = rollout(environments, lambda s: epsilon_greedy(learner.values(s), epsilon, rng), SeedSequence(seed, 0).draw)
    for t in range(config.steps):
        epsilon = linear(1.0, config.epsilon_end, config.epsilon_steps, t)
        acted = next(steps)
        s, a, step, *_ = acted
        yield Batch(s, a, step.reward, step.terminated, step.observation)
        for _, result in acted.finished_episodes(epsilon):
            monitor.episode(result)
    environments.close()


def online_q(config: OnlineQConfig, env: EnvConfig, seed: int, monitor: Monitor) -> Learned:
    """Semi-gradient Q-learning with a network (Sutton & Barto 2018, 11.1); replay and target network are options.

    Returns q and its greedy policy. Raises RunFault where the loss is no longer finite.
    """
    made = make_environments(env, 1)
    made.close()
    network = make_network(NetworkConfig("mlp", config.hidden, dueling=False), made.spec, made.actions, seed)
    learner = OnlineLearner(config, network)
    losses: list[float] = []
    for batch in batches(config, play(config, learner, env, seed, monitor), seed):
        losses.append(learner.update(batch))
        if not np.isfinite(losses[-1]):
            raise RunFault(f"q diverged after {len(losses):,} steps: write a lower `learning_rate`")
        if len(losses) % REPORT_PERIOD == 0:
            monitor.report(len(losses), {"loss": float(np.mean(losses[-REPORT_PERIOD:]))})
    return from_values(learner.values, {"loss": np.array(losses)}, updates=learner.updates)


METHODS = {
    "online-q": Method(
        "deep Q-learning without replay and target network: why DQN has both",
        online_q,
        "network",
        (
            Setting(EnvConfig(id="qfleet/GridWorld-v0"), OnlineQConfig(), episodes=240),
            Setting(EnvConfig(id="CartPole-v1"), OnlineQConfig(gamma=0.99), episodes=100),
        ),
    ),
}
