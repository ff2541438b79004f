"""`qfleet bench soak`: does the memory of a shard and its clients stay constant under full load?

One shard holds Pong transitions and is small enough to be replaced many times. A wrap is one complete replacement: once
the shard is full, as many inserted items as it holds. This process inserts from one thread, and samples batches of 32
in another and updates their priorities, without a samples-per-insert limit. Updates of items that were evicted in the
meantime are counted as dropped.

Resident memory, file descriptors and threads of both processes are read every --every seconds. Every minute the shard
checks that its internal structures are consistent. The test looks at the readings from 2 minutes after the shard was
full (or a fifth of --minutes, if that is shorter) to the end. It fits a straight line to the memory of each process by
least squares. The memory is flat if the line rises by less than 2% of its start. The exit status is 1 if the memory is
not flat, if a check of the shard fails, or if there were fewer wraps than --wraps.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.measure import (
    check_picture_path,
    make_inserter,
    next_batch,
    pong_segments,
    shard_process_with_check,
    unlimited_sampler,
)
from benchmarks.pictures import draw_memory
from benchmarks.processes.shard import VALID
from replay.wire.sampler import Sampler
from replay.wire.writer import Writer
from rl.allocator import keep_freed_memory
from rl.bounds import at_least
from rl.errors import BadInput, RunFault

BATCH, BATCHES_AHEAD = 32, 16
PLAYED = 20_000  # transitions of Pong that are played and then inserted repeatedly
SETTLE_SECONDS = 120.0  # from full to the first reading that counts; at most a fifth of the duration
MAX_GROWTH = 0.02  # relative; memory that grows by this much is not flat


@dataclass(frozen=True)
class Command:
    """Check that the memory of a replay shard and its clients stays constant under full load."""

    minutes: float = 30.0
    """Duration in minutes."""
    capacity: int = 200_000
    """Capacity of the shard in transitions."""
    wraps: int = 20
    """Times that the content must be replaced completely for the benchmark to pass."""
    every: float = 10.0
    """Seconds between readings."""
    to: str = "replay_soak.png"
    """Picture to write, a .png file."""
    json: bool = False
    """The last line of output is a JSON object with the figures."""

    def __post_init__(self) -> None:
        at_least(self, 1, "capacity", "wraps")
        if self.every <= 0 or self.minutes * 60 < 10 * self.every:
            raise BadInput(
                f"--every is {self.every:g}: write a positive number of seconds, at most a tenth of --minutes "
                f"({self.minutes * 6:g} s)"
            )
        check_picture_path(self.to)


@dataclass(frozen=True)
class Reading:
    """Seconds since the start, counts of items, and memory, open files and threads of both processes at that time."""

    seconds: float
    inserted: float
    sampled: float
    shard_mib: float
    shard_files: int
    shard_threads: int
    client_mib: float
    client_files: int
    client_threads: int


def run(c: Command, log: Callable[[str], None] = print) -> dict[str, Any]:
    """Insert and sample for ``c.minutes``; returns the figures by name, with ``passed``.

    Raises RunFault if the shard fails or was not full early enough.
    """
    keep_freed_memory()  # as the learner of a run does
    log(f"playing {PLAYED:,} transitions of Pong ...")
    segments = pong_segments(PLAYED)
    with contextlib.ExitStack() as stack:
        address, pid, check = stack.enter_context(shard_process_with_check(c.capacity))
        writer = stack.enter_context(contextlib.closing(Writer([address])))
        sampler = stack.enter_context(contextlib.closing(unlimited_sampler([address], BATCH, BATCHES_AHEAD)))
        faults = stack.enter_context(_inserting_in_background(make_inserter(writer, segments)))
        readings, verdicts = _sample_and_record(c, sampler, pid, check, faults, log)
        stats = sampler.stats()
    figures = judge_readings(readings, c.capacity, c.minutes * 60)
    figures |= {"dropped_updates": stats["dropped_updates"], "lost_updates": stats["lost_updates"]}
    figures |= {"checks": len(verdicts), "checks_failed": [v for v in verdicts if v != VALID]}
    figures["passed"] = figures["flat"] and not figures["checks_failed"] and figures["wraps"] >= c.wraps
    draw_memory(
        [r.seconds / 60 for r in readings],
        {"shard": [r.shard_mib for r in readings], "writer and sampler": [r.client_mib for r in readings]},
        figures["full_seconds"] / 60,
        figures["judged_from_seconds"] / 60,
        f"{c.minutes:g} minutes of full load on {os.cpu_count()} cores, {figures['wraps']:,.0f} wraps of {c.capacity:,}",
        Path(c.to),
    )
    log(_summary_line(c, figures))
    return {**asdict(c), "cores": os.cpu_count(), **figures}


@contextlib.contextmanager
def _inserting_in_background(insert: Callable[[], int]) -> Iterator[list[RunFault]]:
    """Call ``insert`` repeatedly in a separate thread; yields a list that gets the RunFault if one ends the thread."""
    stop, faults = threading.Event(), list[RunFault]()

    def loop() -> None:
        try:
            while not stop.is_set():
                insert()
        except RunFault as fault:
            faults.append(fault)

    thread = threading.Thread(target=loop, name="inserting", daemon=True)
    thread.start()
    try:
        yield faults
    finally:
        stop.set()
        thread.join(timeout=10.0)  # if it still waits after that, closing the writer ends it


def _sample_and_record(
    c: Command, sampler: Sampler, pid: int, check: Callable[[], str], faults: list[RunFault], log: Callable[[str], None]
) -> tuple[list[Reading], list[str]]:
    """Sample and update priorities for ``c.minutes``; returns the readings and the results of the shard's checks."""
    rng, readings, verdicts = np.random.default_rng(0), list[Reading](), list[str]()

    def record(now: float) -> None:
        readings.append(_take_reading(now, sampler, pid))
        if now >= (len(verdicts) + 1) * 60.0 or now >= end:
            verdicts.append(check())
            log(_progress_line(readings[-1], c.capacity, sampler, verdicts[-1]))

    began, end = time.monotonic(), c.minutes * 60
    next_batch(sampler)  # waits for the first items
    while (now := time.monotonic() - began) < end:
        batch = next_batch(sampler)
        if faults:
            raise faults[0]
        sampler.update_priorities(batch, rng.random(len(batch.keys), np.float32))
        if now >= len(readings) * c.every:
            record(now)
    record(now)
    return readings, verdicts


