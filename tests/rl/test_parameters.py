"""Weights as arrays and as the bytes of a file; weights that do not fit are rejected."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rl.parameters import from_bytes, load_weights, to_bytes, weights_of


def network(width=3):
    return torch.nn.Sequential(torch.nn.Linear(2, width), torch.nn.BatchNorm1d(width))  # with buffers too


def test_arrays_of_any_shape_and_memory_order_round_trip_through_bytes(rng):
    arrays = {
        "scalar": np.float32(3.0).reshape(()),
        "empty": np.zeros((0, 4), np.int64),
        "transposed": rng.normal(size=(3, 5)).astype(np.float32).T,
        "every other": np.arange(10, dtype=np.uint8)[::2],
    }
    got = from_bytes(to_bytes(arrays))
    assert got.keys() == arrays.keys()
    for name, x in arrays.items():
        assert (got[name].shape, got[name].dtype) == (x.shape, x.dtype), name
        np.testing.assert_array_equal(got[name], x)


def test_weights_are_a_copy_and_load_with_their_buffers():
    one, other = network(), network()
    one(torch.randn(8, 2))  # moves the running mean
    weights = weights_of(one)
    assert any(name.endswith("running_mean") and x.any() for name, x in weights.items())
    with torch.no_grad():
        next(one.parameters()).zero_()
    assert weights["0.weight"].any()
    load_weights(other, weights)
    for name, x in weights_of(other).items():
        np.testing.assert_array_equal(x, weights[name])
    weights["0.weight"][:] = 7.0
    assert not (weights_of(other)["0.weight"] == 7.0).any()


def test_weights_of_another_network_are_rejected_and_change_nothing():
    own = network()
    before = weights_of(own)
    with pytest.raises(ValueError, match=r"0.weight has the shape \(4, 2\), not \(3, 2\)"):
        load_weights(own, weights_of(network(4)))
    last = {**{name: x + 1 for name, x in before.items()}, "1.running_var": np.ones(4, np.float32)}
    with pytest.raises(ValueError, match=r"1.running_var has the shape \(4,\), not \(3,\)"):
        load_weights(own, last)
    with pytest.raises(ValueError, match=r"\(0.bias is in only one of the two\)$"):
        load_weights(own, {name: x for name, x in before.items() if name != "0.bias"})
    for name, x in weights_of(own).items():
        np.testing.assert_array_equal(x, before[name])


@pytest.mark.parametrize("damaged", [b"", b"x" * 40, to_bytes({"w": np.ones(9, np.float32)})[:-1]])
def test_damaged_bytes_raise_a_value_error(damaged):
    with pytest.raises(ValueError, match="damaged safetensors file"):
        from_bytes(damaged)
