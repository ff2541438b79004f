"""TD errors and losses, as pure functions of tensors.

Legend: ``q_tm1`` [B, A] online values of s_tm1; ``a_tm1`` [B]; ``r_t``, ``discount_t`` [B]; ``q_t_value`` [B, A] target
values of s_t; ``q_t_selector`` [B, A] online values of s_t; ``td`` [B] TD errors. No function here knows gamma: it is
inside r_t and discount_t.
"""

from __future__ import annotations

import torch
from torch import Tensor


def q_learning_error(q_tm1: Tensor, a_tm1: Tensor, r_t: Tensor, discount_t: Tensor, q_t_value: Tensor) -> Tensor:
    """td = r_t + discount_t * max_a q_t_value(a) - q_tm1(a_tm1), [B] (Mnih et al. 2015, algorithm 1)."""
    return double_q_error(q_tm1, a_tm1, r_t, discount_t, q_t_value, q_t_value)


def double_q_error(
    q_tm1: Tensor, a_tm1: Tensor, r_t: Tensor, discount_t: Tensor, q_t_value: Tensor, q_t_selector: Tensor
) -> Tensor:
    """td = r_t + discount_t * q_t_value(argmax_a q_t_selector(a)) - q_tm1(a_tm1), [B].

    Source: van Hasselt et al. 2016, equation 4. The target carries no gradient. Raises ValueError on wrong ranks or
    dtypes.
    """
    _check(q_tm1, a_tm1, r_t, discount_t, q_t_value, q_t_selector)
    with torch.no_grad():
        best = q_t_selector.argmax(dim=1, keepdim=True)
        target = r_t + discount_t * q_t_value.gather(1, best).squeeze(1)
    return target - q_tm1.gather(1, a_tm1.unsqueeze(1)).squeeze(1)


def huber(td: Tensor, delta: float = 1.0) -> Tensor:
    """td^2 / 2 where |td| <= delta, else delta * (|td| - delta / 2), elementwise (Huber 1964)."""
    absolute = td.abs()
    quadratic = absolute.clamp(max=delta)
    return 0.5 * quadratic**2 + delta * (absolute - quadratic)


def squared(td: Tensor) -> Tensor:
    """td^2 / 2, elementwise."""
    return 0.5 * td**2


def weighted_loss(losses: Tensor, weights: Tensor) -> Tensor:
    """mean_b weights_b * losses_b, a scalar; the importance weights [B] always multiply, ones under uniform sampling."""
    if losses.ndim != 1 or losses.shape != weights.shape:
        raise ValueError(f"losses {tuple(losses.shape)} and weights {tuple(weights.shape)} must both be [B]")
    return (weights * losses).mean()


def _check(q_tm1: Tensor, a_tm1: Tensor, r_t: Tensor, discount_t: Tensor, *q_t: Tensor) -> None:
    if q_tm1.ndim != 2 or any(q.shape != q_tm1.shape for q in q_t):
        raise ValueError(f"action values must all be [B, A], got {[tuple(q.shape) for q in (q_tm1, *q_t)]}")
    for name, x in (("a_tm1", a_tm1), ("r_t", r_t), ("discount_t", discount_t)):
        if x.shape != q_tm1.shape[:1]:
            raise ValueError(f"{name} must be [B] = {tuple(q_tm1.shape[:1])}, got {tuple(x.shape)}")
    if a_tm1.dtype != torch.int64 or not all(x.is_floating_point() for x in (q_tm1, r_t, discount_t, *q_t)):
        raise ValueError("a_tm1 must be int64, all else floating point")
