"""The update of DQN and Double DQN (Mnih et al. 2015, algorithm 1; van Hasselt et al. 2016, equation 4).

The loss has the importance weights w_b, the TD errors td_b from `rl.td`, and l the Huber or the squared loss:

    loss = mean_b w_b * l(td_b)
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

from learner.batch import Batch, to_device, to_host
from learner.cuda_graph import GraphedStep
from learner.optimizers import (
    OptimizerName,
    check_optimizer,
    load_optimizer,
    make_optimizer,
    optimizer_arrays,
    set_learning_rate,
)
from rl import td
from rl.bounds import at_least, between, positive
from rl.errors import RunFault
from rl.networks import QNetwork
from rl.parameters import weights_of
from rl.pixels import to_channels_last
from rl.precision import Precision, pick_dtype
from rl.resuming import Rules, rules
from rl.schedules import linear
from rl.types import Array, Float32, SampledBatch

COPY_PERIOD = 4  # updates between renewals of the copies that `Updater.prepare` reads


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
        at_least(self, 0, "max_grad_norm", zero="no clipping")
        at_least(self, 1, "target_update_period", unit="learner update")
        between(self, 0, 1, "target_tau", "average_tau")


class _NetworkCopies:
    """Copies of networks in ``dtype``. Readers must hold ``lock``."""

    def __init__(self, networks: tuple[QNetwork, ...], dtype: torch.dtype) -> None:
        self.networks = tuple(copy.deepcopy(n).to(dtype).requires_grad_(False) for n in networks)
        self.lock = threading.Lock()

    def renew(self, networks: tuple[QNetwork, ...]) -> None:
        """Copy the weights of ``networks``. Waits while another thread reads the copies."""
        with self.lock:
            for old, new in zip(self.networks, networks, strict=True):
                old.load_state_dict(new.state_dict())


class Updater:
    """The online network, the target network, the optimizer, and the number of updates made.

        updater = Updater(config, online, target, device)
        td_abs, metrics = updater.update(updater.prepare(sampled))  # once for each batch

    ``acting_network`` is the network to act with and to evaluate: the average if there is one, else the online network.

    With ``concurrent``, `prepare` computes the targets, and another thread may call it while `update` makes a gradient
    step (decisions/0004). `prepare` then reads copies of the networks, which are renewed every COPY_PERIOD updates and
    at each target sync. There are two sets of copies, one to read and one to renew, so `update` waits only for a call
    of `prepare` that began before the last renewal. Without ``concurrent``, `update` computes the targets with the
    current weights.
    """

    def __init__(
        self, config: UpdateConfig, online: QNetwork, target: QNetwork, device: torch.device, concurrent: bool = False
    ) -> None:
        self.config, self.device = config, device
        self.online, self.target = online.to(device), target.to(device).requires_grad_(False)
        self.dtype = pick_dtype(config.precision, device)
        # On a CPU channels-last makes float32 a sixth faster. bfloat16 gains nothing: converting its pixels costs more.
        channels_last = device.type == "cuda" or (device.type == "cpu" and self.dtype == torch.float32)
        self._memory_format = torch.channels_last if channels_last else torch.contiguous_format
        for network in (self.online, self.target):
            network.to(memory_format=self._memory_format)  # type: ignore[call-overload]
        self.target.load_state_dict(self.online.state_dict())
        self.acting_network = self.online
        if config.average_tau:
            self.acting_network = copy.deepcopy(self.online).requires_grad_(False)
        self.optimizer = make_optimizer(
            config.optimizer,
            self.online.parameters(),
            config.learning_rate,
            config.optimizer_epsilon,
            graph_on=device if device.type == "cuda" else None,
        )
        self._step = GraphedStep(self._make_step, device) if device.type == "cuda" else self._make_step
        self.updates = 0
        self.target_syncs = 0
        self._needs_background = self.online.background is not None  # the first batch sets it
        # `prepare` reads the active copies, `_renew_copies` writes the spare ones
        self._active_copies, self._spare_copies = (self._make_copies() if concurrent else None for _ in range(2))

    def prepare(self, sampled: SampledBatch) -> Batch:
        """Convert ``sampled`` to a `Batch` for `update`.

        If the networks subtract a background, the first call computes it from ``sampled``.
        """
        t = sampled.transitions
        s_tm1, s_t = self._prepare_observations(t.s_tm1), self._prepare_observations(t.s_t)
        a_tm1, r_t, discount_t, weights = (
            to_device(x, self.device) for x in (t.a_tm1, t.r_t, t.discount_t, sampled.weights)
        )
        batch = Batch(s_tm1, a_tm1, r_t, discount_t, s_t, weights)
        if self._needs_background:
            self._set_background(s_tm1)
        copies = self._active_copies
        if copies is None:
            return batch
        with copies.lock:
            return replace(batch, target=self._compute_targets(batch, *copies.networks))

    def _set_background(self, observations: Tensor) -> None:
        """Make the median of ``observations`` [B, C, H, W] the background of every network. Call before any update."""
        background = observations.cpu().median(dim=0).values
        copies = [n for copies in (self._active_copies, self._spare_copies) if copies for n in copies.networks]
        for network in (*self._networks_by_name.values(), *copies):
            assert network.background is not None
            network.background.copy_(background)
        self._needs_background = False

    @torch.no_grad()
    def _compute_targets(self, batch: Batch, target: QNetwork, online: QNetwork | None = None) -> Tensor:
        """r_t + discount_t * q_target(s_t, argmax_a q_online(s_t, a)), [B]. Without ``online``: argmax_a q_target."""
        with self._autocast():
            q_t_value = target(batch.s_t)
            q_t_selector = q_t_value if online is None else online(batch.s_t)
        return td.double_q_target(batch.r_t, batch.discount_t, q_t_value, q_t_selector)

    def _prepare_observations(self, x: Array) -> Tensor:
        """Copy observations to the device. On a CPU, also convert them to the network's dtype and memory format.

        This moves the conversion out of the gradient step. Observations keep their dtype on other devices, and for
        networks that subtract a background.
        """
        observations = to_device(x, self.device)
        if self.device.type == "cpu" and self.online.background is None:
            channels_last = self._memory_format == torch.channels_last and observations.ndim == 4
            return to_channels_last(observations, self.dtype) if channels_last else observations.to(self.dtype)
        return observations

    def update(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Make one gradient step. Returns (|TD error| [B], metrics as scalar tensors by name: loss, grad_norm, q_mean).

        Gradients are clipped to the global norm ``max_grad_norm``. After the step the average and the target network
        are updated as configured. This method does not wait for the device. On a CUDA device the next call overwrites
        the returned tensors.
        """
        self._set_learning_rate()
        td_abs, metrics = self._step(batch)
        self.updates += 1
        synced = self._sync_target()
        if synced or self.updates % COPY_PERIOD == 0:
            self._renew_copies()
        return td_abs, metrics

    def _make_step(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The part of `update` that is the same in each update, so that it can be replayed as a CUDA graph."""
        c = self.config
        target = self._compute_targets(batch, *self._networks_for_targets) if batch.target is None else batch.target
        with self._autocast():
            q_tm1 = self.online(batch.s_tm1)
        error = td.td_error(q_tm1, batch.a_tm1, target)
        losses = td.huber(error) if c.loss == "huber" else td.squared(error)
        loss = td.weighted_loss(losses, batch.weights)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.online.parameters(), c.max_grad_norm or float("inf"))
        self.optimizer.step()
        if self.acting_network is not self.online:
            _move_towards(self.acting_network, self.online, c.average_tau)
        if c.target_tau:
            _move_towards(self.target, self.online, c.target_tau)
        return error.detach().abs(), {"loss": loss.detach(), "grad_norm": norm, "q_mean": q_tm1.detach().mean()}

    @property
    def _networks_for_targets(self) -> tuple[QNetwork, ...]:
        """The arguments of `_compute_targets` after the batch."""
        return (self.target, self.online) if self.config.double else (self.target,)

    @property
    def _networks_by_name(self) -> dict[str, QNetwork]:
        """The networks by their name in `get_state`."""
        average = {} if self.acting_network is self.online else {"average": self.acting_network}
        return {"online": self.online, "target": self.target, **average}

    def _make_copies(self) -> _NetworkCopies:
        return _NetworkCopies(self._networks_for_targets, self.dtype)

    def _renew_copies(self) -> None:
        """Renew the spare copies, then let `prepare` read them and make the others the spare ones."""
        if self._spare_copies is not None:
            self._spare_copies.renew(self._networks_for_targets)
            self._active_copies, self._spare_copies = self._spare_copies, self._active_copies

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        # autocast's cache of casted weights is shared by the process, but `prepare` and `update` run in two threads
        enabled = self.dtype == torch.bfloat16
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled, cache_enabled=False)

    def _set_learning_rate(self) -> None:
        c = self.config
        if c.learning_rate_updates:
            rate = linear(c.learning_rate, c.learning_rate_end, c.learning_rate_updates, self.updates)
            set_learning_rate(self.optimizer, rate)

    def _sync_target(self) -> bool:
        """Copy the online network into the target network if that is due.

        Returns whether ``updates`` is a multiple of the period.
        """
        due = self.updates % self.config.target_update_period == 0
        self.target_syncs += due  # with soft updates this makes the publisher send the target once per period
        if due and not self.config.target_tau:
            self.target.load_state_dict(self.online.state_dict())
        return due

    def get_state(self) -> dict[str, dict[str, Array]]:
        """Named arrays in the groups "online", "target" and "optimizer", and "average" if there is an average."""
        arrays = {name: weights_of(network) for name, network in self._networks_by_name.items()}
        return {**arrays, "optimizer": optimizer_arrays(self.optimizer)}

    def set_state(self, state: Mapping[str, Mapping[str, Array]], updates: int, target_syncs: int) -> None:
        """Restore a state from `get_state`, and the numbers of updates and target syncs made.

        If ``state`` has no average, the average starts at the online weights. Raises ValueError if the state belongs to
        another network or optimizer.
        """
        groups = {"average": state["online"], **state} if "online" in state else state
        if lacking := {*self._networks_by_name, "optimizer"} - set(groups):
            raise ValueError(f"the state has no {', '.join(sorted(lacking))}")
        check_optimizer(self.config.optimizer, state["optimizer"])
        for name, module in self._networks_by_name.items():
            try:
                module.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in groups[name].items()})
            except RuntimeError as error:
                raise ValueError(
                    f"{name}: weights of another network ({str(error).splitlines()[-1].strip()})"
                ) from error
        load_optimizer(self.optimizer, state["optimizer"], self.device)
        if isinstance(self._step, GraphedStep):
            self._step.forget()  # the optimizer's tensors are new
        self.updates, self.target_syncs = updates, target_syncs
        self._needs_background = self._needs_background and updates == 0
        self._renew_copies()


def _move_towards(network: QNetwork, other: QNetwork, tau: float) -> None:
    """Each weight of ``network`` += tau * (that of ``other`` - it)."""
    get_ema_multi_avg_fn(1.0 - tau)(list(network.parameters()), list(other.parameters()), 0)


def metric_values(metrics: Mapping[str, Tensor]) -> dict[str, float]:
    """Scalar tensors as floats. Waits for the device."""
    return {name: float(x) for name, x in metrics.items()}


def td_abs_array(td_abs: Tensor) -> Float32:
    """``td_abs`` as a numpy array, float32 [B]. Raises RunFault if a value is not finite: the run has diverged."""
    values = to_host(td_abs.float()).numpy()
    if not np.isfinite(values).all():
        raise RunFault("the learner has diverged (a TD error is not finite): write a smaller `learner.learning_rate`")
    return values
