"""Optimizers, and their state as named arrays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from rl.types import Array

OptimizerName = Literal["adam", "rmsprop"]
STATE_KEYS = {"adam": {"step", "exp_avg", "exp_avg_sq"}, "rmsprop": {"step", "square_avg", "grad_avg"}}


def make_optimizer(
    name: OptimizerName,
    parameters: Iterable[nn.Parameter],
    learning_rate: float,
    epsilon: float,
    graph_on: torch.device | None = None,
) -> torch.optim.Optimizer:
    """Adam (Kingma and Ba 2015), or RMSProp as in Mnih et al. 2015 (centred, decay 0.95).

    With ``graph_on``, its steps may be recorded in a CUDA graph on that device; all that they use is on the device.
    """
    in_graph = graph_on is not None
    rate = torch.tensor(learning_rate, device=graph_on) if in_graph else learning_rate
    if name == "rmsprop":
        return torch.optim.RMSprop(parameters, lr=rate, alpha=0.95, eps=epsilon, centered=True, capturable=in_graph)
    return torch.optim.Adam(parameters, lr=rate, eps=epsilon, fused=True, capturable=in_graph)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of the next step."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)  # a CUDA graph reads this tensor
        else:
            group["lr"] = rate


def optimizer_arrays(optimizer: torch.optim.Optimizer) -> dict[str, Array]:
    """A copy of the optimizer's state as arrays named ``INDEX.KEY``, such as "0.exp_avg" for the first parameter.

    Each array has the shape of its parameter, except that ``INDEX.step`` is a scalar.
    """
    state = optimizer.state_dict()["state"]
    tensors = {f"{i}.{key}": value for i, own in state.items() for key, value in own.items()}
    return {name: np.array(x.detach().cpu().numpy()) for name, x in tensors.items()}


def check_optimizer(name: str, arrays: Mapping[str, Array]) -> None:
    """Raise ValueError if ``arrays``, from `optimizer_arrays`, belong to another optimizer than ``name``."""
    found = {key.split(".", 1)[1] for key in arrays}
    owner = next((other for other, keys in STATE_KEYS.items() if found == keys), "another optimizer")
    if found and owner != name:
        titles = {"adam": "Adam", "rmsprop": "RMSProp"}
        raise ValueError(f"the optimizer's state belongs to {titles.get(owner, owner)}, not to {titles[name]}")


def load_optimizer(optimizer: torch.optim.Optimizer, arrays: Mapping[str, Array], device: torch.device) -> None:
    """Inverse of `optimizer_arrays`: copy ``arrays`` into ``optimizer``, on ``device``.

    Raises ValueError when they belong to another network.
    """
    parameters = [p.detach() for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in arrays.items():
        index, key = name.split(".", 1)
        if int(index) >= len(parameters):
            raise ValueError(f"optimizer: {name} belongs to another network, this one has {len(parameters)} parameters")
        tensor, parameter = torch.from_numpy(np.array(value)), parameters[int(index)]
        # use the parameter's memory format, because a fused step reads both in order
        if tensor.shape == parameter.shape:
            tensor = torch.empty_like(parameter, device="cpu").copy_(tensor)
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
