"""`qfleet bench shards`: replay throughput with different numbers of shards and writers on one machine.

The items are real Pong frames with n-step 3. Each shard and each writer is a separate process; every writer writes to
all shards. One sampler, in this process, draws batches of 32 from all shards. Three cases are measured for each
combination: inserting alone, sampling alone, and both at the same time. The cases take turns; the medians over the
windows are reported.

`idle` is the share of the machine's CPU time that no process used during a window. Where it is near 0, the machine
itself limits the throughput, and more shards or writers do not help. Three upper limits in transitions/s are measured
as well:

store    packing and storing on all cores, without any transport
grpc     the bytes of the sampler's batches over one plain gRPC stream
lz4      decoding the sampler's batches in one thread

The figures are drawn as a picture and written to a .jsonl file next to it, one JSON object per line.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.measure import (
    PONG_SPEC,
    check_picture_path,
    draw_batch,
    fill,
    measure_rate,
    pong_segments,
    read_line,
    run_alternating,
    run_with_idle_share,
    shard_process,
    unlimited_sampler,
)
from benchmarks.pictures import draw_shards
from benchmarks.replay import measure_limits
from protos.codec import pack_segment
from replay.store.selectors import SelectorConfig
from replay.store.shard import Shard
from replay.wire.sampler import Sampler
from rl.allocator import keep_freed_memory
from rl.bounds import at_least, positive, require
from rl.errors import RunFault

BATCH, BATCHES_AHEAD = 32, 16
PLAYED = 2_000  # transitions of Pong that each process plays and then inserts repeatedly
Figures = Mapping[str, float]


@dataclass(frozen=True)
class Command:
    """Replay throughput with different numbers of shards and writers."""

    shards: tuple[int, ...] = (1, 2, 4)
    """Numbers of shard processes to measure."""
    writers: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Numbers of writer processes to measure."""
    seconds: float = 2.0
    """Length of a window in seconds."""
    windows: int = 2
    """Windows of each case; the medians are reported."""
    items: int = 20_000
    """Capacity of each shard in transitions."""
    to: str = "replay_shards.png"
    """Picture to write, a .png file; the figures go to a .jsonl file of the same name."""
    json: bool = False
    """The last line of output is a JSON object with the figures."""

    def __post_init__(self) -> None:
        at_least(self, 1, "windows", "items")
        for name, counts in (("shards", self.shards), ("writers", self.writers)):
            require(bool(counts) and min(counts) >= 1, self, name, "one or more numbers, each at least 1")
        positive(self, "seconds", unit="seconds")
        check_picture_path(self.to)


