"""`qfleet bench shards`: replay throughput over the number of shards and of writers, all on one machine.

Real Pong frames, n-step 3. Each shard and each writer is a process of its own; every writer writes to all shards. One
sampler, in this process, takes batches of 32 out of all shards. Inserted and sampled transitions a second are measured each
by itself, and both at once. Idle: the share of the machine's cores that nobody used during a window; near 0 the machine is
what bounds the figure, and more shards or writers only share it. Limits: transitions a second that all cores could pack and
store, were there nothing to carry; the bytes of batches over one plain gRPC stream; their LZ4 unpacked in one thread.
Cases take turns; medians over the windows. Figures go to a picture and, one JSON object a line, to a file beside it.
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
    alternating,
    check_picture,
    drawn,
    fill,
    free_sampler,
    line_from,
    pong_segments,
    rate,
    shard_process,
    with_idle,
)
from benchmarks.pictures import draw_shards
from benchmarks.replay import limits
from protos.codec import pack_segment
from replay.store.selectors import SelectorConfig
from replay.store.shard import Shard
from replay.wire.sampler import Sampler
from rl.allocator import keep_freed_memory
from rl.bounds import at_least, positive
from rl.errors import BadInput, RunFault

BATCH, BATCHES_AHEAD = 32, 16
PLAYED = 2_000  # transitions of Pong that a process plays, to insert them again and again
Figures = Mapping[str, float]


@dataclass(frozen=True)
class Command:
    """Replay throughput over shards and writers."""

    shards: tuple[int, ...] = (1, 2, 4)
    """Numbers of shard processes to measure."""
    writers: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Numbers of writer processes to measure."""
    seconds: float = 2.0
    """Length of a window."""
    windows: int = 2
    """Windows of each kind, taking turns; medians are reported."""
    items: int = 20_000
    """Capacity of a shard in transitions."""
    to: str = "replay_shards.png"
    """File of the picture; the figures go to the same name with .jsonl."""
    json: bool = False
    """The last line of output is a JSON object with the figures."""

    def __post_init__(self) -> None:
        at_least(self, 1, "windows", "items")
        for name, counts in (("shards", self.shards), ("writers", self.writers)):
            if not counts or min(counts) < 1:
                raise BadInput(f"--{name} {counts}: write numbers of {name} from 1 on")
        positive(self, "seconds", unit="seconds")
        check_picture(self.to)


class Writers:
    """Processes of `processes.writer` that insert together."""

    def __init__(self, count: int) -> None:
        command = [sys.executable, "-m", "benchmarks.processes.writer", str(PLAYED)]
        pinned = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._running = [
            subprocess.Popen([*command, str(i)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=pinned)
            for i in range(count)
        ]

    def wait(self) -> None:
        """Wait until all have played their transitions."""
        for process in self._running:
            line_from(process, 300.0, "a writer that plays Pong")

    def insert(self, count: int, addresses: list[str], seconds: float, meanwhile: Callable[[], Figures]) -> Figures:
        """Transitions/s of ``count`` writers that start at the same moment, idle share, and ``meanwhile``'s figures."""
        used = self._running[:count]
        for process in used:
            _tell(process, f"{seconds} {' '.join(addresses)}")
        for process in used:
            line_from(process, 60.0, "a writer that connects")

        def window() -> Figures:
            for process in used:
                _tell(process, "go")
            found = meanwhile()
            rates = [float(line_from(process, seconds + 60.0, "a writer that inserts")) for process in used]
            return {"inserted_per_s": sum(rates), **found}

        return with_idle(window)

    def close(self) -> None:
        """End the processes and close their pipes."""
        for process in self._running:
            process.kill()
            process.wait(timeout=10.0)
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                pipe.close()


def _tell(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    try:
        print(line, file=process.stdin, flush=True)
    except BrokenPipeError as error:
        raise RunFault("a writer process has ended: its error stands above") from error


def run(c: Command, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Measure, and write the picture and the figures; returns them."""
    keep_freed_memory()  # as the learner of a run does
    cores = os.cpu_count() or 1
    say(f"{cores} cores; {max(c.writers)} writers play {PLAYED:,} transitions of Pong each ...")
    with _started(c) as (addresses, writers, samplers):
        bounds = _bounds(addresses[0], c.seconds / 2, cores)
        say("limits: " + ", ".join(f"{name} {value:,.0f}" for name, value in bounds.items()))
        cases: dict[str, Callable[[], Figures]] = {}
        for k in c.shards:
            sample = partial(_sampled, samplers[k], c.seconds)
            cases[f"{k} shards, sampled"] = partial(with_idle, sample)
            for n in c.writers:
                insert = partial(writers.insert, n, addresses[:k], c.seconds)
                cases[f"{k} shards, {n} writers, inserted"] = partial(insert, dict)
                cases[f"{k} shards, {n} writers, both"] = partial(insert, sample)
        found = alternating(cases, c.windows, say, dict.fromkeys(cases, c.seconds))
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
    machine = {"cores": cores, "seconds": c.seconds, "windows": c.windows, **bounds}
    to.with_suffix(".jsonl").write_text("".join(json.dumps({**machine, **row}) + "\n" for row in rows))
    draw_shards(rows, machine, to)
    best = {name: max(rows, key=lambda row: row[name]) for name in ("inserted_per_s", "sampled_per_s_alone")}
    for name, row in best.items():
        say(f"most {name.split('_')[0]}: {row[name]:,.0f}/s with {row['shards']} shard(s), {row['writers']} writer(s)")
    say(f"picture: {to}; figures: {to.with_suffix('.jsonl')}")
    return {**machine, "rows": rows}


@contextlib.contextmanager
def _started(c: Command) -> Iterator[tuple[list[str], Writers, dict[int, Sampler]]]:
    """Addresses of as many full shards as needed at most, the writers, and a sampler over the first K shards for each K."""
    with contextlib.ExitStack() as stack:
        writers = stack.enter_context(contextlib.closing(Writers(max(c.writers))))
        addresses = [stack.enter_context(shard_process(c.items))[0] for _ in range(max(c.shards))]
        segments = pong_segments(PLAYED)
        for address in addresses:
            fill(address, c.items, segments)
        samplers = {}
        for k in c.shards:
            samplers[k] = stack.enter_context(contextlib.closing(free_sampler(addresses[:k], BATCH, BATCHES_AHEAD)))
            drawn(samplers[k])
        writers.wait()
        yield addresses, writers, samplers


def _sampled(sampler: Sampler, seconds: float) -> Figures:
    return {"sampled_per_s": rate(lambda: drawn(sampler), seconds)}


def _bounds(address: str, seconds: float, cores: int) -> dict[str, float]:
    """Upper limits in transitions/s, as the head of this file says."""
    turn = enumerate(itertools.cycle(pong_segments(PLAYED)), start=1)
    shard = Shard(PLAYED, PONG_SPEC, SelectorConfig(), limited=False)

    def store() -> int:
        sequence, segment = next(turn)
        packed = pack_segment(segment)
        shard.check(packed)
        shard.insert("bench", sequence, packed)
        return segment.items

    found = limits(address, BATCH, seconds)
    return {
        "limit_store_per_s": cores * rate(store, seconds),
        "limit_grpc_per_s": found["grpc_per_s"],
        "limit_lz4_per_s": found["lz4_per_s"],
    }
