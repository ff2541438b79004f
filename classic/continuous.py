"""Q-learning where actions are continuous: one loop, and three ways to max_a q(s, a) (`classic.maximizers`).

Legend: ``s`` [B, O], ``a`` [B, D] in [-1, 1], ``r`` [B], ``s_next`` [B, O].
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from classic.interface import Learned, Method, Monitor, Setting
from classic.maximizers import Cem, Ddpg, Maximizer, Naf
from classic.memory import Batch, Memory
from rl.envs import EnvConfig, SeedSequence, make_environments
from rl.errors import BadInput
from rl.parameters import weights_of
from rl.td import squared
from rl.types import Array, EpisodeResult, Float32


@dataclass(frozen=True)
class ContinuousConfig:
    """Q-learning with continuous actions."""

    maximizer: Literal["cem", "naf", "ddpg"] = "ddpg"
    """How max_a q(s, a) is found: cem searches, naf reads it off a quadratic q, ddpg trains a network to climb q."""
    steps: int = 20_000
    """Agent steps of training, in all environments together."""
    environments: int = 10
    """Environments that step together."""
    updates: int = 5
    """Gradient steps after each step of all environments."""
    warm_up: int = 1_000
    """Agent steps with uniformly random actions before the first gradient step."""
    noise: float = 0.3
    """Standard deviation of the normal noise on actions while learning; they lie in [-1, 1]."""
    gamma: float = 0.98
    """Discount a step."""
    batch: int = 128
    """Transitions a gradient step."""
    capacity: int = 100_000
    """Transitions that the memory keeps."""
    learning_rate: float = 1e-3
    """Adam's step size."""
    tau: float = 0.01
    """Share of the way that the target network goes towards the learned one after each gradient step."""
    hidden: tuple[int, ...] = (64, 64)
    """Units of the layers of each network."""
    samples: int = 32
    """Actions drawn at a time (cem alone)."""
    elites: int = 6
    """Best actions that the next ones are drawn around (cem alone)."""
    refinements: int = 2
    """Times that new actions are drawn around the best; 0: the best of the first ones (cem alone)."""

    def __post_init__(self) -> None:
        for name in ("steps", "environments", "updates", "warm_up", "batch", "capacity", "samples", "elites"):
            self._require(getattr(self, name) >= 1, name, "at least 1")
        self._require(self.refinements >= 0, "refinements", "0 or more")
        self._require(self.elites <= self.samples, "elites", f"at most --samples, which is {self.samples}")
        self._require(0.0 <= self.gamma <= 1.0, "gamma", "a number from 0 to 1")
        self._require(0.0 < self.tau <= 1.0, "tau", "a number above 0, up to 1")
        self._require(self.noise >= 0.0, "noise", "0 or more")
        self._require(self.learning_rate > 0.0, "learning_rate", "a number above 0")
        self._require(bool(self.hidden) and min(self.hidden) >= 1, "hidden", "one layer or more of at least 1 unit")

    def _require(self, holds: bool, name: str, wanted: str) -> None:
        if not holds:
            raise BadInput(f"--{name.replace('_', '-')} is {getattr(self, name)}: write {wanted}")


def make_maximizer(config: ContinuousConfig, observation: int, action: int, seed: int) -> Maximizer:
    """A maximizer with weights drawn from ``seed``, whatever torch's global generator holds."""
    c = config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if c.maximizer == "cem":
            return Cem(observation, action, c.hidden, c.samples, c.elites, c.refinements)
        return (Naf if c.maximizer == "naf" else Ddpg)(observation, action, c.hidden)


def td_target(r: Tensor, terminated: Tensor, maximum: Tensor, gamma: float) -> Tensor:
    """r + gamma * (1 - terminated) * max_a q_target(s_next, a), all [B] (Watkins 1989). A truncated episode bootstraps."""
    return r + gamma * torch.where(terminated, 0.0, maximum)


