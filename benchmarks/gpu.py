"""`python -m benchmarks.gpu`: check the learner on a GPU against the CPU, and measure and profile its speed.

Apart from this checkout it needs only torch (which installs fsspec), numpy and safetensors, so that it runs on a
machine where Qfleet is not installed. Where Qfleet is installed, `qfleet bench gpu` does the same. The docstrings of
gpu_checks.py, gpu_speed.py and gpu_profile.py describe the checks and measurements. Exit status: 0, 1 if a check
failed, 2 for bad input.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Annotated, Any, Literal, NoReturn, get_args, get_origin, get_type_hints

import torch
from typing_extensions import Doc  # a dependency of torch

from benchmarks.gpu_checks import OPTIMIZERS, check_checkpoints, check_losses
from benchmarks.gpu_parts import MIN_BATCHES, NETWORKS, PRECISIONS, QUICK, Pool, Sizes
from benchmarks.gpu_profile import profile_updates
from benchmarks.gpu_speed import measure_speed
from benchmarks.gpu_tables import format_figures
from learner.learner import LearnerConfig, learner_threads
from rl.allocator import keep_freed_memory
from rl.errors import BadInput
from rl.precision import Precision

MAX_BATCH = 8_192  # transitions; MIN_BATCHES batches of this size must fit into the host's memory

Log = Callable[[str], None]


@dataclass(frozen=True)
class Command:
    """Check the learner on a GPU against the CPU, and measure and profile its speed."""

    device: Annotated[Literal["auto", "cuda", "cpu"], Doc("auto means cuda; cpu runs the same code without a GPU")] = (
        "auto"
    )
    updates: Annotated[int, Doc("Learner updates in each comparison of losses")] = 200
    seconds: Annotated[float, Doc("Seconds of each speed measurement")] = 3.0
    batches: Annotated[tuple[int, ...], Doc("Batch sizes for the speed measurements")] = (32, 64, 256, 512)
    quick: Annotated[bool, Doc("Only check that everything runs: 3 updates, batches of 4, speeds not meaningful")] = (
        False
    )
    json: Annotated[bool, Doc("The last line of output is a JSON object with the figures")] = False

    def __post_init__(self) -> None:
        if self.updates < 1:
            raise BadInput(f"--updates is {self.updates}: write at least 1")
        if not 0 < self.seconds < float("inf"):
            raise BadInput(f"--seconds is {self.seconds:g}: write a positive number of seconds")
        if not self.batches or not 1 <= min(self.batches) <= max(self.batches) <= MAX_BATCH:
            sizes = " ".join(map(str, self.batches)) or "empty"
            raise BadInput(f"--batches is {sizes}: write one or more sizes, each from 1 to {MAX_BATCH}")


@dataclass(frozen=True)
class Task:
    """One check or measurement. ``kind`` is the list in the figures to which its results are added."""

    kind: Literal["checks", "speed", "profile"]
    name: str
    measure: Callable[[], Any]  # returns one result or a list of results
    min_seconds: float = 0.0  # that it takes


def run(c: Command, log: Log = print) -> dict[str, Any]:
    """Run all checks and measurements; returns the figures by name.

    ``failed`` lists the checks that failed and the tasks that raised an exception; ``passed`` is true if there are
    none. Raises BadInput if the device is not available.
    """
    device = _pick_device(c.device)
    sizes = QUICK if c.quick else Sizes()
    if c.quick:
        c = replace(c, updates=3, batches=(4,), seconds=0.01)
    keep_freed_memory()  # as the learner of a run does
    figures: dict[str, Any] = {**_describe_machine(device), "checks": [], "speed": [], "profile": []}
    log(", ".join(f"{name} {value}" for name, value in figures.items() if isinstance(value, str | int)))
    tasks = _make_tasks(c, device, Pool(max(sizes.pairs, MIN_BATCHES * max(c.batches))), sizes)
    failed, began = [], time.perf_counter()
    for n, task in enumerate(tasks, start=1):
        left = sum(t.min_seconds for t in tasks[n - 1 :])
        remaining = f"{len(tasks) - n} more" + (f", at least {left:.0f} s" if left >= 1 else "")
        log(f"{n} of {len(tasks)}: {task.name} ({remaining})")
        try:
            results = task.measure()
        except Exception as error:  # the other tasks still run: a GPU may be available only once
            traceback.print_exc()
            failed.append(f"{task.name}: {type(error).__name__}: {str(error).partition(chr(10))[0]}")
            continue
        figures[task.kind] += results if isinstance(results, list) else [results]
    failed += [_describe_failure(check) for check in figures["checks"] if not check["passed"]]
    figures |= {"seconds": time.perf_counter() - began, "failed": failed, "passed": not failed}
    for line in format_figures(figures):
        log(line)
    for name in failed:
        log(f"FAILED: {name}")
    return figures


def _pick_device(name: str) -> str:
    if name != "cpu" and not torch.cuda.is_available():
        raise BadInput(f"torch {torch.__version__} finds no CUDA device: write --device cpu to run without a GPU")
    return "cpu" if name == "cpu" else "cuda"


def _describe_machine(device: str) -> dict[str, Any]:
    return {
        "device": device,
        "name": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "python": platform.python_version(),
        "threads": learner_threads(LearnerConfig(device=device)),
        "tf32_matmul": torch.backends.cuda.matmul.allow_tf32,  # used in the speed measurements; the checks turn it off
        "tf32_cudnn": torch.backends.cudnn.allow_tf32,
    }


def _make_tasks(c: Command, device: str, pool: Pool, sizes: Sizes) -> list[Task]:
    def losses(network: str, optimizer: str) -> Task:
        name = f"losses of {c.updates} updates compared with the CPU, {network}, {optimizer}"
        return Task("checks", name, partial(check_losses, device, network, optimizer, pool, c.updates, sizes))

    def checkpoints(optimizer: str) -> Task:
        name = f"checkpoints moved from {device} to cpu and back, {optimizer}"
        return Task("checks", name, partial(check_checkpoints, device, optimizer, pool, sizes))

    def speed(network: str, precision: Precision, batch: int) -> Task:
        name = f"speed, {network}, {precision}, batch {batch}"
        measure = partial(measure_speed, device, network, precision, batch, pool, c.seconds, sizes)
        return Task("speed", name, measure, min_seconds=3 * c.seconds)

    def profile(network: str) -> Task:
        name = f"profile of an update, {network}"
        return Task("profile", name, partial(profile_updates, device, network, pool, sizes))

    return [
        *(losses(network, optimizer) for network in NETWORKS for optimizer in OPTIMIZERS),
        *(checkpoints(optimizer) for optimizer in OPTIMIZERS),
        *(speed(network, p, batch) for network in NETWORKS for p in PRECISIONS for batch in c.batches),
        *(profile(network) for network in NETWORKS),
    ]


def _describe_failure(check: dict[str, Any]) -> str:
    what = f"{check['name']}, {check['network']}, {check['optimizer']}"
    if "tolerance" in check:
        error = "not finite" if check["worst"] is None else f"{check['worst']:.2g}"
        return (
            f"{what}: relative error {error} at update {check['at_update']}, at most {check['tolerance']:g} is allowed"
        )
    return f"{what}: {', '.join(check['differing'][:3])} differ"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise BadInput(message)


def parse(args: Sequence[str] | None = None) -> Command:
    """Parse the flags of `qfleet bench gpu` without tyro, which may not be installed here. Raises BadInput."""
    parser = _Parser("python -m benchmarks.gpu", description=Command.__doc__, allow_abbrev=False)
    hints = get_type_hints(Command, include_extras=True)
    for field in fields(Command):
        type_, doc = get_args(hints[field.name])
        options: dict[str, Any] = {"type": type_}
        if type_ is bool:
            options = {"action": "store_true"}
        elif get_origin(type_) is Literal:
            options = {"choices": get_args(type_)}
        elif get_origin(type_) is tuple:
            options = {"type": int, "nargs": "+", "metavar": "N"}
        default = " ".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
        help_text = f"{doc.documentation} (default: {default})"
        parser.add_argument(f"--{field.name}", default=field.default, help=help_text, **options)
    values = vars(parser.parse_args(args))
    return Command(**{**values, "batches": tuple(values["batches"])})


def main(args: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit status."""
    try:
        command = parse(args)
        figures = run(command, lambda line: print(line, flush=True))
        if command.json:
            print(json.dumps(figures), flush=True)
    except BadInput as error:
        print(f"benchmarks.gpu: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("benchmarks.gpu: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of the output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return 0 if figures["passed"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
