"""Policies: from action values ``q`` [N, A] to actions [N]."""

from __future__ import annotations

import numpy as np

from rl.types import Array, Float64, Int64


def greedy(q: Array) -> Int64:
    """argmax_a q(s, a) for each row of ``q`` [N, A], int64 [N]. Of equal values the first action is taken."""
    return np.asarray(q.argmax(axis=-1), dtype=np.int64)


def epsilon_greedy(q: Array, epsilons: Array | float, rng: np.random.Generator) -> Int64:
    """Actions, int64 [N]: uniformly random with probability epsilon, else greedy (Sutton & Barto 2018, section 2.2).

    ``q`` is [N, A]. ``epsilons`` is [N], or one number for all rows.
    """
    count, actions = q.shape
    random = rng.integers(0, actions, size=count)
    return np.where(rng.random(count) < epsilons, random, greedy(q))


def epsilon_greedy_probabilities(q: Array, epsilon: float) -> Float64:
    """Probabilities, [N, A], of the actions under `epsilon_greedy` for ``q`` [N, A].

    Each action has the probability epsilon / A; the greedy action has 1 - epsilon in addition.
    """
    probabilities = np.full(q.shape, epsilon / q.shape[-1])
    probabilities[np.arange(len(q)), greedy(q)] += 1.0 - epsilon
    return probabilities


def softmax_probabilities(q: Array, temperature: float) -> Float64:
    """Boltzmann probabilities exp(q / T) / sum exp(q / T) of each row, [N, A].

    The temperature T has the unit of q. Raises ValueError unless it is above 0.
    """
    if temperature <= 0.0:
        raise ValueError(f"temperature is {temperature}, but must be positive")
    z = (q - q.max(axis=-1, keepdims=True)) / temperature
    e = np.exp(z.astype(np.float64))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


def softmax(q: Array, temperature: float, rng: np.random.Generator) -> Int64:
    """Actions, int64 [N], drawn from `softmax_probabilities` of ``q`` [N, A]. Raises the same ValueError."""
    cumulative = softmax_probabilities(q, temperature).cumsum(axis=-1)
    draws = rng.random((len(q), 1))
    return np.asarray((draws >= cumulative).sum(axis=-1).clip(max=q.shape[-1] - 1), dtype=np.int64)
