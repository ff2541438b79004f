"""Shared by the GPU checks and measurements: synthetic batches with the shapes of a run, and learners that use them.

This module and its imports must not need more than torch (which installs fsspec), numpy and safetensors.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from learner.learner import Learner, LearnerConfig
from rl.errors import RunFault
from rl.networks import NetworkConfig
from rl.precision import Precision
from rl.types import Array, ObservationSpec, SampledBatch, TransitionBatch

SPEC = ObservationSpec((84, 84), "uint8", 4)
ACTIONS = 6
GAMMA_N = 0.99**3
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")
NETWORKS = {  # those of the presets breakout and pong; qfleet/presets.py needs packages that may be missing here
    "nature": NetworkConfig(kind="nature", hidden=(512,), dueling=True),
    "small": NetworkConfig(kind="small", hidden=(128,), dueling=True, layer_norm=True, center=True),
}
MIN_BATCHES = 4  # the pool holds at least as many different batches
BATCH_TIMEOUT = 60.0  # seconds to wait for a batch


@dataclass(frozen=True)
class Sizes:
    """Sizes of the checks and measurements that no flag sets."""

    batch: int = 32  # transitions, in the comparisons and the profile
    copy_every: int = 10  # updates between two copies of the CPU learner's state to the device
    warm_up: int = 10  # updates before anything is measured
    settle: int = 3  # updates before each window
    windows: int = 3  # of each loop; the loops take turns
    profiled: int = 10  # updates; as many before them run under a profiler whose result is discarded
    pairs: int = 4_096  # transitions of the pool, 231 MB: more than CPU caches hold


QUICK = Sizes(batch=4, copy_every=2, warm_up=1, settle=0, windows=1, profiled=1, pairs=256)


class Pool:
    """``pairs`` synthetic transitions in the memory layout of a sampled batch (`protos.codec.unpack_replies`).

    All stacks share one background of random bytes; in each, a twentieth of the blocks of 4x4 pixels differ, as in a
    game. s_tm1 and s_t alternate in one buffer. Rewards and discounts are read-only, like those of a received message.
    """

    def __init__(self, pairs: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.size = pairs
        channels, *frame = SPEC.shape
        differ = rng.random((pairs, 2, channels, *(n // 4 for n in frame))) < 0.05
        self.stacks: Array = rng.integers(0, 256, (pairs, 2, *SPEC.shape), dtype=np.uint8)
        np.copyto(self.stacks, self.stacks[0, 0], where=~differ.repeat(4, axis=-1).repeat(4, axis=-2))
        self.a_tm1 = rng.integers(0, ACTIONS, pairs)
        self.r_t = rng.integers(-1, 2, pairs).astype(np.float32)
        self.discount_t = np.where(rng.random(pairs) < 0.05, 0.0, GAMMA_N).astype(np.float32)
        self.weights = rng.uniform(0.2, 1.0, pairs).astype(np.float32)
        for column in (self.r_t, self.discount_t):
            column.flags.writeable = False

    def batch(self, index: int, size: int) -> SampledBatch:
        """Return batch number ``index`` of ``size`` transitions, cycling through the pool; views, not copies."""
        begin = index % (self.size // size) * size
        own = slice(begin, begin + size)
        stacks = self.stacks[own]
        transition = TransitionBatch(stacks[:, 0], self.a_tm1[own], self.r_t[own], self.discount_t[own], stacks[:, 1])
        return SampledBatch(
            transition, np.arange(begin, begin + size, dtype=np.uint64), np.zeros(size, np.int64), self.weights[own]
        )


class Source:
    """A `BatchSource` that returns the batches of a pool in turn, without waiting."""

    def __init__(self, pool: Pool, size: int) -> None:
        self._pool, self._size = pool, size
        self.drawn = 0  # batches; a resumed learner continues from the number in its checkpoint

    def sample(self, timeout: float) -> SampledBatch:
        """Return the next batch."""
        del timeout
        self.drawn += 1
        return self._pool.batch(self.drawn - 1, self._size)

    def update_priorities(self, batch: SampledBatch, td_abs: Array) -> None:
        """Ignore the |TD errors| [B]."""
        del batch, td_abs

    def stats(self) -> dict[str, float]:
        """Return {}."""
        return {}

    def get_state(self) -> dict[str, int]:
        """Return the number of batches drawn so far."""
        return {"drawn": self.drawn}

    def set_state(self, state: Mapping[str, int]) -> None:
        """Continue after the number of batches in ``state``."""
        self.drawn = int(state["drawn"])

    def close(self) -> None:
        """Do nothing."""
        pass


class Sink:
    """A `WeightSink` that ignores weights, and a `MetricSink` that keeps the newest value of each metric."""

    def __init__(self) -> None:
        self.newest: dict[str, Any] = {}

    def publish(self, publication: object) -> None:
        """Ignore the weights."""
        del publication

    def report(self, metrics: Mapping[str, Any]) -> None:
        """Keep the newest value of each metric."""
        self.newest.update(metrics)


class BenchLearner:
    """A learner that gets its batches from a pool and makes one update per call; use it with `bench_learner`.

        with bench_learner(device, network, pool, config) as learner:
            learner.step()

    With ``exact`` its targets are computed with the current weights, so that two learners can be compared. On a
    CPU, the thread that prepares batches computes targets with older weights (decisions/0004), so ``exact`` turns it
    off there.
    """

    def __init__(
        self,
        device: str,
        network: NetworkConfig,
        pool: Pool,
        config: Mapping[str, Any],
        seed: int = 1,
        exact: bool = False,
    ) -> None:
        settings = LearnerConfig(device=device, **config)
        self.source, self.sink = Source(pool, settings.batch_size), Sink()
        threaded = not exact or device != "cpu"
        self.learner = Learner(
            settings, network, SPEC, ACTIONS, self.source, self.sink, self.sink, seed=seed, threaded=threaded
        )

    def step(self) -> None:
        """Make one update. Raises RunFault if the learner has diverged or gets no batch."""
        if not self.learner.step(BATCH_TIMEOUT):
            raise RunFault(f"no batch from the prefetch thread within {BATCH_TIMEOUT:g} s")

    def next_loss(self) -> float:
        """Make one update and return its loss. The learner's metrics_period must be 1."""
        self.step()
        return float(self.sink.newest["loss"])

    def copy_state_from(self, other: BenchLearner) -> None:
        """Copy the weights, optimizer state and counts of ``other``; batches drawn in advance are kept."""
        updater = other.learner.updater
        self.learner.updater.set_state(updater.get_state(), updater.updates, updater.target_syncs)


@contextlib.contextmanager
def bench_learner(*args: Any, **options: Any) -> Iterator[BenchLearner]:
    """Create a `BenchLearner` from the arguments; closes it at the end of the block."""
    learner = BenchLearner(*args, **options)
    try:
        yield learner
    finally:
        learner.learner.close()


@contextlib.contextmanager
def tf32_disabled() -> Iterator[None]:
    """Turn off TF32, which has only 10 bits of mantissa, in convolutions and matrix products."""
    backends: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = False
        yield
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed


def synchronize(device: str) -> None:
    """Wait until the device has finished all work."""
    if device == "cuda":
        torch.cuda.synchronize()
