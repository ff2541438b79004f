"""From action values to actions. Legend: ``q`` action values [N, A], ``epsilons`` [N]."""

from __future__ import annotations

import numpy as np

from rl.types import Array, Float64, Int64


def greedy(q: Array) -> Int64:
    """argmax_a q(s, a) of each row [N, A] -> [N]; ties go to the first."""
    return np.asarray(q.argmax(axis=-1), dtype=np.int64)


def epsilon_greedy(q: Array, epsilons: Array | float, rng: np.random.Generator) -> Int64:
    """With probability epsilon a uniformly random action, else the greedy one; q [N, A], epsilons [N] or one for all."""
    count, actions = q.shape
    random = rng.integers(0, actions, size=count)
    return np.where(rng.random(count) < epsilons, random, greedy(q))


def epsilon_greedy_probabilities(q: Array, epsilon: float) -> Float64:
    """(1 - epsilon) for the greedy action and epsilon / A for each, row by row, [N, A]."""
    probabilities = np.full(q.shape, epsilon / q.shape[-1])
    probabilities[np.arange(len(q)), greedy(q)] += 1.0 - epsilon
    return probabilities


def softmax_probabilities(q: Array, temperature: float) -> Float64:
    """Boltzmann: exp(q / T) / sum exp(q / T), row by row, [N, A]; T > 0 in units of reward."""
    if temperature <= 0.0:
        raise ValueError(f"temperature is {temperature}: it must be positive")
    z = (q - q.max(axis=-1, keepdims=True)) / temperature
    e = np.exp(z.astype(np.float64))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


def softmax(q: Array, temperature: float, rng: np.random.Generator) -> Int64:
    """Actions drawn from `softmax_probabilities`, [N]."""
    cumulative = softmax_probabilities(q, temperature).cumsum(axis=-1)
    draws = rng.random((len(q), 1))
    return np.asarray((draws >= cumulative).sum(axis=-1).clip(max=q.shape[-1] - 1), dtype=np.int64)
