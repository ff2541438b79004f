"""Optimizers: their steps, with the arithmetic written out, and their state as arrays."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from learner.optimizers import check_optimizer, load_optimizer, make_optimizer, optimizer_arrays

CPU = torch.device("cpu")
NAMES = ("adam", "rmsprop")


def parameters(*values):
    return [torch.nn.Parameter(torch.tensor(v, dtype=torch.float32)) for v in values]


def step(optimizer, own, *gradients):
    for p, g in zip(own, gradients, strict=True):
        p.grad = torch.tensor(g, dtype=torch.float32)
    optimizer.step()


def test_rmsprop_is_centred_with_decay_095():
    """For the gradient 2: mean square 0.05 * 4, mean 0.05 * 2; w -= lr g / (sqrt(mean square - mean^2) + epsilon)."""
    own = parameters([1.0])
    step(make_optimizer("rmsprop", own, 0.1, 0.01), own, [2.0])
    assert own[0].item() == pytest.approx(1.0 - 0.1 * 2.0 / ((0.05 * 4 - (0.05 * 2) ** 2) ** 0.5 + 0.01))


def test_adams_first_step_has_the_size_of_the_learning_rate():
    own = parameters([1.0, 1.0])
    step(make_optimizer("adam", own, 0.1, 0.5), own, [2.0, -30.0])
    assert own[0].tolist() == pytest.approx([1.0 - 0.1 * 2 / (2 + 0.5), 1.0 + 0.1 * 30 / (30 + 0.5)], rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_restored_optimizer_makes_the_same_next_step(name):
    first = parameters([1.0, -1.0], [[0.5], [2.0]])
    optimizer = make_optimizer(name, first, 0.1, 1e-3)
    for k in range(3):
        step(optimizer, first, [1.0, k], [[0.3], [-k]])
    arrays = optimizer_arrays(optimizer)
    assert all(isinstance(x, np.ndarray) for x in arrays.values())
    check_optimizer(name, arrays)
    second = parameters(*(p.tolist() for p in first))
    again = make_optimizer(name, second, 0.1, 1e-3)
    load_optimizer(again, arrays, CPU)
    for own, at in ((first, optimizer), (second, again)):
        step(at, own, [0.7, 0.1], [[1.0], [2.0]])
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


def test_optimizer_arrays_are_copies():
    own = parameters([1.0])
    optimizer = make_optimizer("adam", own, 0.1, 1e-3)
    step(optimizer, own, [1.0])
    arrays = optimizer_arrays(optimizer)
    before = {name: x.copy() for name, x in arrays.items()}
    step(optimizer, own, [5.0])
    for name, x in arrays.items():
        np.testing.assert_array_equal(x, before[name])


@pytest.mark.parametrize(
    ("made", "wanted", "words"),
    [("adam", "rmsprop", "belongs to Adam, not to RMSProp"), ("rmsprop", "adam", "belongs to RMSProp, not to Adam")],
)
def test_the_state_of_another_optimizer_is_rejected(made, wanted, words):
    own = parameters([1.0])
    optimizer = make_optimizer(made, own, 0.1, 1e-3)
    step(optimizer, own, [1.0])
    with pytest.raises(ValueError, match=words):
        check_optimizer(wanted, optimizer_arrays(optimizer))
    with pytest.raises(ValueError, match="another optimizer"):
        check_optimizer(wanted, {"0.momentum": np.zeros(1)})
    check_optimizer(wanted, {})  # an optimizer has no state before its first step


def test_the_state_of_a_larger_network_is_rejected():
    larger = parameters([1.0], [2.0])
    optimizer = make_optimizer("adam", larger, 0.1, 0.01)
    step(optimizer, larger, [1.0], [1.0])
    with pytest.raises(ValueError, match="another network, this one has 1 parameters"):
        load_optimizer(make_optimizer("adam", parameters([1.0]), 0.1, 0.01), optimizer_arrays(optimizer), CPU)