def _take_reading(now: float, sampler: Sampler, pid: int) -> Reading:
    stats, both = sampler.stats(), (pid, os.getpid())
    try:
        seen = [(p.memory_info().rss / 2**20, p.num_fds(), p.num_threads()) for p in map(psutil.Process, both)]
    except psutil.NoSuchProcess as error:
        raise RunFault("the replay shard ended unexpectedly: see its error output above") from error
    return Reading(now, stats["inserted"], stats["sampled"], *seen[0], *seen[1])


def _progress_line(r: Reading, capacity: int, sampler: Sampler, verdict: str) -> str:
    return (
        f"{r.seconds / 60:.1f} min: {r.inserted:,.0f} inserted ({_count_wraps(r, capacity):.1f} wraps), "
        f"{r.sampled:,.0f} sampled, {sampler.stats()['dropped_updates']:,.0f} updates dropped; "
        f"shard {r.shard_mib:.1f} MiB, {r.shard_files} files, {r.shard_threads} threads, {verdict}; "
        f"client {r.client_mib:.1f} MiB, {r.client_files} files, "
        f"{r.client_threads} threads"
    )


def _count_wraps(r: Reading, capacity: int) -> float:
    return max(0.0, r.inserted / capacity - 1)


def judge_readings(readings: Sequence[Reading], capacity: int, seconds: float) -> dict[str, Any]:
    """Evaluate the readings of a test of ``seconds``; returns the figures by name.

    ``flat`` is true if the memory of both processes grew by less than MAX_GROWTH (`fit_growth`). Raises RunFault if
    fewer than 3 readings were taken after the shard was full and had settled.
    """
    full = next((r.seconds for r in readings if r.inserted >= capacity), np.inf)
    since = full + min(SETTLE_SECONDS, seconds / 5)
    late = [r for r in readings if r.seconds >= since]
    if len(late) < 3:
        raise RunFault(
            f"{readings[-1].inserted:,.0f} transitions were inserted into a shard of {capacity:,}, "
            "which leaves too few readings of the full shard: write more --minutes or a smaller --capacity"
        )
    last = readings[-1]
    figures: dict[str, Any] = {
        "inserted": last.inserted,
        "sampled": last.sampled,
        "inserted_per_s": last.inserted / last.seconds,
        "sampled_per_s": last.sampled / last.seconds,
        "wraps": _count_wraps(last, capacity),
        "full_seconds": full,
        "judged_from_seconds": since,
        "flat": True,
    }
    for name in ("shard", "client"):
        slope, growth = fit_growth([r.seconds for r in late], [getattr(r, f"{name}_mib") for r in late])
        figures[f"{name}_mib_first"] = getattr(late[0], f"{name}_mib")
        figures[f"{name}_mib_last"] = getattr(late[-1], f"{name}_mib")
        figures[f"{name}_mib_max"] = max(getattr(r, f"{name}_mib") for r in readings)
        figures[f"{name}_mib_per_hour"], figures[f"{name}_growth"] = slope, growth
        figures["flat"] &= growth < MAX_GROWTH
        for what in ("files", "threads"):
            figures[f"{name}_{what}_first"] = getattr(late[0], f"{name}_{what}")
            figures[f"{name}_{what}_max"] = max(getattr(r, f"{name}_{what}") for r in late)
            figures[f"{name}_{what}_last"] = getattr(last, f"{name}_{what}")
    return figures


def fit_growth(seconds: Sequence[float], mib: Sequence[float]) -> tuple[float, float]:
    """Fit a line to memory readings by least squares; returns (slope in MiB/hour, rise relative to the line's start).

    ``seconds`` and ``mib`` are the times and values of the readings.
    """
    slope, at_0 = np.polyfit(seconds, mib, 1)
    rise = slope * (seconds[-1] - seconds[0])
    return float(slope * 3600), float(rise / (slope * seconds[0] + at_0))


def _summary_line(c: Command, f: dict[str, Any]) -> str:
    memory = ", ".join(
        f"{name} {f[f'{name}_mib_first']:.1f} to {f[f'{name}_mib_last']:.1f} MiB (max {f[f'{name}_mib_max']:.1f}), "
        f"{f[f'{name}_mib_per_hour']:+.1f} MiB/h, {f[f'{name}_growth']:+.2%}"
        for name in ("shard", "client")
    )
    failed = f"{len(f['checks_failed'])} of {f['checks']} checks failed {f['checks_failed'][:1]}"
    checks = failed if f["checks_failed"] else f"valid in all {f['checks']} checks"
    return (
        f"{os.cpu_count()} cores, {c.minutes:g} minutes: {f['wraps']:.1f} wraps of {c.capacity:,} items (required: "
        f"{c.wraps}), {f['inserted']:,.0f} inserted, {f['sampled']:,.0f} sampled, {f['dropped_updates']:,.0f} updates "
        f"dropped, {checks}; "
        f"{'flat' if f['flat'] else 'NOT FLAT'} (limit: {MAX_GROWTH:.0%} growth): {memory}; "
        f"{'passed' if f['passed'] else 'NOT PASSED'}; picture: {c.to}"
    )
