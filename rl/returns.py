"""n-step returns: the one place where gamma is applied.

For item t of an episode with rewards R_{t+1}, R_{t+2}, ...:

    r_t        = sum_{k < m} gamma^k R_{t+1+k}
    discount_t = gamma^m, or 0 where the episode terminated (or lost a life that counts) at step t + m
    s_t        = the observation after m steps

with m = n, or fewer near an episode's end. A truncated episode bootstraps from its true last observation with the power
of gamma of the steps that are there (Sutton & Barto 2018, section 7.1; Pardo et al. 2018 on time limits).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from rl.bounds import at_least, between
from rl.resuming import Rules, rules
from rl.types import Array, Bool, Float32


@dataclass(frozen=True)
class ReturnConfig:
    """Rewards, discount and n-step returns."""

    n_step: int = 3
    """Rewards that are summed before bootstrapping (n of the n-step return)."""
    gamma: float = 0.99
    """Discount per agent step."""
    clip_reward: float = 0.0
    """Clip training rewards to [-x, x]; 0: no clipping (Atari: 1)."""
    life_loss_terminates: bool = False
    """Treat the loss of a life as terminal (discount 0), without resetting the game."""

    on_resume: ClassVar[Rules] = rules(
        n_step="restored transitions keep their returns over the old number of steps",
        gamma="the network was trained with the old value so far, and restored transitions keep it",
        clip_reward="the network was trained with the old value so far, and restored transitions keep it",
        life_loss_terminates="the network was trained with the old value so far, and restored transitions keep it",
    )

    def __post_init__(self) -> None:
        at_least(self, 1, "n_step", unit="step")
        between(self, 0, 1, "gamma", what="a discount")
        at_least(self, 0, "clip_reward", zero="no clipping")


class NStep(NamedTuple):
    """n-step targets of the items that start at steps 0..M-1."""

    r_t: Float32  # [M]
    discount_t: Float32  # [M]
    length: Array  # [M] uint32, steps summed


def n_step_returns(rewards: Array, stops: Bool, items: int, n: int, gamma: float) -> NStep:
    """`NStep` targets, [items] each, of the first ``items`` of S >= items consecutive steps, by the equations above.

    Rewards [S] are summed over at most ``n`` steps, no further than the last step given and no further than a stop.
    ``stops`` [S] marks the steps after which nothing is bootstrapped (terminations, counted lives). Sutton & Barto
    2018, 7.1.
    """
    steps = len(rewards)
    r_t = np.zeros(items, dtype=np.float64)
    discount = np.ones(items, dtype=np.float64)
    length = np.zeros(items, dtype=np.uint32)
    alive = np.ones(items, dtype=np.bool_)
    start = np.arange(items)
    for k in range(n):
        alive = alive & (start + k < steps)
        at = np.minimum(start + k, steps - 1)
        r_t += np.where(alive, gamma**k * rewards[at], 0.0)
        length += alive
        discount = np.where(alive, gamma ** (k + 1), discount)
        stopped = alive & stops[at]
        discount = np.where(stopped, 0.0, discount)
        alive = alive & ~stopped
    return NStep(r_t.astype(np.float32), discount.astype(np.float32), length)


def targets(config: ReturnConfig, rewards: Array, terminated: Bool, lost_life: Bool, items: int) -> NStep:
    """`n_step_returns` of the first ``items`` of S steps under ``config``.

    Raw ``rewards`` [S] are clipped as configured. ``terminated`` [S] stops the sum; so does ``lost_life`` [S] where it
    counts.
    """
    training = np.clip(rewards, -config.clip_reward, config.clip_reward) if config.clip_reward else rewards
    stops = terminated | (lost_life & config.life_loss_terminates)
    return n_step_returns(training, stops, items, config.n_step, config.gamma)
