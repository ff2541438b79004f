"""Is the learner on this device the learner on the CPU? Losses side by side, and checkpoints that change sides.

Losses: a learner on the device and one on the CPU in float32 get the same batches; every 10 updates the CPU's weights,
optimizer state and counts are copied over, because two float32 trajectories part by themselves. With l the CPU's loss and l'
the device's, the error of an update is |l' - l| / |l|. float32 (TF32 off) is held to 1e-3. bfloat16 is held to 5e-2 of the
CPU's *float32*: that is what it stands for, and a CPU without bfloat16 instructions would take minutes.

The step sizes are chosen so that these bounds tell right from wrong. Seen on a CPU: convolutions summed in another order
stay within 2e-4 and bfloat16 within 2e-2; a step a tenth too long, gradients that are not clipped or a target that is not
copied are off by 1e-3 to 3e-1. At the presets' step sizes a chance tie of two actions can grow beyond 1e-2 in 10 updates.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from benchmarks.gpu_parts import NETWORKS, PRECISIONS, Pool, Sizes, Trial, exact_float32, trial
from learner.checkpoint import Checkpoint, CheckpointStore
from rl.precision import Precision

OPTIMIZERS = ("adam", "rmsprop")
TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}  # relative error of a loss
LEARNING_RATE = {"nature": 2e-5, "small": 1e-5}
CONFIG: dict[str, Any] = {
    "target_update_period": 3,  # learner updates: syncs fall between two copies
    "max_grad_norm": 1.0,  # which some gradients exceed
    "metrics_period": 1,
    "publish_period": 10**9,
}


def compared(name: str, expected: Sequence[float], got: Sequence[float], tolerance: float) -> dict[str, Any]:
    """The verdict over two sequences of losses: the worst relative error, its update (from 1), and whether it passes.

    It fails where a loss is missing or not finite.
    """
    errors = [abs(y - x) / abs(x) if x else abs(y - x) for x, y in zip(expected, got, strict=False)]
    errors = [error if math.isfinite(error) else math.inf for error in errors]
    worst = max(errors, default=math.inf)
    passed = len(expected) == len(got) and worst <= tolerance
    at = errors.index(worst) + 1 if errors else 0
    shown = worst if math.isfinite(worst) else None  # JSON knows no infinity
    return {"name": name, "passed": passed, "worst": shown, "at_update": at, "tolerance": tolerance}


def losses_beside(
    reference: Trial, tested: Mapping[str, Trial], updates: int, equal_every: int
) -> Iterator[dict[str, Any]]:
    """A verdict for each of ``tested``, by the name of its number format, beside ``reference``."""
    expected: list[float] = []
    got: dict[str, list[float]] = {dtype: [] for dtype in tested}
    for update in range(updates):
        for dtype, beside in tested.items():
            if update % equal_every == 0:
                beside.take(reference)
            got[dtype].append(beside.loss())
        expected.append(reference.loss())
    for dtype, losses in got.items():
        yield compared(f"losses, {dtype}", expected, losses, TOLERANCE[dtype])


def _config(network: str, optimizer: str, sizes: Sizes, precision: Precision = "float32") -> dict[str, Any]:
    rate = LEARNING_RATE[network]
    return {**CONFIG, "learning_rate": rate, "batch_size": sizes.batch, "optimizer": optimizer, "precision": precision}


def check_losses(
    device: str, network: str, optimizer: str, pool: Pool, updates: int, sizes: Sizes
) -> list[dict[str, Any]]:
    """The losses of ``device`` in both number formats, compared with the CPU's; a verdict for each."""
    with ExitStack() as stack:
        stack.enter_context(exact_float32())

        def started(on: str, precision: Precision) -> Trial:
            config = _config(network, optimizer, sizes, precision)
            return stack.enter_context(trial(on, NETWORKS[network], pool, config, exact=True))

        tested: dict[str, Trial] = {p: started(device, p) for p in PRECISIONS}
        found = list(losses_beside(started("cpu", "float32"), tested, updates, sizes.equal_every))
    return [{**verdict, "network": network, "optimizer": optimizer} for verdict in found]


def check_checkpoints(device: str, optimizer: str, pool: Pool, sizes: Sizes) -> list[dict[str, Any]]:
    """Resume a checkpoint of the device on the CPU, and one of that learner on the device; verdicts of both.

    Each time the resumed state must be identical, and the next losses those of a learner that resumed where it was.
    """
    config, steps = _config("small", optimizer, sizes), sizes.equal_every
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        stack.enter_context(exact_float32())
        store = CheckpointStore(folder)

        def started(on: str, seed: int) -> Trial:
            return stack.enter_context(trial(on, NETWORKS["small"], pool, config, seed=seed, exact=True))

        writer = started(device, seed=1)
        for leg, (at, to) in enumerate([(device, "cpu"), ("cpu", device)], start=1):
            for _ in range(steps):
                writer.loss()
            writer.learner.close()
            written = writer.learner.get_checkpoint({})
            store.save(writer.learner.updater.updates, written)
            loaded = store.load_newest()
            assert loaded is not None
            here, there = (started(on, seed=10 * leg + i) for i, on in enumerate((at, to)))
            name = f"checkpoint, {at} to {to}"
            for resumed in (here, there):
                resumed.learner.set_checkpoint(loaded)
            found.append(same_state(f"{name}: state", written, there.learner.get_checkpoint({})))
            stayed, moved = ([resumed.loss() for _ in range(steps)] for resumed in (here, there))
            found.append(compared(f"{name}: next losses", stayed, moved, TOLERANCE["float32"]))
            writer = there
    return [{**verdict, "network": "small", "optimizer": optimizer} for verdict in found]


def same_state(name: str, written: Checkpoint, resumed: Checkpoint) -> dict[str, Any]:
    """The verdict over two checkpoints: equal names, arrays bit for bit, and counters."""
    wrong = []
    for group in sorted(written.arrays.keys() | resumed.arrays.keys()):
        a, b = written.arrays.get(group, {}), resumed.arrays.get(group, {})
        for key in sorted(a.keys() | b.keys()):
            if key not in a or key not in b or a[key].dtype != b[key].dtype or not np.array_equal(a[key], b[key]):
                wrong.append(f"{group}/{key}")
    wrong += [key for key, value in written.state.items() if value != resumed.state.get(key)]
    return {"name": name, "passed": not wrong, "differing": wrong}
