"""One DQN / Double-DQN update: a batch in, |TD errors| and metrics out (Mnih et al. 2015; van Hasselt et al. 2016).

    loss = mean_b w_b * l(td_b),   td_b by `rl.td`

This holds the networks, the optimizer and the counts of one learner; it does not know where batches come from.
"""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from learner.optimizers import (
    OptimizerName,
    check_optimizer,
    load_optimizer,
    make_optimizer,
    optimizer_arrays,
)
from rl import td
from rl.bounds import at_least, between, positive
from rl.errors import RunFault
from rl.networks import QNetwork
from rl.parameters import weights_of
from rl.pixels import channels_last
from rl.precision import Precision, pick_dtype
from rl.resuming import Rules, rules
from rl.schedules import linear
from rl.types import Array, Float32, SampledBatch

FREEZE_PERIOD = 4  # updates


@dataclass(frozen=True)
class UpdateConfig:
    """The update rule."""

    double: bool = True
    """Double DQN (van Hasselt et al. 2016): the online network selects the action, the target network evaluates it."""
    loss: Literal["huber", "squared"] = "huber"
    """Loss of a TD error; huber is quadratic up to |TD error| = 1 and linear beyond."""
    optimizer: OptimizerName = "adam"
    """Adam, or RMSProp as in Mnih et al. 2015."""
    learning_rate: float = 2.5e-4
    """Learning rate at the first update."""
    learning_rate_end: float = 0.0
    """Learning rate from update `learning_rate_updates` on."""
    learning_rate_updates: int = 0
    """Learner updates over which the learning rate changes linearly to `learning_rate_end`; 0: it is constant."""
    optimizer_epsilon: float = 1e-5
    """Added to the denominator of Adam or RMSProp."""
    max_grad_norm: float = 10.0
    """Gradients are clipped to this global norm; 0: no clipping."""
    target_update_period: int = 500  # learner updates
    """Learner updates between copies of the online network into the target network."""
    target_tau: float = 0.0
    """Soft target updates instead of copies: target += tau * (online - target) after every update; 0: copies."""
    average_tau: float = 0.0
    """Act and evaluate with a moving average of the weights: average += average_tau * (online - average) after every
    update (Polyak and Juditsky 1992); 0: with the online network."""
    precision: Precision = "float32"
    """Precision of forward and backward passes: float32; bfloat16 by autocast (weights and optimizer state stay
    float32); auto: bfloat16 if the hardware supports it, else float32."""

    on_resume: ClassVar[Rules] = rules(
        may="loss learning_rate learning_rate_end learning_rate_updates optimizer_epsilon max_grad_norm "
        "target_update_period target_tau precision",
        stays="optimizer",
        double="the network was trained on the old kind of target so far",
        average_tau="a change from 0 starts the average at the current weights; a change to 0 drops the average",
    )

    def __post_init__(self) -> None:
        positive(self, "learning_rate", "optimizer_epsilon")
        at_least(self, 0, "learning_rate_end")
        at_least(self, 0, "learning_rate_updates", unit="learner updates")
        at_least(self, 0, "max_grad_norm", zero="no bound")
        at_least(self, 1, "target_update_period", unit="learner update")
        between(self, 0, 1, "target_tau", "average_tau")


@dataclass(frozen=True, eq=False)
class Batch:
    """A `SampledBatch` as tensors on the learner's device; ``target`` [B] where it was computed ahead of the update."""

    s_tm1: Tensor
    a_tm1: Tensor
    r_t: Tensor
    discount_t: Tensor
    s_t: Tensor
    weights: Tensor
    target: Tensor | None = None


def _to(x: Array, device: torch.device) -> Tensor:
    tensor = torch.from_numpy(x if x.flags.writeable else x.copy())
    if device.type == "cuda":
        dense = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)  # the two stacks are views of one buffer
        return dense.copy_(tensor).to(device, non_blocking=True)
    return tensor.to(device)


class _Frozen:
    """Copies of networks in ``dtype``. Hold ``lock`` while reading them."""

    def __init__(self, networks: tuple[QNetwork, ...], dtype: torch.dtype) -> None:
        self.networks = tuple(copy.deepcopy(n).to(dtype).requires_grad_(False) for n in networks)
        self.lock = threading.Lock()

    def renew(self, networks: tuple[QNetwork, ...]) -> None:
        """Copy the state of ``networks``; waits while another thread reads."""
        with self.lock:
            for old, new in zip(self.networks, networks, strict=True):
                old.load_state_dict(new.state_dict())