class _Learner:
    """A maximizer, its slow copy, and the step that brings q nearer to its target: the same for all three ways."""

    def __init__(self, config: ContinuousConfig, observation: int, action: int, seed: int) -> None:
        self.c = config
        self.online = make_maximizer(config, observation, action, seed)
        self.target = deepcopy(self.online).requires_grad_(False)
        self.optimizer = torch.optim.Adam(self.online.parameters(), lr=config.learning_rate, fused=True)

    def update(self, batch: Batch) -> float:
        """One gradient step on 1/2 (target - q(s, a))^2 and the maximizer's own loss; returns the mean q(s, a)."""
        s, a, r, terminated, s_next = (torch.from_numpy(x) for x in batch)
        with torch.no_grad():
            target = td_target(r, terminated, self.target.maximum(s_next), self.c.gamma)
        q = self.online.q(s, a)
        loss = squared(target - q).mean() + self.online.own_loss(s)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(self.target.parameters(), self.online.parameters(), strict=True):
                slow.lerp_(fast, self.c.tau)
        return float(q.detach().mean())

    @torch.no_grad()
    def policy(self, observations: Array) -> Float32:
        """The greedy one: observations [N, O] -> actions [N, D] in [-1, 1]."""
        actions: Float32 = self.online.best(torch.from_numpy(np.asarray(observations, np.float32))).numpy()
        return actions


def learn(config: ContinuousConfig, env: EnvConfig, seed: int, monitor: Monitor) -> Learned:
    """Act greedily with noise, keep, sample, and move q towards r + gamma max_a q_target(s', a).

    Sources: Kalashnikov et al. 2018 (cem), Gu et al. 2016 (naf), Lillicrap et al. 2016 (ddpg); the loop is the last one's
    algorithm 1, with plain normal noise. Raises BadInput where the environment's spaces do not fit.
    """
    c, environments = config, make_environments(env, config.environments, takes="continuous")
    if len(environments.spec.shape) != 1:
        environments.close()
        raise BadInput(f"env.id {env.id!r} has observations of shape {environments.spec.shape}: write one with a vector")
    count, (observation,), action = environments.count, environments.spec.shape, environments.actions
    learner = _Learner(c, observation, action, seed)
    memory = Memory(min(c.capacity, c.steps + count), (observation,), (action,), np.float32, np.float32)
    rng, seeds = np.random.default_rng([seed, 0]), SeedSequence(seed, 1)
    s = environments.reset(seeds.draw(count))
    returns, lengths = np.zeros(count), np.zeros(count, np.int64)
    for t in range(0, c.steps, count):
        if t < c.warm_up:
            a = rng.uniform(-1.0, 1.0, (count, action)).astype(np.float32)
        else:
            noise = c.noise * rng.standard_normal((count, action), np.float32)
            a = (learner.policy(s) + noise).clip(-1.0, 1.0)
        step = environments.step(a)
        for i in range(count):
            memory.append(s[i], a[i], float(step.reward[i]), bool(step.terminated[i]), step.observation[i])
        s, returns, lengths = step.observation, returns + step.reward, lengths + 1
        if step.done.any():
            for i in np.flatnonzero(step.done):
                monitor.episode(EpisodeResult(float(returns[i]), int(lengths[i]), 0.0, bool(step.truncated[i])))
            returns[step.done], lengths[step.done] = 0.0, 0
            s = environments.restart(step.done, seeds.draw(int(step.done.sum())))
        if t >= c.warm_up:
            q = [learner.update(memory.sample(rng, c.batch)) for _ in range(c.updates)]
            monitor.report(t, {"q": float(np.mean(q))})
    environments.close()
    return Learned(learner.policy, arrays=weights_of(learner.online))


METHODS = {
    "continuous": Method(
        "continuous actions: search (cem), closed form (naf) or a learned maximizer (ddpg)",
        learn,
        "continuous",
        (Setting(EnvConfig(id="Pendulum-v1"), ContinuousConfig(), episodes=100),),
    ),
}
