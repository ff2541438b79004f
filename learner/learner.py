"""The learner: gets batches, makes updates, reports priorities and metrics, publishes weights and makes checkpoints."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from learner.checkpoint import Checkpoint
from learner.prefetch import Prefetcher, SynchronousBatches
from learner.publish import Publisher
from learner.update import UpdateConfig, Updater, metric_values, td_abs_array
from rl.bounds import at_least, positive
from rl.errors import BadSetting, RunFault
from rl.networks import NetworkConfig, make_network
from rl.ports import BatchSource, MetricSink, WeightSink
from rl.resuming import Rules, rules
from rl.types import ObservationSpec


@dataclass(frozen=True)
class LearnerConfig(UpdateConfig):
    """The learner and its update rule."""

    batch_size: int = 32
    """Items per batch."""
    device: str = "auto"
    """auto (CUDA, else MPS, else the CPU), or a torch device such as cpu, cuda, cuda:1, mps."""
    threads: int = 0
    """Torch threads on the CPU for each half of the update (targets, gradient step), which run at the same time;
    0: half the cores, in a cluster half the CPUs that the other processes of the run leave on the learner's node; at
    most 8, and 1 with a GPU. In serial mode the halves run one after the other, and 0 means all cores."""
    publish_period: int = 20  # learner updates
    """Learner updates between publications of the weights."""
    checkpoint_minutes: float = 5.0
    """Minutes between checkpoints."""
    keep_checkpoints: int = 3
    """Number of checkpoints to keep, the newest ones."""
    metrics_period: int = 100  # learner updates
    """Learner updates between reports of the loss and other metrics."""

    on_resume: ClassVar[Rules] = {
        **UpdateConfig.on_resume,
        **rules(
            may="device threads publish_period checkpoint_minutes keep_checkpoints metrics_period",
            batch_size="schedules continue from the number of updates so far, although those used the old size",
        ),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "batch_size", "publish_period", "keep_checkpoints", "metrics_period")
        at_least(self, 0, "threads", zero="half the cores")
        positive(self, "checkpoint_minutes", unit="minutes")


def _parse_device(name: str) -> torch.device:
    """The torch device of that name, whether or not it is available. Raises BadSetting if torch knows none."""
    try:
        return torch.device(name)
    except RuntimeError as error:
        message = f"{name!r} is not a torch device: write auto, cpu, cuda or mps"
        raise BadSetting(LearnerConfig, "device", message) from error


def check_cluster_device(name: str) -> None:
    """Raise BadSetting if no node of a cluster could use the device ``name``; this machine need not have it."""
    if name != "auto" and _parse_device(name).index:
        message = f"{name!r} numbers a device, but in a cluster Ray assigns the learner's GPU: write cuda"
        raise BadSetting(LearnerConfig, "device", message)


def pick_device(name: str) -> torch.device:
    """The torch device for the setting ``name``. Raises BadSetting if it is unknown or not available."""
    mps = torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if mps else "cpu")
    device = _parse_device(name)
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": mps}.get(device.type, False)
    if available and device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        available = False
    if not available:
        raise BadSetting(LearnerConfig, "device", f"{name!r} is not available on this machine: write auto or cpu")
    return device


def learner_threads(config: LearnerConfig) -> int:
    """PyTorch threads for each thread of a learner on this machine: as configured, or else `threads_on` all its cores.

    Raises BadSetting as `pick_device` does.
    """
    return config.threads or threads_on(os.cpu_count() or 1, pick_device(config.device).type != "cpu")


def threads_on(cpus: float, gpu: bool) -> int:
    """PyTorch threads for each thread of a learner that has ``cpus`` CPUs: half of them, at most 8; with a GPU 1."""
    return 1 if gpu else max(1, min(int(cpus) // 2, 8))


class Learner:
    """Makes updates with batches from ``source``, publishes to ``weights`` and reports to ``metrics``.

        learner = Learner(config, network, spec, actions, source, weights, metrics, seed)
        learner.set_checkpoint(checkpoint)  # only on resume
        learner.run(stopping)  # or: learner.publisher.publish(), then learner.step() repeatedly
        learner.close()

    With ``threaded``, a background thread prepares the batches. Raises BadSetting as `pick_device` does.
    """

    def __init__(
        self,
        config: LearnerConfig,
        network: NetworkConfig,
        spec: ObservationSpec,
        actions: int,
        source: BatchSource,
        weights: WeightSink,
        metrics: MetricSink,
        seed: int,
        threaded: bool = True,
    ) -> None:
        self.config = config
        self.device = pick_device(config.device)
        online, target = (make_network(network, spec, actions, seed) for _ in range(2))
        self.updater = Updater(config, online, target, self.device, concurrent=threaded and self.device.type == "cpu")
        self._source, self._weights, self._metrics = source, weights, metrics
        self._threaded = threaded
        self._batches: Prefetcher | SynchronousBatches | None = None
        self.publisher = Publisher(self.updater, weights, config.publish_period)
        self._seconds_waiting = self._seconds_learning = 0.0

    def step(self, timeout: float = 1.0) -> bool:
        """Make one update if a batch arrives within ``timeout`` seconds. Returns whether an update was made.

        Raises RunFault if replay has failed (`rl/ports.py`) or the run has diverged.
        """
        if self._batches is None:
            self._batches = (Prefetcher if self._threaded else SynchronousBatches)(self._source, self.updater.prepare)
        start = time.perf_counter()
        prefetched = self._batches.get(timeout)
        ready = time.perf_counter()
        self._seconds_waiting += ready - start
        if prefetched is None:
            return False
        sampled, batch = prefetched
        td_abs, metrics = self.updater.update(batch)
        self._source.update_priorities(sampled, td_abs_array(td_abs))
        self.publisher.maybe_publish()
        self._seconds_learning += time.perf_counter() - ready
        if self.updater.updates % self.config.metrics_period == 0:
            self.report(metric_values(metrics))
        return True

    def run(self, stopping: threading.Event, on_tick: Callable[[], None] = lambda: None) -> None:
        """Publish once, then call `step` and ``on_tick`` in turn until ``stopping`` is set.

        Raises RunFault as `step` does.
        """
        self.publisher.publish()
        while not stopping.is_set():
            self.step()
            on_tick()

    def report(self, values: Mapping[str, float] | None = None) -> None:
        """Report the learner's metrics and ``values`` now."""
        total = self._seconds_learning + self._seconds_waiting
        self._metrics.report(
            {
                **(values or {}),
                "updates": self.updater.updates,
                "target_syncs": self.updater.target_syncs,
                "weights_version": self.publisher.version,
                "learner_busy": self._seconds_learning / total if total else 0.0,
                **{f"replay_{k}": v for k, v in self._source.stats().items()},
            }
        )

    def get_checkpoint(self, extra: Mapping[str, Any]) -> Checkpoint:
        """A checkpoint of networks, optimizer and counters. ``extra`` is added to its state and must fit into JSON.

        It contains no random state, because the learner draws no random numbers after its construction. Raises RunFault
        if a weight is not finite, so that the run can be resumed from an earlier checkpoint.
        """
        arrays = self.updater.get_state()
        if not all(np.isfinite(x).all() for x in arrays["online"].values()):
            raise RunFault(
                "the learner has diverged (a weight is not finite), so no checkpoint was written: resume from the last "
                "one with a smaller `learner.learning_rate`"
            )
        state = {
            "updates": self.updater.updates,
            "target_syncs": self.updater.target_syncs,
            "weights_version": self.publisher.version,
            "replay": dict(self._source.get_state()),
            **extra,
        }
        return Checkpoint(arrays, state)

    def set_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Restore a checkpoint. Raises ValueError if it belongs to another network or optimizer."""
        state = checkpoint.state
        self.updater.set_state(checkpoint.arrays, int(state["updates"]), int(state["target_syncs"]))
        self._source.set_state(state["replay"])
        self.publisher.version = int(state["weights_version"])

    def close(self) -> None:
        """Stop preparing batches. The batch source stays open."""
        if self._batches is not None:
            self._batches.close()
