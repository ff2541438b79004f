"""Check that the learner computes the same on this device as on the CPU: losses, and checkpoints moved between the two.

Losses: a learner on the device and one on the CPU in float32 get the same batches. Every 10 updates the CPU's weights,
optimizer state and counts are copied to the device, because rounding makes any two float32 trajectories diverge. With l
the CPU's loss and l' the device's, the error of an update is |l' - l| / |l|. It may be at most 1e-3 in float32 (TF32
off). In bfloat16 it may be at most 5e-2, also compared with the CPU in *float32*: bfloat16 approximates float32, and a
CPU without bfloat16 instructions would take minutes.

The learning rates are chosen so that these tolerances separate correct learners from faulty ones. Observed on a CPU:
errors of at most 2e-4 when convolutions are summed in a different order, and of at most 2e-2 in bfloat16; errors of
1e-3 to 3e-1 with a learning rate a tenth too high, without gradient clipping, or without target syncs. At the presets'
learning rates, two actions with almost equal values can make the error exceed 1e-2 within 10 updates.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from benchmarks.gpu_parts import NETWORKS, PRECISIONS, BenchLearner, Pool, Sizes, bench_learner, tf32_disabled
from learner.checkpoint import Checkpoint, CheckpointStore
from rl.precision import Precision

OPTIMIZERS = ("adam", "rmsprop")
TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}  # largest relative error of a loss
LEARNING_RATE = {"nature": 2e-5, "small": 1e-5}
CONFIG: dict[str, Any] = {
    "target_update_period": 3,  # learner updates; so target syncs happen between two copies
    "max_grad_norm": 1.0,  # some gradients exceed it, so clipping is tested
    "metrics_period": 1,
    "publish_period": 10**9,
}


def compare_losses(name: str, expected: Sequence[float], got: Sequence[float], tolerance: float) -> dict[str, Any]:
    """Compare two sequences of losses; returns the result as a dictionary.

    ``worst`` is the largest relative error (None if not finite), ``at_update`` its update, counted from 1. ``passed``
    is false if ``worst`` exceeds ``tolerance`` or if a loss is missing or not finite.
    """
    errors = [abs(y - x) / abs(x) if x else abs(y - x) for x, y in zip(expected, got, strict=False)]
    errors = [error if math.isfinite(error) else math.inf for error in errors]
    worst = max(errors, default=math.inf)
    passed = len(expected) == len(got) and worst <= tolerance
    at = errors.index(worst) + 1 if errors else 0
    shown = worst if math.isfinite(worst) else None  # JSON has no infinity
    return {"name": name, "passed": passed, "worst": shown, "at_update": at, "tolerance": tolerance}


def compare_learners(
    reference: BenchLearner, tested: Mapping[str, BenchLearner], updates: int, copy_every: int
) -> Iterator[dict[str, Any]]:
    """Make ``updates`` updates with all learners and compare their losses; yields the result for each of ``tested``.

    ``tested`` has the learners by dtype. Every ``copy_every`` updates they take over the state of ``reference``.
    """
    expected: list[float] = []
    got: dict[str, list[float]] = {dtype: [] for dtype in tested}
    for update in range(updates):
        for dtype, learner in tested.items():
            if update % copy_every == 0:
                learner.copy_state_from(reference)
            got[dtype].append(learner.next_loss())
        expected.append(reference.next_loss())
    for dtype, losses in got.items():
        yield compare_losses(f"losses, {dtype}", expected, losses, TOLERANCE[dtype])


def _config(network: str, optimizer: str, sizes: Sizes, precision: Precision = "float32") -> dict[str, Any]:
    rate = LEARNING_RATE[network]
    return {**CONFIG, "learning_rate": rate, "batch_size": sizes.batch, "optimizer": optimizer, "precision": precision}


def check_losses(
    device: str, network: str, optimizer: str, pool: Pool, updates: int, sizes: Sizes
) -> list[dict[str, Any]]:
    """Compare the losses on ``device`` in float32 and bfloat16 with the CPU's in float32; returns a result for each."""
    with ExitStack() as stack:
        stack.enter_context(tf32_disabled())

        def start(on: str, precision: Precision) -> BenchLearner:
            config = _config(network, optimizer, sizes, precision)
            return stack.enter_context(bench_learner(on, NETWORKS[network], pool, config, exact=True))

        tested: dict[str, BenchLearner] = {p: start(device, p) for p in PRECISIONS}
        results = list(compare_learners(start("cpu", "float32"), tested, updates, sizes.copy_every))
    return [{**result, "network": network, "optimizer": optimizer} for result in results]


def check_checkpoints(device: str, optimizer: str, pool: Pool, sizes: Sizes) -> list[dict[str, Any]]:
    """Move a checkpoint from ``device`` to the CPU, and one from there back to ``device``; returns the results.

    Each time the resumed state must be identical to the saved one, and the next losses must be those of a learner that
    resumed the same checkpoint on the device where it was saved.
    """
    config, steps = _config("small", optimizer, sizes), sizes.copy_every
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        stack.enter_context(tf32_disabled())
        store = CheckpointStore(folder)

        def start(on: str, seed: int) -> BenchLearner:
            return stack.enter_context(bench_learner(on, NETWORKS["small"], pool, config, seed=seed, exact=True))

        learner = start(device, seed=1)
        for move, (at, to) in enumerate([(device, "cpu"), ("cpu", device)], start=1):
            for _ in range(steps):
                learner.next_loss()
            learner.learner.close()
            saved = learner.learner.get_checkpoint({})
            store.save(learner.learner.updater.updates, saved)
            loaded = store.load_newest()
            assert loaded is not None
            stayed, moved = (start(on, seed=10 * move + i) for i, on in enumerate((at, to)))
            name = f"checkpoint, {at} to {to}"
            for resumed in (stayed, moved):
                resumed.learner.set_checkpoint(loaded)
            results.append(compare_states(f"{name}: state", saved, moved.learner.get_checkpoint({})))
            expected, got = ([resumed.next_loss() for _ in range(steps)] for resumed in (stayed, moved))
            results.append(compare_losses(f"{name}: next losses", expected, got, TOLERANCE["float32"]))
            learner = moved
    return [{**result, "network": "small", "optimizer": optimizer} for result in results]


def compare_states(name: str, saved: Checkpoint, resumed: Checkpoint) -> dict[str, Any]:
    """Compare two checkpoints, which must have the same arrays, bit for bit, and the same counters; returns the result.

    ``differing`` has the names of what differs.
    """
    differing = []
    for group in sorted(saved.arrays.keys() | resumed.arrays.keys()):
        a, b = saved.arrays.get(group, {}), resumed.arrays.get(group, {})
        for key in sorted(a.keys() | b.keys()):
            if key not in a or key not in b or a[key].dtype != b[key].dtype or not np.array_equal(a[key], b[key]):
                differing.append(f"{group}/{key}")
    differing += [key for key, value in saved.state.items() if value != resumed.state.get(key)]
    return {"name": name, "passed": not differing, "differing": differing}