class WriterProcesses:
    """Processes of `processes.writer` that insert at the same time.

    writers = WriterProcesses(4)
    writers.wait()
    figures = writers.insert(2, addresses, seconds, dict)  # repeatedly
    writers.close()
    """

    def __init__(self, count: int) -> None:
        command = [sys.executable, "-m", "benchmarks.processes.writer", str(PLAYED)]
        single_threaded = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._running = [
            subprocess.Popen(
                [*command, str(i)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=single_threaded
            )
            for i in range(count)
        ]

    def wait(self) -> None:
        """Wait until all have played their transitions. Raises RunFault if one ends or takes more than 300 s."""
        for process in self._running:
            read_line(process, 300.0, "a writer that was playing Pong")

    def insert(self, count: int, addresses: list[str], seconds: float, meanwhile: Callable[[], Figures]) -> Figures:
        """Let ``count`` writers insert for ``seconds`` and run ``meanwhile``; returns the figures.

        They are the total inserted_per_s of the writers, which start at the same moment, idle (`run_with_idle_share`),
        and the figures that ``meanwhile`` returns. Raises RunFault if a writer ends.
        """
        used = self._running[:count]
        for process in used:
            _send_line(process, f"{seconds} {' '.join(addresses)}")
        for process in used:
            read_line(process, 60.0, "a writer that was connecting")

        def window() -> Figures:
            for process in used:
                _send_line(process, "go")
            figures = meanwhile()
            rates = [float(read_line(process, seconds + 60.0, "a writer that was inserting")) for process in used]
            return {"inserted_per_s": sum(rates), **figures}

        return run_with_idle_share(window)

    def close(self) -> None:
        """End the processes and close their pipes."""
        for process in self._running:
            process.kill()
            process.wait(timeout=10.0)
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                pipe.close()


def _send_line(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    try:
        print(line, file=process.stdin, flush=True)
    except BrokenPipeError as error:
        raise RunFault("a writer process ended unexpectedly: see its error output above") from error


def run(c: Command, log: Callable[[str], None] = print) -> dict[str, Any]:
    """Measure, and write the picture and the figures; returns the figures. Raises RunFault."""
    keep_freed_memory()  # as the learner of a run does
    cores = os.cpu_count() or 1
    log(f"{cores} cores; {max(c.writers)} writers play {PLAYED:,} transitions of Pong each ...")
    with _start_processes(c) as (addresses, writers, samplers):
        limits = _measure_limits(addresses[0], c.seconds / 2, cores)
        shown = (f"{name.removeprefix('limit_').removesuffix('_per_s')} {x:,.0f}" for name, x in limits.items())
        log("upper limits, transitions/s: " + ", ".join(shown))
        cases: dict[str, Callable[[], Figures]] = {}
        for k in c.shards:
            sample = partial(_measure_sampling, samplers[k], c.seconds)
            cases[f"{k} shards, sampled"] = partial(run_with_idle_share, sample)
            for n in c.writers:
                insert = partial(writers.insert, n, addresses[:k], c.seconds)
                cases[f"{k} shards, {n} writers, inserted"] = partial(insert, dict)
                cases[f"{k} shards, {n} writers, both"] = partial(insert, sample)
        found = run_alternating(cases, c.windows, log, dict.fromkeys(cases, c.seconds))
    rows = [
        {
            "shards": k,
            "writers": n,
            **found[f"{k} shards, {n} writers, inserted"],
            **{f"{name}_alone": x for name, x in found[f"{k} shards, sampled"].items()},
            **{f"{name}_both": x for name, x in found[f"{k} shards, {n} writers, both"].items()},
        }
        for k, n in itertools.product(c.shards, c.writers)
    ]
    to = Path(c.to)
    machine = {"cores": cores, "seconds": c.seconds, "windows": c.windows, **limits}
    to.with_suffix(".jsonl").write_text("".join(json.dumps({**machine, **row}) + "\n" for row in rows))
    draw_shards(rows, machine, to)
    best = {name: max(rows, key=lambda row: row[name]) for name in ("inserted_per_s", "sampled_per_s_alone")}
    for name, row in best.items():
        log(f"most {name.split('_')[0]}: {row[name]:,.0f}/s with {row['shards']} shard(s), {row['writers']} writer(s)")
    log(f"picture: {to}; figures: {to.with_suffix('.jsonl')}")
    return {**machine, "rows": rows}


@contextlib.contextmanager
def _start_processes(c: Command) -> Iterator[tuple[list[str], WriterProcesses, dict[int, Sampler]]]:
    """Start the writers and the largest number of shards, and fill the shards.

    Yields the shards' addresses, the writers, and, by each number k in ``c.shards``, a sampler of the first k shards.
    """
    with contextlib.ExitStack() as stack:
        writers = stack.enter_context(contextlib.closing(WriterProcesses(max(c.writers))))
        addresses = [stack.enter_context(shard_process(c.items))[0] for _ in range(max(c.shards))]
        segments = pong_segments(PLAYED)
        for address in addresses:
            fill(address, c.items, segments)
        samplers = {}
        for k in c.shards:
            samplers[k] = stack.enter_context(
                contextlib.closing(unlimited_sampler(addresses[:k], BATCH, BATCHES_AHEAD))
            )
            draw_batch(samplers[k])
        writers.wait()
        yield addresses, writers, samplers


def _measure_sampling(sampler: Sampler, seconds: float) -> Figures:
    return {"sampled_per_s": measure_rate(lambda: draw_batch(sampler), seconds)}


def _measure_limits(address: str, seconds: float, cores: int) -> dict[str, float]:
    """Measure the upper limits that the module docstring describes; returns transitions/s by name."""
    cycle = enumerate(itertools.cycle(pong_segments(PLAYED)), start=1)
    shard = Shard(PLAYED, PONG_SPEC, SelectorConfig(), limited=False)

    def store() -> int:
        sequence, segment = next(cycle)
        packed = pack_segment(segment)
        shard.check(packed)
        shard.insert("bench", sequence, packed)
        return segment.items

    sampling = measure_limits(address, BATCH, seconds)
    return {
        "limit_store_per_s": cores * measure_rate(store, seconds),
        "limit_grpc_per_s": sampling["grpc_per_s"],
        "limit_lz4_per_s": sampling["lz4_per_s"],
    }
