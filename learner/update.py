"""One DQN / Double-DQN update: a batch in, |TD errors| and metrics out.

    loss = mean_b w_b * l(td_b),   td_b by `rl.td`

The networks, the optimizer and the counts of one learner live here; where batches come from does not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from learner.parallel import Parts
from rl import td
from rl.errors import BadInput, RunFault
from rl.networks import QNetwork
from rl.schedules import linear
from rl.types import Array, Float32, SampledBatch


@dataclass(frozen=True)
class UpdateConfig:
    """The update rule."""

    double: bool = True
    """Double DQN: the online network selects, the target network values."""
    loss: Literal["huber", "squared"] = "huber"
    """Loss of a TD error; huber is linear beyond 1."""
    optimizer: Literal["adam", "rmsprop"] = "adam"
    """Adam, or RMSProp as in Mnih et al. 2015."""
    learning_rate: float = 2.5e-4
    """Step size at the first update."""
    learning_rate_end: float = 0.0
    """Step size from update `learning_rate_updates` on."""
    learning_rate_updates: int = 0
    """Learner updates in which the step size goes linearly to `learning_rate_end`; 0: it stays."""
    optimizer_epsilon: float = 1e-5
    """Added to the denominator of Adam or RMSProp."""
    max_grad_norm: float = 10.0
    """Gradients are scaled down to this global norm; 0: never."""
    target_update_period: int = 500  # learner updates
    """Learner updates between hard copies into the target network."""
    target_tau: float = 0.0
    """Soft update instead: target += tau * (online - target) after every update; 0: hard copies."""
    bf16: bool = False
    """bfloat16 autocast in the forward and backward passes (weights and optimizer stay float32)."""

    def __post_init__(self) -> None:
        if self.learning_rate_end < 0 or self.learning_rate_updates < 0:
            raise BadInput("learner: learning_rate_end and learning_rate_updates must be 0 or more")
        if self.learning_rate <= 0 or self.optimizer_epsilon <= 0:
            raise BadInput("learner: learning_rate and optimizer_epsilon must be positive")
        if self.max_grad_norm < 0 or not 0.0 <= self.target_tau <= 1.0:
            raise BadInput("learner: max_grad_norm must be 0 or more, target_tau from 0 to 1")
        if self.target_update_period < 1:
            raise BadInput(f"learner.target_update_period is {self.target_update_period}: write at least 1 update")


class Batch:
    """A `SampledBatch` as tensors on the learner's device.

    On the CPU pixels are widened to ``dtype`` here, in the thread that prepares batches; a GPU gets them as bytes, which
    are cheaper to send, and widens them itself.
    """

    def __init__(self, sampled: SampledBatch, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        t = sampled.transitions
        self.s_tm1, self.s_t = _to(t.s_tm1, device), _to(t.s_t, device)
        if device.type == "cpu":
            self.s_tm1, self.s_t = self.s_tm1.to(dtype), self.s_t.to(dtype)
        self.a_tm1, self.r_t, self.discount_t = _to(t.a_tm1, device), _to(t.r_t, device), _to(t.discount_t, device)
        self.weights = _to(sampled.weights, device)


def _to(x: Array, device: torch.device) -> Tensor:
    tensor = torch.from_numpy(x if x.flags.writeable else x.copy())
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class Updater:
    """Online and target network, optimizer, and the number of updates made; ``threads`` share a batch (on the CPU)."""

    def __init__(
        self, config: UpdateConfig, online: QNetwork, target: QNetwork, device: torch.device, threads: int = 1
    ) -> None:
        self.config, self.device = config, device
        self._parts = Parts(threads if device.type == "cpu" else 1)
        self.online, self.target = online.to(device), target.to(device).requires_grad_(False)
        if device.type == "cuda":
            for network in (self.online, self.target):
                network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.target.load_state_dict(self.online.state_dict())
        self.optimizer = _make_optimizer(config, self.online)
        self.updates = 0
        self.target_syncs = 0

    def batch(self, sampled: SampledBatch) -> Batch:
        """``sampled`` made ready for `update`; may be called from another thread."""
        return Batch(sampled, self.device, torch.bfloat16 if self.config.bf16 else torch.float32)

    def update(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """One gradient step; returns |TD error| [B] and scalar tensors by name (no device synchronisation is forced)."""
        c = self.config
        size = len(batch.a_tm1)
        parts = self._parts.map(lambda part: self._gradients(batch, part, size), size)
        gradients, errors, losses, values = (list(column) for column in zip(*parts, strict=True))
        total = list(gradients[0])
        for other in gradients[1:]:
            torch._foreach_add_(total, list(other))
        for parameter, gradient in zip(self.online.parameters(), total, strict=True):
            parameter.grad = gradient
        norm = nn.utils.clip_grad_norm_(self.online.parameters(), c.max_grad_norm or float("inf"))
        self._set_learning_rate()
        self.optimizer.step()
        self.updates += 1
        self._sync_target()
        metrics = {"loss": torch.stack(losses).sum(), "grad_norm": norm, "q_mean": torch.cat(values).mean()}
        return torch.cat(errors).abs(), metrics

    def _gradients(self, batch: Batch, part: slice, size: int) -> tuple[tuple[Tensor, ...], Tensor, Tensor, Tensor]:
        """Of one part of a batch of ``size``: its share of the gradient and of the loss, TD errors, values of s_tm1."""
        c = self.config
        with self._autocast():
            with torch.no_grad():
                q_t_value = self.target(batch.s_t[part])
                q_t_selector = self.online(batch.s_t[part]) if c.double else q_t_value
            q_tm1 = self.online(batch.s_tm1[part])
        error = td.double_q_error(
            q_tm1, batch.a_tm1[part], batch.r_t[part], batch.discount_t[part], q_t_value, q_t_selector
        )
        losses = td.huber(error) if c.loss == "huber" else td.squared(error)
        loss = td.weighted_loss(losses, batch.weights[part]) * (len(error) / size)
        gradients = torch.autograd.grad(loss, list(self.online.parameters()))
        return gradients, error.detach(), loss.detach(), q_tm1.detach()

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        # no cache: it is the process's, and a weight cast without gradient in one thread would serve another's graph
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.bf16, cache_enabled=False)

    def _set_learning_rate(self) -> None:
        c = self.config
        if c.learning_rate_updates:
            rate = linear(c.learning_rate, c.learning_rate_end, c.learning_rate_updates, self.updates)
            for group in self.optimizer.param_groups:
                group["lr"] = rate

    @torch.no_grad()
    def _sync_target(self) -> None:
        tau = self.config.target_tau
        if tau:
            for target, online in zip(self.target.parameters(), self.online.parameters(), strict=True):
                target.lerp_(online, tau)
            if self.updates % self.config.target_update_period == 0:
                self.target_syncs += 1  # readers learn of a soft target at the same period
        elif self.updates % self.config.target_update_period == 0:
            self.target.load_state_dict(self.online.state_dict())
            self.target_syncs += 1

    def get_state(self) -> dict[str, dict[str, Array]]:
        """Everything that the next update depends on, as named arrays in three groups."""
        return {
            "online": _arrays(self.online.state_dict()),
            "target": _arrays(self.target.state_dict()),
            "optimizer": _optimizer_arrays(self.optimizer),
        }

    def set_state(self, state: Mapping[str, Mapping[str, Array]], updates: int, target_syncs: int) -> None:
        """Inverse of `get_state`. Raises ValueError when it is of another network."""
        for module, name in ((self.online, "online"), (self.target, "target")):
            try:
                module.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in state[name].items()})
            except RuntimeError as error:
                raise ValueError(
                    f"{name}: weights of another network ({str(error).splitlines()[-1].strip()})"
                ) from error
        _load_optimizer(self.optimizer, state["optimizer"], self.device)
        self.updates, self.target_syncs = updates, target_syncs


def _make_optimizer(config: UpdateConfig, network: QNetwork) -> torch.optim.Optimizer:
    if config.optimizer == "rmsprop":
        return torch.optim.RMSprop(
            network.parameters(), lr=config.learning_rate, alpha=0.95, eps=config.optimizer_epsilon, centered=True
        )
    return torch.optim.Adam(network.parameters(), lr=config.learning_rate, eps=config.optimizer_epsilon, fused=True)


def _arrays(tensors: Mapping[str, Tensor]) -> dict[str, Array]:
    return {name: np.array(x.detach().cpu().contiguous().numpy()) for name, x in tensors.items()}


def _optimizer_arrays(optimizer: torch.optim.Optimizer) -> dict[str, Array]:
    state = optimizer.state_dict()["state"]
    return _arrays({f"{i}.{key}": value for i, own in state.items() for key, value in own.items()})


def _load_optimizer(optimizer: torch.optim.Optimizer, arrays: Mapping[str, Array], device: torch.device) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in arrays.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = torch.from_numpy(np.array(value))
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def metric_values(metrics: Mapping[str, Tensor]) -> dict[str, float]:
    """The scalars as floats (this waits for the device)."""
    return {name: float(x) for name, x in metrics.items()}


def td_abs_array(td_abs: Tensor) -> Float32:
    """|TD error| [B] on the CPU as numpy; raises RunFault on one that is not finite (the run has diverged)."""
    values = td_abs.float().cpu().numpy()
    if not np.isfinite(values).all():
        raise RunFault("a TD error is not finite: the learner has diverged; write a smaller learning rate")
    return values