class Updater:
    """Online and target network, optimizer, and the number of updates made.

    With ``concurrent`` the targets of a batch are computed in `prepare`, which another thread may call while `update`
    makes a gradient step (decisions/0004). `prepare` then reads copies of the networks, renewed every FREEZE_PERIOD
    updates and at each target sync. There are two sets of copies, one to read and one to renew, so that `update` waits
    for a reader only when it began before the last renewal. Otherwise `update` computes the targets, with the current
    weights.
    """

    def __init__(
        self, config: UpdateConfig, online: QNetwork, target: QNetwork, device: torch.device, concurrent: bool = False
    ) -> None:
        self.config, self.device = config, device
        self.online, self.target = online.to(device), target.to(device).requires_grad_(False)
        self.dtype = pick_dtype(config.precision, device)
        # on a CPU float32 gains a sixth, bfloat16 nothing (converting its pixels into that order takes longer)
        last = device.type == "cuda" or (device.type == "cpu" and self.dtype == torch.float32)
        self._order = torch.channels_last if last else torch.contiguous_format
        for network in (self.online, self.target):
            network.to(memory_format=self._order)  # type: ignore[call-overload]
        self.target.load_state_dict(self.online.state_dict())
        self.acting = self.online
        if config.average_tau:
            self.acting = copy.deepcopy(self.online).requires_grad_(False)
        self._average = get_ema_multi_avg_fn(1.0 - config.average_tau)
        self.optimizer = make_optimizer(
            config.optimizer, self.online.parameters(), config.learning_rate, config.optimizer_epsilon
        )
        self.updates = 0
        self.target_syncs = 0
        self._to_center = self.online.background is not None  # on the first batch
        # what `prepare` reads, and what is renewed next
        self._frozen, self._spare = (self._copies() if concurrent else None for _ in range(2))

    def prepare(self, sampled: SampledBatch) -> Batch:
        """A `Batch` of ``sampled`` on the device, ready for `update`. The first one sets the background of pixels."""
        t = sampled.transitions
        s_tm1, s_t = self._observations(t.s_tm1), self._observations(t.s_t)
        a_tm1, r_t, discount_t, weights = (_to(x, self.device) for x in (t.a_tm1, t.r_t, t.discount_t, sampled.weights))
        batch = Batch(s_tm1, a_tm1, r_t, discount_t, s_t, weights)
        if self._to_center:
            self._center(s_tm1)
        frozen = self._frozen
        if frozen is None:
            return batch
        with frozen.lock:
            return replace(batch, target=self._target(batch, *frozen.networks))

    def _center(self, observations: Tensor) -> None:
        """From now on subtract the median of ``observations`` [B, C, H, W] in every network; no update was made yet."""
        background = observations.cpu().median(dim=0).values
        copies = [network for frozen in (self._frozen, self._spare) if frozen for network in frozen.networks]
        for network in (*self._named.values(), *copies):
            assert network.background is not None
            network.background.copy_(background)
        self._to_center = False

    @torch.no_grad()
    def _target(self, batch: Batch, target: QNetwork, online: QNetwork | None = None) -> Tensor:
        """r_t + discount_t * q_target(s_t, argmax_a q_online(s_t, a)), [B]; without ``online``, q_target selects too."""
        with self._autocast():
            q_t_value = target(batch.s_t)
            q_t_selector = q_t_value if online is None else online(batch.s_t)
        return td.double_q_target(batch.r_t, batch.discount_t, q_t_value, q_t_selector)

    def _observations(self, x: Array) -> Tensor:
        """Observations as bytes for a GPU, and for networks that subtract a background.

        Other observations are converted to the network's dtype here, outside the gradient step.
        """
        observations = _to(x, self.device)
        if self.device.type == "cpu" and self.online.background is None:
            last = self._order == torch.channels_last and observations.ndim == 4
            return channels_last(observations, self.dtype) if last else observations.to(self.dtype)
        return observations

    def update(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Make one gradient step on the loss above; returns |TD error| [B] and scalar tensors by name.

        Gradients are clipped by their global norm. Then the average of the weights (Polyak and Juditsky 1992) moves by
        average_tau * (online - average), and the target network by a copy, or by target_tau * (online - target).
        Nothing here waits for the device.
        """
        c = self.config
        target = self._target(batch, *self._networks) if batch.target is None else batch.target
        with self._autocast():
            q_tm1 = self.online(batch.s_tm1)
        error = td.td_error(q_tm1, batch.a_tm1, target)
        losses = td.huber(error) if c.loss == "huber" else td.squared(error)
        loss = td.weighted_loss(losses, batch.weights)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.online.parameters(), c.max_grad_norm or float("inf"))
        self._set_learning_rate()
        self.optimizer.step()
        if self.acting is not self.online:
            self._average(list(self.acting.parameters()), list(self.online.parameters()), self.updates)
        self.updates += 1
        synced = self._sync_target()
        if synced or self.updates % FREEZE_PERIOD == 0:
            self._freeze()
        metrics = {"loss": loss.detach(), "grad_norm": norm, "q_mean": q_tm1.detach().mean()}
        return error.detach().abs(), metrics

    @property
    def _networks(self) -> tuple[QNetwork, ...]:
        """The networks that a target is computed from."""
        return (self.target, self.online) if self.config.double else (self.target,)

    @property
    def _named(self) -> dict[str, QNetwork]:
        """The networks by the name of their group in a state."""
        average = {} if self.acting is self.online else {"average": self.acting}
        return {"online": self.online, "target": self.target, **average}

    def _copies(self) -> _Frozen:
        return _Frozen(self._networks, self.dtype)

    def _freeze(self) -> None:
        """Renew the copies that `prepare` reads."""
        if self._spare is not None:
            self._spare.renew(self._networks)
            self._frozen, self._spare = self._spare, self._frozen

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        # no cache: it belongs to the process, and the two halves run in two threads
        enabled = self.dtype == torch.bfloat16
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled, cache_enabled=False)

    def _set_learning_rate(self) -> None:
        c = self.config
        if c.learning_rate_updates:
            rate = linear(c.learning_rate, c.learning_rate_end, c.learning_rate_updates, self.updates)
            for group in self.optimizer.param_groups:
                group["lr"] = rate

    @torch.no_grad()
    def _sync_target(self) -> bool:
        """Update the target network where it is due; returns whether a full period has passed."""
        tau, due = self.config.target_tau, self.updates % self.config.target_update_period == 0
        self.target_syncs += due  # readers learn of a soft target at the same period
        if tau:
            for target, online in zip(self.target.parameters(), self.online.parameters(), strict=True):
                target.lerp_(online, tau)
        elif due:
            self.target.load_state_dict(self.online.state_dict())
        return due

    def get_state(self) -> dict[str, dict[str, Array]]:
        """The state as groups of named arrays: online, target, optimizer, and average where there is one."""
        arrays = {name: weights_of(network) for name, network in self._named.items()}
        return {**arrays, "optimizer": optimizer_arrays(self.optimizer)}

    def set_state(self, state: Mapping[str, Mapping[str, Array]], updates: int, target_syncs: int) -> None:
        """Inverse of `get_state`, with the counts of updates and target syncs made.

        An average that ``state`` lacks begins at the online weights. Raises ValueError when the state is of another
        network or optimizer.
        """
        check_optimizer(self.config.optimizer, state["optimizer"])
        groups = {"average": state["online"], **state}
        for name, module in self._named.items():
            try:
                module.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in groups[name].items()})
            except RuntimeError as error:
                raise ValueError(
                    f"{name}: weights of another network ({str(error).splitlines()[-1].strip()})"
                ) from error
        load_optimizer(self.optimizer, state["optimizer"], self.device)
        self.updates, self.target_syncs = updates, target_syncs
        self._to_center = self._to_center and updates == 0
        self._freeze()


def metric_values(metrics: Mapping[str, Tensor]) -> dict[str, float]:
    """The scalar tensors as floats; this waits for the device."""
    return {name: float(x) for name, x in metrics.items()}


def td_abs_array(td_abs: Tensor) -> Float32:
    """|TD error|, float32 [B] on the CPU. Raises RunFault when one is not finite (the run has diverged)."""
    values = td_abs.float().cpu().numpy()
    if not np.isfinite(values).all():
        raise RunFault("a TD error is not finite: the learner has diverged; write a smaller learning rate")
    return values
