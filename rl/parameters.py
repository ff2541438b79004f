"""Weights as named arrays, and named arrays as the bytes of a .safetensors file. Nothing is unpickled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from safetensors.numpy import load, save

from rl.types import Array

if TYPE_CHECKING:
    from torch import nn


def weights_of(module: nn.Module) -> dict[str, Array]:
    """Copies of a module's parameters and buffers, by name, as numpy arrays."""
    return {name: np.array(x.detach().cpu().numpy()) for name, x in module.state_dict().items()}


def bytes_of(weights: Mapping[str, Array]) -> int:
    """Number of bytes of the arrays."""
    return sum(x.nbytes for x in weights.values())


def load_weights(module: nn.Module, weights: Mapping[str, Array]) -> None:
    """Copy ``weights`` into the parameters and buffers of ``module``. Raises ValueError if names or shapes differ."""
    own = module.state_dict()
    if own.keys() != weights.keys():
        name, *others = sorted(own.keys() ^ weights.keys())
        differing = f"{name} and {len(others)} more are" if others else f"{name} is"
        raise ValueError(f"weights of another network ({differing} in only one of the two)")
    for name, x in own.items():
        if tuple(x.shape) != weights[name].shape:
            raise ValueError(
                f"weights of another network ({name} has the shape {weights[name].shape}, not {tuple(x.shape)})"
            )
    import torch  # here, because a process that only passes weights on does not need it

    with torch.no_grad():
        for name, x in own.items():
            x.copy_(torch.from_numpy(np.array(weights[name])))


def to_bytes(arrays: Mapping[str, Array]) -> bytes:
    """The content of a .safetensors file that holds the named arrays."""
    # ascontiguousarray turns scalars into vectors; reshape undoes that
    return save({name: np.ascontiguousarray(x).reshape(x.shape) for name, x in arrays.items()})


def from_bytes(data: bytes) -> dict[str, Array]:
    """The named arrays in the content of a .safetensors file. Raises ValueError if it is damaged."""
    try:
        return load(data)
    except Exception as error:  # safetensors raises its own type, which is not exported
        raise ValueError(f"damaged safetensors file: {error}") from error
