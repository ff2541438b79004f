"""What the GPU check's measurements share: synthetic batches with the shapes of a run, and learners over them.

Nothing here, nor in what it imports, needs more than torch (which brings fsspec), numpy and safetensors.
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
NETWORKS = {  # as the presets breakout and pong have them (qfleet/presets.py, which a bare machine cannot import)
    "nature": NetworkConfig(kind="nature", hidden=(512,), dueling=True),
    "small": NetworkConfig(kind="small", hidden=(128,), dueling=True, layer_norm=True, center=True),
}
ROTATION = 4  # different batches at least
PATIENCE = 60.0  # seconds for a batch that costs nothing


@dataclass(frozen=True)
class Sizes:
    """How much is measured where no flag says so."""

    batch: int = 32  # transitions, in the comparisons and the profile
    equal_every: int = 10  # updates between two copies of the CPU's state
    warm_up: int = 10  # updates before anything is measured
    settle: int = 3  # updates before each window
    windows: int = 3  # of each loop, taking turns
    profiled: int = 10  # updates, after as many under a profiler that is thrown away
    pairs: int = 4_096  # transitions of the pool, 231 MB: more than caches hold


QUICK = Sizes(batch=4, equal_every=2, warm_up=1, settle=0, windows=1, profiled=1, pairs=256)


class Pool:
    """``pairs`` made-up transitions, laid out as the sampler lays out a batch (`protos.codec.unpack_replies`).

    Stacks are one background of random bytes, except for a twentieth of their blocks of 4x4 pixels, as in a game; s_tm1
    and s_t alternate in one buffer. The rewards and discounts are read-only, as those of a received message are.
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
        """The ``index``-th batch of B = ``size`` transitions, from the start again after the last; views, no copies."""
        begin = index % (self.size // size) * size
        own = slice(begin, begin + size)
        stacks = self.stacks[own]
        transition = TransitionBatch(stacks[:, 0], self.a_tm1[own], self.r_t[own], self.discount_t[own], stacks[:, 1])
        return SampledBatch(
            transition, np.arange(begin, begin + size, dtype=np.uint64), np.zeros(size, np.int64), self.weights[own]
        )


class Source:
    """A `BatchSource` that always has the pool's next batch at once."""

    def __init__(self, pool: Pool, size: int) -> None:
        self._pool, self._size = pool, size
        self.drawn = 0  # batches; a resumed learner goes on from its checkpoint's

    def sample(self, timeout: float) -> SampledBatch:
        """The pool's next batch, at once."""
        del timeout
        self.drawn += 1
        return self._pool.batch(self.drawn - 1, self._size)

    def update_priorities(self, batch: SampledBatch, td_abs: Array) -> None:
        """Ignore the |TD errors| [B]."""
        del batch, td_abs

    def stats(self) -> dict[str, float]:
        """No figures: {}."""
        return {}

    def get_state(self) -> dict[str, int]:
        """The number of batches drawn."""
        return {"drawn": self.drawn}

    def set_state(self, state: Mapping[str, int]) -> None:
        """Go on from a number of batches drawn."""
        self.drawn = int(state["drawn"])

    def close(self) -> None:
        """Do nothing."""
        pass


class Sink:
    """A sink for weights, which it ignores, and for figures, of which it keeps the newest."""

    def __init__(self) -> None:
        self.newest: dict[str, Any] = {}

    def publish(self, publication: object) -> None:
        """Ignore the weights."""
        del publication

    def report(self, metrics: Mapping[str, Any]) -> None:
        """Keep the newest value of each figure."""
        self.newest.update(metrics)


class Trial:
    """A learner over the pool, which makes one update at a time.

    With ``exact`` its targets are those of the current weights, so that two learners can be compared. On a CPU the
    thread that prepares batches would compute them with older weights (decisions/0004), so ``exact`` has no such thread
    there.
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
        """Make one update. Raises RunFault where the learner has diverged or gets no batch."""
        if not self.learner.step(PATIENCE):
            raise RunFault(f"the prefetching thread gave no batch for {PATIENCE:g} s")

    def loss(self) -> float:
        """The loss of the next update; the learner's metrics_period must be 1."""
        self.step()
        return float(self.sink.newest["loss"])

    def take(self, other: Trial) -> None:
        """Take over the weights, optimizer and counts of ``other``; batches already drawn stay."""
        updater = other.learner.updater
        self.learner.updater.set_state(updater.get_state(), updater.updates, updater.target_syncs)


@contextlib.contextmanager
def trial(*args: Any, **options: Any) -> Iterator[Trial]:
    """A `Trial` whose thread ends with the block."""
    made = Trial(*args, **options)
    try:
        yield made
    finally:
        made.learner.close()


@contextlib.contextmanager
def exact_float32() -> Iterator[None]:
    """Turn TF32, which has a mantissa of 10 bits, off in convolutions and matrix products."""
    backends: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = False
        yield
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed


def finish(device: str) -> None:
    """Wait until the device has finished its work."""
    if device == "cuda":
        torch.cuda.synchronize()
