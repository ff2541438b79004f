"""`python -m benchmarks.gpu`: is the learner right on this GPU, how fast is it, and where does the time go?

It runs on a bare machine with a GPU: it needs this checkout, torch (which brings fsspec), numpy and safetensors, and
nothing else. Where Qfleet is installed, `qfleet bench gpu` is the same. What is compared and measured, and how, stands
at the head of gpu_checks.py, gpu_speed.py and gpu_profile.py. Exit status: 0, 1 when a check failed, 2 for bad input.
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
from typing_extensions import Doc  # torch requires it

from benchmarks.gpu_checks import OPTIMIZERS, check_checkpoints, check_losses
from benchmarks.gpu_parts import NETWORKS, PRECISIONS, QUICK, ROTATION, Pool, Sizes
from benchmarks.gpu_profile import check_profile
from benchmarks.gpu_speed import check_speed
from benchmarks.gpu_tables import tables
from learner.learner import LearnerConfig, learner_threads
from rl.allocator import keep_freed_memory
from rl.errors import BadInput
from rl.precision import Precision

MOST = 8_192  # transitions of a batch, of which the host's memory holds ROTATION

Say = Callable[[str], None]


@dataclass(frozen=True)
class Command:
    """The learner on a GPU: correctness beside the CPU, speed, and a profile."""

    device: Annotated[Literal["auto", "cuda", "cpu"], Doc("auto is cuda; cpu runs the same code without a GPU")] = (
        "auto"
    )
    updates: Annotated[int, Doc("Learner updates of each comparison of losses")] = 200
    seconds: Annotated[float, Doc("Seconds of each measurement of speed")] = 3.0
    batches: Annotated[tuple[int, ...], Doc("Batch sizes whose speed is measured")] = (32, 64, 256, 512)
    quick: Annotated[bool, Doc("Does it all run? 3 updates, batches of 4, no time for the speeds")] = False
    json: Annotated[bool, Doc("The last line of output is a JSON object with the figures")] = False

    def __post_init__(self) -> None:
        if self.updates < 1:
            raise BadInput(f"--updates is {self.updates}: write at least 1")
        if not 0 < self.seconds < float("inf"):
            raise BadInput(f"--seconds is {self.seconds:g}: write a positive number of seconds")
        if not self.batches or not 1 <= min(self.batches) <= max(self.batches) <= MOST:
            raise BadInput(f"--batches must name at least one size, each from 1 to {MOST:,} transitions")


@dataclass(frozen=True)
class Task:
    """One check or measurement; ``kind`` is the list of figures that its results go to."""

    kind: Literal["checks", "speed", "profile"]
    name: str
    find: Callable[[], Any]
    at_least: float = 0.0  # seconds


def run(c: Command, say: Say = print) -> dict[str, Any]:
    """Check and measure; returns the figures with ``passed`` (whether all did) and ``failed`` (which did not)."""
    device = _device(c.device)
    sizes = QUICK if c.quick else Sizes()
    if c.quick:
        c = replace(c, updates=3, batches=(4,), seconds=0.01)
    keep_freed_memory()  # as the learner of a run does
    figures: dict[str, Any] = {**_machine(device), "checks": [], "speed": [], "profile": []}
    say(", ".join(f"{name} {value}" for name, value in figures.items() if isinstance(value, str | int)))
    tasks = _tasks(c, device, Pool(max(sizes.pairs, ROTATION * max(c.batches))), sizes)
    failed, began = [], time.perf_counter()
    for n, task in enumerate(tasks, start=1):
        left = sum(t.at_least for t in tasks[n - 1 :])
        more = f"{len(tasks) - n} more" + (f", at least {left:.0f} s" if left >= 1 else "")
        say(f"{n} of {len(tasks)}: {task.name} ({more})")
        try:
            found = task.find()
        except Exception as error:  # a fault of one part hides nothing of the others: a GPU may be at hand only once
            traceback.print_exc()
            failed.append(f"{task.name}: {type(error).__name__}: {str(error).partition(chr(10))[0]}")
            continue
        figures[task.kind] += found if isinstance(found, list) else [found]
    failed += [_named(check) for check in figures["checks"] if not check["passed"]]
    figures |= {"seconds": time.perf_counter() - began, "failed": failed, "passed": not failed}
    for line in tables(figures):
        say(line)
    for name in failed:
        say(f"FAILED: {name}")
    return figures


def _device(name: str) -> str:
    if name != "cpu" and not torch.cuda.is_available():
        raise BadInput(f"torch {torch.__version__} sees no CUDA device here: write --device cpu")
    return "cpu" if name == "cpu" else "cuda"


def _machine(device: str) -> dict[str, Any]:
    return {
        "device": device,
        "name": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "python": platform.python_version(),
        "threads": learner_threads(LearnerConfig(device=device)),
        "tf32_matmul": torch.backends.cuda.matmul.allow_tf32,  # in the speeds; the checks forbid it
        "tf32_cudnn": torch.backends.cudnn.allow_tf32,
    }


def _tasks(c: Command, device: str, pool: Pool, sizes: Sizes) -> list[Task]:
    def losses(network: str, optimizer: str) -> Task:
        name = f"losses of {c.updates} updates beside the CPU's, {network}, {optimizer}"
        return Task("checks", name, partial(check_losses, device, network, optimizer, pool, c.updates, sizes))

    def checkpoints(optimizer: str) -> Task:
        name = f"checkpoints from {device} to cpu and back, {optimizer}"
        return Task("checks", name, partial(check_checkpoints, device, optimizer, pool, sizes))

    def speed(network: str, precision: Precision, batch: int) -> Task:
        name = f"speed, {network}, {precision}, batch {batch}"
        find = partial(check_speed, device, network, precision, batch, pool, c.seconds, sizes)
        return Task("speed", name, find, at_least=3 * c.seconds)

    def profiled(network: str) -> Task:
        name = f"profile of an update, {network}"
        return Task("profile", name, partial(check_profile, device, network, pool, sizes))

    return [
        *(losses(network, optimizer) for network in NETWORKS for optimizer in OPTIMIZERS),
        *(checkpoints(optimizer) for optimizer in OPTIMIZERS),
        *(speed(network, p, batch) for network in NETWORKS for p in PRECISIONS for batch in c.batches),
        *(profiled(network) for network in NETWORKS),
    ]


def _named(check: dict[str, Any]) -> str:
    what = f"{check['name']}, {check['network']}, {check['optimizer']}"
    if "tolerance" in check:
        off = "not finite" if check["worst"] is None else f"off by {check['worst']:.2g}"
        return f"{what}: {off} at update {check['at_update']}, {check['tolerance']:g} is allowed"
    return f"{what}: {', '.join(check['differing'][:3])} differ"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise BadInput(message)


def parse(args: Sequence[str] | None = None) -> Command:
    """The flags of `qfleet bench gpu`, made from the same dataclass without tyro. Raises BadInput."""
    parser = _Parser("python -m benchmarks.gpu", description=Command.__doc__, allow_abbrev=False)
    hints = get_type_hints(Command, include_extras=True)
    for field in fields(Command):
        kind, doc = get_args(hints[field.name])
        options: dict[str, Any] = {"type": kind}
        if kind is bool:
            options = {"action": "store_true"}
        elif get_origin(kind) is Literal:
            options = {"choices": get_args(kind)}
        elif get_origin(kind) is tuple:
            options = {"type": int, "nargs": "+", "metavar": "N"}
        shown = " ".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
        text = f"{doc.documentation} (default: {shown})"
        parser.add_argument(f"--{field.name}", default=field.default, help=text, **options)
    values = vars(parser.parse_args(args))
    return Command(**{**values, "batches": tuple(values["batches"])})


def main(args: Sequence[str] | None = None) -> int:
    """Run; returns the exit status."""
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
    except BrokenPipeError:  # the reader of the output is gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return 0 if figures["passed"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
