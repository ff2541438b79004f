"""Q-learning with continuous actions: one training loop, and three ways to find max_a q(s, a) (`classic.maximizers`).

Legend: ``s``, ``s_next`` [B, O] observations; ``a`` [B, D] actions, scaled to [-1, 1]; ``r`` [B] rewards.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from classic.interface import Learned, Method, Monitor, Setting
from classic.maximizers import Cem, Ddpg, Maximizer, Naf
from classic.replay_buffer import Batch, ReplayBuffer
from rl.bounds import at_least, between, layers, positive, require
from rl.envs.config import EnvConfig
from rl.envs.make import make_environments
from rl.errors import BadSetting, RunFault
from rl.parameters import weights_of
from rl.stepping import SeedSequence, rollout
from rl.td import squared
from rl.types import Array

REPORT_PERIOD = 500  # gradient steps between reports of loss and q
MAXIMIZERS = ("cem", "naf", "ddpg")


@dataclass(frozen=True)
class ContinuousConfig:
    """Q-learning with continuous actions."""

    maximizer: Literal["cem", "naf", "ddpg"] = "ddpg"
    """How to find max_a q(s, a). cem: cross-entropy method; naf: a q that is quadratic in a; ddpg: an actor network."""
    steps: int = 15_000
    """Agent steps of training, over all environments."""
    environments: int = 10
    """Number of parallel environments."""
    updates: int = 5
    """Gradient steps after each step of the batch of environments."""
    warm_up: int = 1_000
    """Agent steps with uniformly random actions before the first gradient step."""
    noise: float = 0.3
    """Standard deviation of the Gaussian noise added to training actions, which are scaled to [-1, 1]."""
    gamma: float = 0.98
    """Discount factor."""
    reward_scale: float = 0.1
    """Factor on rewards in the targets. Choose it so that action values stay near 0, where q starts."""
    # Otherwise v of naf starts far above its targets. The quadratic term then fits the difference: it drives mu so far
    # out that tanh saturates.
    batch: int = 128
    """Transitions per gradient step."""
    capacity: int = 100_000
    """Transitions in the replay buffer."""
    learning_rate: float = 1e-3
    """Learning rate of Adam."""
    tau: float = 0.01
    """Polyak averaging after each gradient step: target += tau * (online - target)."""
    hidden: tuple[int, ...] = (64, 64)
    """Units of the hidden layers of each network."""
    samples: int = 16
    """Candidate actions per iteration of the search (only cem)."""
    elites: int = 4
    """Best candidates to which the next normal distribution is fitted (only cem)."""
    refinements: int = 2
    """Iterations of the search after the first, uniform one; 0: random search (only cem)."""

    def __post_init__(self) -> None:
        at_least(self, 1, "steps", "environments", "updates", "warm_up", "batch", "capacity", "samples", "elites")
        require(self.steps > self.warm_up, self, "steps", f"more than `warm_up`, which is {self.warm_up}")
        require(self.maximizer in MAXIMIZERS, self, "maximizer", "cem, naf or ddpg")
        require(self.elites <= self.samples, self, "elites", f"at most `samples`, which is {self.samples}")
        at_least(self, 0, "refinements", "noise")
        between(self, 0, 1, "gamma")
        between(self, 0, 1, "tau", above=True)
        positive(self, "reward_scale", "learning_rate")
        layers(self, "hidden")


def make_maximizer(config: ContinuousConfig, observation: int, action: int, seed: int) -> Maximizer:
    """Create the maximizer of ``config`` for observations [O = ``observation``] and actions [D = ``action``].

    Its initial weights depend only on ``seed``; the global random state of torch does not change.
    """
    c = config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if c.maximizer == "cem":
            return Cem(observation, action, c.hidden, c.samples, c.elites, c.refinements)
        return (Naf if c.maximizer == "naf" else Ddpg)(observation, action, c.hidden)


def td_target(r: Tensor, terminated: Tensor, maximum: Tensor, gamma: float) -> Tensor:
    """Return r + gamma * (1 - terminated) * maximum, with maximum = max_a q_target(s_next, a); all are [B].

    Watkins 1989. A truncated episode bootstraps.
    """
    return r + gamma * torch.where(terminated, 0.0, maximum)


class _Learner:
    """The online maximizer, its target network and the gradient step, which is the same for all three maximizers."""

    def __init__(self, config: ContinuousConfig, observation: int, action: int, seed: int) -> None:
        self.c = config
        self.online = make_maximizer(config, observation, action, seed)
        self.target = deepcopy(self.online).requires_grad_(False)
        self.optimizer = torch.optim.Adam(self.online.parameters(), lr=config.learning_rate, fused=True)

    def update(self, batch: Batch) -> tuple[float, float]:
        """Make one gradient step on the mean of td^2 / 2, with td = target - q(s, a), plus the actor's loss.

        Then moves the target network. Returns the means of td^2 / 2 and of q(s, a) over the batch.
        """
        s, a, r, terminated, s_next = (torch.from_numpy(x) for x in batch)
        with torch.no_grad():
            target = td_target(self.c.reward_scale * r, terminated, self.target.max_q(s_next), self.c.gamma)
        q = self.online.q(s, a)
        loss = squared(target - q).mean()
        self.optimizer.zero_grad()
        (loss + self.online.actor_loss(s)).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        with torch.no_grad():
            for target_weight, weight in zip(self.target.parameters(), self.online.parameters(), strict=True):
                target_weight.lerp_(weight, self.c.tau)
        return loss.item(), q.mean().item()

    @torch.no_grad()
    def policy(self, observations: Array) -> Array:
        """Return greedy actions, float32 [N, D] in [-1, 1], of observations [N, O]."""
        return np.asarray(self.online.best_action(_tensor(observations)))

    @torch.no_grad()
    def values(self, observations: Array) -> Array:
        """Return max_a q(s, a), float32 [N], of observations [N, O], in units of unscaled reward."""
        return np.asarray(self.online.max_q(_tensor(observations))) / self.c.reward_scale


def _tensor(observations: Array) -> Tensor:
    return torch.from_numpy(np.asarray(observations, np.float32))


def learn_continuous(config: ContinuousConfig, env: EnvConfig, seed: int, monitor: Monitor) -> Learned:
    """Deep Q-learning with replay and a target network, target r + gamma max_a q_target(s_next, a).

    The loop is algorithm 1 of Lillicrap et al. 2016 (ddpg), with Gaussian noise. The other two maximizers are those of
    Kalashnikov et al. 2018 (cem) and Gu et al. 2016 (naf). Returns the greedy policy, without action values, and the
    weights. Raises BadInput if the environment's spaces do not fit, and RunFault if q diverges.
    """
    c, environments = config, make_environments(env, config.environments, space_kind="continuous")
    shape, count, action = environments.spec.shape, environments.count, environments.actions
    if len(shape) != 1:
        environments.close()
        message = (
            f"{env.id!r} has observations of shape {shape}: write an environment with vectors, such as Pendulum-v1"
        )
        raise BadSetting(EnvConfig, "id", message)
    learner = _Learner(c, shape[0], action, seed)
    replay = ReplayBuffer(min(c.capacity, c.steps + count), shape, (action,), np.float32, np.float32)
    rng, t = np.random.default_rng([seed, 0]), 0  # t: agent steps so far

    def act(s: Array) -> Array:
        if t < c.warm_up:
            return rng.uniform(-1.0, 1.0, (count, action)).astype(np.float32)
        noise = c.noise * rng.standard_normal((count, action), np.float32)
        return np.asarray(np.clip(learner.policy(s) + noise, -1.0, 1.0))

    steps = rollout(environments, act, SeedSequence(seed, 1).draw)
    losses_and_values: list[tuple[float, float]] = []  # one pair per gradient step since the last report
    for t in range(0, c.steps, count):
        if t >= c.warm_up:
            losses_and_values += [learner.update(replay.sample(rng, c.batch)) for _ in range(c.updates)]
        acted = next(steps)
        s, a, step, *_ = acted
        for i in range(count):
            replay.append(s[i], a[i], float(step.reward[i]), bool(step.terminated[i]), step.observation[i])
        for _, result in acted.finished_episodes(epsilons=0.0):
            monitor.episode(result)
        if len(losses_and_values) >= REPORT_PERIOD or (losses_and_values and t + count >= c.steps):
            _report(monitor, t + count, losses_and_values, c.reward_scale)
            losses_and_values = []
    environments.close()
    return Learned(learner.policy, arrays={**weights_of(learner.online), **_pendulum_surface(learner, env)})


def _report(monitor: Monitor, at: int, losses_and_values: Sequence[tuple[float, float]], scale: float) -> None:
    loss, q = np.mean(losses_and_values, axis=0)
    if not np.isfinite(loss):
        raise RunFault(f"the action values diverged within {at:,} agent steps: lower `learning_rate` or `tau`")
    monitor.report(at, {"loss": float(loss), "q": float(q) / scale})


def _pendulum_surface(learner: _Learner, env: EnvConfig, points: int = 81) -> dict[str, Array]:
    """Return the arrays of the pendulum's picture: max_a q and greedy action, both [R, C], velocities [R], angles [C].

    Velocities are in rad/s, angles in rad with 0 upright. Returns {} for other environments.
    """
    if not env.id.startswith("Pendulum-"):
        return {}
    angle, velocity = np.linspace(-np.pi, np.pi, points), np.linspace(-8.0, 8.0, points)
    c, r = (x.ravel() for x in np.meshgrid(angle, velocity))
    s = np.stack([np.cos(c), np.sin(c), r], axis=1)
    return {
        "surface_value": learner.values(s).reshape(points, points),
        "surface_action": learner.policy(s).reshape(points, points),
        "surface_angle": angle,
        "surface_velocity": velocity,
    }


METHODS = {
    "continuous": Method(
        "continuous actions: max_a q by search (cem), in closed form (naf) or by an actor network (ddpg)",
        learn_continuous,
        "continuous",
        (Setting(EnvConfig(id="Pendulum-v1"), ContinuousConfig(), episodes=100),),
    ),
}
