"""Q-learning where actions are continuous: one loop, and three ways to find max_a q(s, a) (`classic.maximizers`).

Legend: ``s`` [B, O], ``a`` [B, D] in [-1, 1], ``r`` [B], ``s_next`` [B, O].
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

REPORT_PERIOD = 500  # gradient steps


MAXIMIZERS = ("cem", "naf", "ddpg")


@dataclass(frozen=True)
class ContinuousConfig:
    """Q-learning with continuous actions."""

    maximizer: Literal["cem", "naf", "ddpg"] = "ddpg"
    """How max_a q(s, a) is found: cem searches, naf reads it off a quadratic q, ddpg trains a network to climb q."""
    steps: int = 15_000
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
    reward_scale: float = 0.1
    """Factor on rewards as q counts them: it starts near 0, and should not have far to go."""
    # Else v sinks slowly, NAF's quadratic takes the difference meanwhile, and its mu is driven into tanh's flat ends.
    batch: int = 128
    """Transitions a gradient step."""
    capacity: int = 100_000
    """Transitions that the replay buffer keeps."""
    learning_rate: float = 1e-3
    """Adam's step size."""
    tau: float = 0.01
    """Share of the way that the target network goes towards the learned one after each gradient step."""
    hidden: tuple[int, ...] = (64, 64)
    """Units of the layers of each network."""
    samples: int = 16
    """Actions drawn at a time (cem alone)."""
    elites: int = 4
    """Best actions that the next ones are drawn around (cem alone)."""
    refinements: int = 2
    """Times that new actions are drawn around the best; 0: the best of the first ones (cem alone)."""

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
    """A maximizer for O = ``observation`` and D = ``action`` numbers; its weights depend on ``seed`` alone."""
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

    def update(self, batch: Batch) -> tuple[float, float]:
        """One gradient step on the mean of td^2 / 2, td = target - q(s, a), and on the maximizer's own loss.

        Returns the means of td^2 / 2 and of q(s, a).
        """
        s, a, r, terminated, s_next = (torch.from_numpy(x) for x in batch)
        with torch.no_grad():
            target = td_target(self.c.reward_scale * r, terminated, self.target.maximum(s_next), self.c.gamma)
        q = self.online.q(s, a)
        loss = squared(target - q).mean()
        self.optimizer.zero_grad()
        (loss + self.online.own_loss(s)).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(self.target.parameters(), self.online.parameters(), strict=True):
                slow.lerp_(fast, self.c.tau)
        return loss.item(), q.mean().item()

    @torch.no_grad()
    def policy(self, observations: Array) -> Array:
        """Greedy actions float32 [N, D] in [-1, 1] for observations [N, O]."""
        return np.asarray(self.online.best(_tensor(observations)))

    @torch.no_grad()
    def values(self, observations: Array) -> Array:
        """max_a q(s, a) in units of unscaled reward: observations [N, O] -> float32 [N]."""
        return np.asarray(self.online.maximum(_tensor(observations))) / self.c.reward_scale


def _tensor(observations: Array) -> Tensor:
    return torch.from_numpy(np.asarray(observations, np.float32))


def learn(config: ContinuousConfig, env: EnvConfig, seed: int, monitor: Monitor) -> Learned:
    """Act greedily with noise, store, sample, and move q towards r + gamma max_a q_target(s_next, a).

    Sources: Kalashnikov et al. 2018 (cem), Gu et al. 2016 (naf), Lillicrap et al. 2016 (ddpg); the loop is the last
    one's algorithm 1, with plain normal noise. Returns the greedy policy, without action values. Raises BadInput where
    the environment's spaces do not fit, RunFault where q diverges.
    """
    c, environments = config, make_environments(env, config.environments, takes="continuous")
    shape, count, action = environments.spec.shape, environments.count, environments.actions
    if len(shape) != 1:
        environments.close()
        said = f"{env.id!r} has observations of shape {shape}: write one with vectors, such as Pendulum-v1"
        raise BadSetting(EnvConfig, "id", said)
    learner = _Learner(c, shape[0], action, seed)
    replay = ReplayBuffer(min(c.capacity, c.steps + count), shape, (action,), np.float32, np.float32)
    rng, t = np.random.default_rng([seed, 0]), 0  # t: agent steps taken before the next one

    def act(s: Array) -> Array:
        if t < c.warm_up:
            return rng.uniform(-1.0, 1.0, (count, action)).astype(np.float32)
        noise = c.noise * rng.standard_normal((count, action), np.float32)
        return np.asarray(np.clip(learner.policy(s) + noise, -1.0, 1.0))

    steps = rollout(environments, act, SeedSequence(seed, 1).draw)
    figures: list[tuple[float, float]] = []  # of each gradient step since the last report
    for t in range(0, c.steps, count):
        if t >= c.warm_up:
            figures += [learner.update(replay.sample(rng, c.batch)) for _ in range(c.updates)]
        acted = next(steps)
        s, a, step, *_ = acted
        for i in range(count):
            replay.append(s[i], a[i], float(step.reward[i]), bool(step.terminated[i]), step.observation[i])
        for _, result in acted.finished_episodes(epsilons=0.0):
            monitor.episode(result)
        if len(figures) >= REPORT_PERIOD or (figures and t + count >= c.steps):
            _report(monitor, t + count, figures, c.reward_scale)
            figures = []
    environments.close()
    return Learned(learner.policy, arrays={**weights_of(learner.online), **_surface(learner, env)})


def _report(monitor: Monitor, at: int, figures: Sequence[tuple[float, float]], scale: float) -> None:
    loss, q = np.mean(figures, axis=0)
    if not np.isfinite(loss):
        raise RunFault(f"q diverged within {at} agent steps: write a smaller `learning_rate` or `tau`")
    monitor.report(at, {"loss": float(loss), "q": float(q) / scale})


def _surface(learner: _Learner, env: EnvConfig, points: int = 81) -> dict[str, Array]:
    """For a picture of the pendulum: max_a q [R, C] and the greedy action [R, C] over velocities [R] and angles [C].

    Velocities in rad/s, angles in rad with 0 upright; {} for other environments.
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
        "continuous actions: search (cem), closed form (naf) or a learned maximizer (ddpg)",
        learn,
        "continuous",
        (Setting(EnvConfig(id="Pendulum-v1"), ContinuousConfig(), episodes=100),),
    ),
}
