"""TD errors and losses, as pure functions of tensors.

Notation: ``q_tm1`` [B, A] action values of s_tm1 by the online network; ``a_tm1``, ``r_t``, ``discount_t`` [B];
``q_t_value`` [B, A] action values of s_t by the target network; ``q_t_selector`` [B, A] those by the online network;
``td`` [B] TD errors. r_t and discount_t already contain gamma.
"""

from __future__ import annotations

import torch
from torch import Tensor


def q_learning_error(q_tm1: Tensor, a_tm1: Tensor, r_t: Tensor, discount_t: Tensor, q_t_value: Tensor) -> Tensor:
    """td = r_t + discount_t * max_a q_t_value(a) - q_tm1(a_tm1), [B] (Mnih et al. 2015, algorithm 1).

    The target carries no gradient. Raises ValueError on wrong shapes or dtypes.
    """
    return double_q_error(q_tm1, a_tm1, r_t, discount_t, q_t_value, q_t_value)


def double_q_error(
    q_tm1: Tensor, a_tm1: Tensor, r_t: Tensor, discount_t: Tensor, q_t_value: Tensor, q_t_selector: Tensor
) -> Tensor:
    """td = r_t + discount_t * q_t_value(argmax_a q_t_selector(a)) - q_tm1(a_tm1), [B].

    Source: van Hasselt et al. 2016, equation 4. The target carries no gradient. Raises ValueError on wrong shapes or
    dtypes.
    """
    if q_t_value.shape != q_tm1.shape:
        raise ValueError(f"action values must all be [B, A], got {[tuple(q.shape) for q in (q_tm1, q_t_value)]}")
    return td_error(q_tm1, a_tm1, double_q_target(r_t, discount_t, q_t_value, q_t_selector))


@torch.no_grad()
def double_q_target(r_t: Tensor, discount_t: Tensor, q_t_value: Tensor, q_t_selector: Tensor) -> Tensor:
    """target = r_t + discount_t * q_t_value(argmax_a q_t_selector(a)), [B], without gradient.

    Source: van Hasselt et al. 2016, equation 4. Raises ValueError on wrong shapes or dtypes.
    """
    if q_t_value.ndim != 2 or q_t_selector.shape != q_t_value.shape:
        raise ValueError(f"action values must all be [B, A], got {[tuple(q.shape) for q in (q_t_value, q_t_selector)]}")
    _check_columns(len(q_t_value), r_t=r_t, discount_t=discount_t)
    if not all(x.is_floating_point() for x in (r_t, discount_t, q_t_value, q_t_selector)):
        raise ValueError("r_t, discount_t and action values must be floating point")
    best = q_t_selector.argmax(dim=1, keepdim=True)
    return r_t + discount_t * q_t_value.gather(1, best).squeeze(1)


def td_error(q_tm1: Tensor, a_tm1: Tensor, target: Tensor) -> Tensor:
    """td = target - q_tm1(a_tm1), [B]. Raises ValueError on wrong shapes or dtypes."""
    if q_tm1.ndim != 2:
        raise ValueError(f"action values must be [B, A], got {tuple(q_tm1.shape)}")
    _check_columns(len(q_tm1), a_tm1=a_tm1, target=target)
    if a_tm1.dtype != torch.int64 or not all(x.is_floating_point() for x in (q_tm1, target)):
        raise ValueError("a_tm1 must be int64, action values and target floating point")
    return target - q_tm1.gather(1, a_tm1.unsqueeze(1)).squeeze(1)


def huber(td: Tensor, delta: float = 1.0) -> Tensor:
    """td^2 / 2 where |td| <= delta, else delta * (|td| - delta / 2): elementwise, [B] -> [B] (Huber 1964)."""
    absolute = td.abs()
    quadratic = absolute.clamp(max=delta)
    return 0.5 * quadratic**2 + delta * (absolute - quadratic)


def squared(td: Tensor) -> Tensor:
    """td^2 / 2: elementwise, [B] -> [B]."""
    return 0.5 * td**2


def weighted_loss(losses: Tensor, weights: Tensor) -> Tensor:
    """mean_b weights_b * losses_b, a scalar tensor; losses and importance weights are [B].

    Source: Schaul et al. 2016, section 3.4. Under uniform sampling all weights are 1. Raises ValueError unless both are
    [B].
    """
    if losses.ndim != 1 or losses.shape != weights.shape:
        raise ValueError(f"losses {tuple(losses.shape)} and weights {tuple(weights.shape)} must both be [B]")
    return (weights * losses).mean()


def _check_columns(size: int, **columns: Tensor) -> None:
    """Raise ValueError unless every tensor is [size]."""
    for name, x in columns.items():
        if x.shape != (size,):
            raise ValueError(f"{name} must be [B] = ({size},), got {tuple(x.shape)}")
