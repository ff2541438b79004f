"""Online deep Q-learning, with a replay buffer and a target network as options.

    w <- w + alpha (r + gamma max_a' q(s', a'; w) - q(s, a; w)) grad q(s, a; w)

This is semi-gradient Q-learning (Sutton & Barto 2018, section 11.1): one update from each step. It is unstable, for two
reasons (section 11.3, the deadly triad). Consecutive steps are correlated, so that the network forgets earlier ones.
And each update changes the targets of the next. DQN (Mnih et al. 2015) replays old steps for the first (``replay``),
and keeps a target network for the second (``target_period``).
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
    """Deep Q-learning with one gradient step after each step; replay buffer and target network are options."""

    steps: int = 40_000
    """Agent steps of training."""
    gamma: float = 0.95
    """Discount factor."""
    epsilon_end: float = 0.1
    """Epsilon after its linear decay from 1."""
    epsilon_steps: int = 20_000
    """Agent steps over which epsilon decays."""
    hidden: tuple[int, ...] = (128, 128)
    """Units of the hidden layers."""
    learning_rate: float = 5e-4
    """Learning rate of Adam."""
    loss: Literal["huber", "squared"] = "huber"
    """Loss of the TD error; huber is quadratic up to 1 and linear beyond."""
    replay: int = 0
    """Transitions in the replay buffer; 0: no buffer, each gradient step uses only the latest transition."""
    batch: int = 32
    """Transitions per gradient step (only with a replay buffer)."""
    target_period: int = 0
    """Gradient steps between copies of the weights to the target network; 0: no target network."""

    def __post_init__(self) -> None:
        at_least(self, 1, "steps", "epsilon_steps", "batch")
        at_least(self, 0, "replay", "target_period")
        between(self, 0, 1, "gamma", "epsilon_end")
        layers(self, "hidden")
        positive(self, "learning_rate")


class OnlineLearner:
    """The online network, the target network (the same one, if `target_period` is 0) and the gradient step."""

    def __init__(self, config: OnlineQConfig, network: QNetwork) -> None:
        self.c, self.network = config, network
        self.target = copy.deepcopy(network) if config.target_period else network
        self._optimizer = torch.optim.Adam(network.parameters(), lr=config.learning_rate)
        self.updates = 0

    def update(self, batch: Batch) -> float:
        """Make one gradient step on a batch; returns its mean loss. Truncated transitions bootstrap."""
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
        """Return q, float32 [N, A], of observations [N, *observation]."""
        return np.asarray(self.network(torch.from_numpy(s)))


def batches(config: OnlineQConfig, steps: Iterator[Batch], seed: int) -> Iterator[Batch]:
    """Yield one batch for each step: the step itself, or a sample from the replay buffer of `replay` transitions."""
    replay, rng = None, np.random.default_rng([seed, 1])
    for step in steps:
        if config.replay == 0:
            yield step
            continue
        replay = replay or ReplayBuffer(config.replay, step.s.shape[1:], (), step.s.dtype, np.int64)
        replay.append(*(column[0] for column in step))
        yield replay.sample(rng, config.batch)


def play(config: OnlineQConfig, learner: OnlineLearner, env: EnvConfig, seed: int, monitor: Monitor) -> Iterator[Batch]:
    """Play `steps` epsilon-greedy steps; yield each as a batch of one, and report episodes to the monitor."""
    environments, rng = make_environments(env, 1), np.random.default_rng([seed, 2])
    epsilon = 1.0
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
    """Semi-gradient Q-learning with a network (Sutton & Barto 2018, section 11.1).

    Returns q and its greedy policy. Raises RunFault if q diverges.
    """
    environments = make_environments(env, 1)  # only for the spaces: `play` makes its own
    environments.close()
    network = make_network(
        NetworkConfig("mlp", config.hidden, dueling=False), environments.spec, environments.actions, seed
    )
    learner = OnlineLearner(config, network)
    losses: list[float] = []
    for batch in batches(config, play(config, learner, env, seed, monitor), seed):
        losses.append(learner.update(batch))
        if not np.isfinite(losses[-1]):
            raise RunFault(f"the action values diverged after {len(losses):,} steps: lower `learning_rate`")
        if len(losses) % REPORT_PERIOD == 0:
            monitor.report(len(losses), {"loss": float(np.mean(losses[-REPORT_PERIOD:]))})
    return from_values(learner.values, {"loss": np.array(losses)}, updates=learner.updates)


METHODS = {
    "online-q": Method(
        "online deep Q-learning; replay buffer and target network are options",
        online_q,
        "network",
        (
            Setting(EnvConfig(id="qfleet/GridWorld-v0"), OnlineQConfig(), episodes=240),
            Setting(EnvConfig(id="CartPole-v1"), OnlineQConfig(gamma=0.99), episodes=100),
        ),
    ),
}
