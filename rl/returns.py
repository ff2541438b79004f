"""n-step returns (Sutton & Barto 2018, section 7.1). No other module applies gamma.

For item t of an episode with rewards R_{t+1}, R_{t+2}, ...:

    r_t        = sum_{k < m} gamma^k R_{t+1+k}
    discount_t = gamma^m, or 0 if the episode terminated at step t + m
    s_t        = the observation after m steps

m is n, or fewer if the episode ends before. With ``life_loss_terminates`` a lost life counts as a termination. A
truncated episode bootstraps from its true last observation, with gamma^m for the m steps up to it (Pardo et al. 2018 on
time limits).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from rl.bounds import at_least, between
from rl.resuming import Rules, rules
from rl.types import Array, Bool, Float32

# The consequence of a change, on resume.
OLD_RETURNS = "the network was trained with the old value so far, and transitions restored from snapshots keep it"


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
        n_step="transitions restored from snapshots keep their returns over the old number of steps",
        gamma=OLD_RETURNS,
        clip_reward=OLD_RETURNS,
        life_loss_terminates=OLD_RETURNS,
    )

    def __post_init__(self) -> None:
        at_least(self, 1, "n_step", unit="step")
        between(self, 0, 1, "gamma", what="a discount")
        at_least(self, 0, "clip_reward", zero="no clipping")


class NStep(NamedTuple):
    """n-step returns of the M items that start at steps 0..M-1."""

    r_t: Float32  # [M]
    discount_t: Float32  # [M]
    length: Array  # [M] uint32, number of rewards summed


def n_step_returns(rewards: Array, stops: Bool, items: int, n: int, gamma: float) -> NStep:
    """The n-step returns of the first ``items`` of S consecutive steps, by the equations above; S >= ``items``.

    A sum contains at most ``n`` rewards. It ends early after the last step, and after a step marked in ``stops``.

    Args:
        rewards: [S].
        stops: bool [S], the steps after which nothing is bootstrapped: terminations, and lost lives if they count.
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


def n_step_targets(config: ReturnConfig, rewards: Array, terminated: Bool, lost_life: Bool, items: int) -> NStep:
    """`n_step_returns` of the first ``items`` of S steps, with the clipping and the lost lives as configured.

    ``rewards`` (raw), ``terminated`` and ``lost_life`` are [S].
    """
    clipped = np.clip(rewards, -config.clip_reward, config.clip_reward) if config.clip_reward else rewards
    stops = terminated | (lost_life & config.life_loss_terminates)
    return n_step_returns(clipped, stops, items, config.n_step, config.gamma)
