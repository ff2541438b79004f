"""`qfleet bench soak`: does a shard that is written and read at full speed for long keep its memory?

One shard process of Pong, small enough to be filled many times over (a wrap: as many items inserted as it holds, after the
first filling). This process writes from one thread and takes batches of 32 in another, and sets new priorities for each,
also for what was evicted since (counted as dropped); no limiter. Resident memory, file descriptors and threads of both
processes are read every 10 s; each minute the shard itself looks whether its parts agree. Judged is the time from 2
minutes after the buffer was full to the end (from a fifth of the whole after it was full, if that is less): a straight line
through the readings (least squares) may rise by less than 2% of where it starts. Exit status 1 where it rises by more,
where the shard's parts disagree, or after fewer than --wraps.
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
    check_picture,
    checked_shard_process,
    free_sampler,
    inserting,
    next_batch,
    pong_segments,
)
from benchmarks.pictures import draw_memory
from benchmarks.processes.shard import VALID
from replay.wire.sampler import Sampler
from replay.wire.writer import Writer
from rl.allocator import keep_freed_memory
from rl.bounds import at_least
from rl.errors import BadInput, RunFault

BATCH, BATCHES_AHEAD = 32, 16
PLAYED = 20_000  # transitions of Pong that are inserted again and again
SETTLES = 120.0  # seconds after the buffer is full, before memory is judged; a fifth of the whole if that is less
GROWTH = 0.02  # of memory that is not flat


@dataclass(frozen=True)
class Command:
    """Memory of a shard and of its clients at full speed over a long time."""

    minutes: float = 30.0
    """How long."""
    capacity: int = 200_000
    """Transitions that the shard holds."""
    wraps: int = 20
    """How often the content must at least be replaced as a whole."""
    every: float = 10.0
    """Seconds between readings."""
    to: str = "replay_soak.png"
    """File of the picture."""
    json: bool = False
    """The last line of output is a JSON object with the figures."""

    def __post_init__(self) -> None:
        at_least(self, 1, "capacity", "wraps")
        if self.every <= 0 or self.minutes * 60 < 10 * self.every:
            raise BadInput(
                f"--minutes is {self.minutes:g} and --every {self.every:g} s: write enough for at least 10 readings"
            )
        check_picture(self.to)


@dataclass(frozen=True)
class Reading:
    """Memory in MiB, counts and time at one moment."""

    seconds: float
    inserted: float
    sampled: float
    shard_mib: float
    shard_files: int
    shard_threads: int
    client_mib: float
    client_files: int
    client_threads: int


def run(c: Command, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Write and read for ``minutes``; returns the figures, `passed` among them."""
    keep_freed_memory()  # as the learner of a run does
    say(f"playing {PLAYED:,} transitions of Pong ...")
    segments = pong_segments(PLAYED)
    with contextlib.ExitStack() as stack:
        address, pid, check = stack.enter_context(checked_shard_process(c.capacity))
        writer = stack.enter_context(contextlib.closing(Writer([address])))
        sampler = stack.enter_context(contextlib.closing(free_sampler([address], BATCH, BATCHES_AHEAD)))
        faults = stack.enter_context(_inserting_beside(inserting(writer, segments)))
        readings, verdicts = _watched(c, sampler, pid, check, faults, say)
        stats = sampler.stats()
    figures = judged(readings, c.capacity, c.minutes * 60)
    figures |= {"dropped_updates": stats["dropped_updates"], "lost_updates": stats["lost_updates"]}
    figures |= {"checks": len(verdicts), "checks_failed": [v for v in verdicts if v != VALID]}
    figures["passed"] = figures["flat"] and not figures["checks_failed"] and figures["wraps"] >= c.wraps
    draw_memory(
        [r.seconds / 60 for r in readings],
        {"shard": [r.shard_mib for r in readings], "writer and sampler": [r.client_mib for r in readings]},
        figures["full_seconds"] / 60,
        figures["judged_from_seconds"] / 60,
        f"{c.minutes:g} minutes at full speed on {os.cpu_count()} cores, {figures['wraps']:,.0f} wraps of {c.capacity:,}",
        Path(c.to),
    )
    say(_summary(c, figures))
    return {**asdict(c), "cores": os.cpu_count(), **figures}


@contextlib.contextmanager
def _inserting_beside(insert: Callable[[], int]) -> Iterator[list[RunFault]]:
    """Insert in a thread of its own; yields a list to which it adds what ended it before its time."""
    stop, faults = threading.Event(), list[RunFault]()

    def loop() -> None:
        try:
            while not stop.is_set():
                insert()
        except RunFault as fault:
            faults.append(fault)

    thread = threading.Thread(target=loop, name="writing", daemon=True)
    thread.start()
    try:
        yield faults
    finally:
        stop.set()
        thread.join(timeout=10.0)  # if it waits for longer, closing the writer ends it


def _watched(
    c: Command, sampler: Sampler, pid: int, check: Callable[[], str], faults: list[RunFault], say: Callable[[str], None]
) -> tuple[list[Reading], list[str]]:
    """Sample and update until the time is over; returns the readings, and the shard's verdicts on itself."""
    rng, readings, verdicts = np.random.default_rng(0), list[Reading](), list[str]()

    def look(now: float) -> None:
        readings.append(_reading(now, sampler, pid))
        if now >= (len(verdicts) + 1) * 60.0 or now >= end:
            verdicts.append(check())
            say(_line(readings[-1], c.capacity, sampler, verdicts[-1]))

    began, end = time.monotonic(), c.minutes * 60
    next_batch(sampler)  # waits for the first items
    while (now := time.monotonic() - began) < end:
        batch = next_batch(sampler)
        if faults:
            raise faults[0]
        sampler.update_priorities(batch, rng.random(len(batch.keys), np.float32))
        if now >= len(readings) * c.every:
            look(now)
    look(now)
    return readings, verdicts


def _reading(now: float, sampler: Sampler, pid: int) -> Reading:
    stats, both = sampler.stats(), (pid, os.getpid())
    try:
        seen = [(p.memory_info().rss / 2**20, p.num_fds(), p.num_threads()) for p in map(psutil.Process, both)]
    except psutil.NoSuchProcess as error:
        raise RunFault("the replay shard has ended: its error stands above") from error
    return Reading(now, stats["inserted"], stats["sampled"], *seen[0], *seen[1])


def _line(r: Reading, capacity: int, sampler: Sampler, verdict: str) -> str:
    return (
        f"{r.seconds / 60:.1f} min: {r.inserted:,.0f} inserted ({_wraps(r, capacity):.1f} wraps), {r.sampled:,.0f} sampled, "
        f"{sampler.stats()['dropped_updates']:,.0f} updates dropped; shard {r.shard_mib:.1f} MiB, {r.shard_files} files, "
        f"{r.shard_threads} threads, {verdict}; client {r.client_mib:.1f} MiB, {r.client_files} files, "
        f"{r.client_threads} threads"
    )


def _wraps(r: Reading, capacity: int) -> float:
    return max(0.0, r.inserted / capacity - 1)


def judged(readings: Sequence[Reading], capacity: int, seconds: float) -> dict[str, Any]:
    """The figures of a soak of ``seconds``; `flat`: neither process's memory grew by GROWTH.

    Raises RunFault where the shard was never full.
    """
    full = next((r.seconds for r in readings if r.inserted >= capacity), np.inf)
    since = full + min(SETTLES, seconds / 5)
    late = [r for r in readings if r.seconds >= since]
    if len(late) < 3:
        raise RunFault(
            f"{readings[-1].inserted:,.0f} of {capacity:,} transitions were inserted, too late to judge the time after: "
            "write more --minutes or a smaller --capacity"
        )
    last = readings[-1]
    figures: dict[str, Any] = {
        "inserted": last.inserted,
        "sampled": last.sampled,
        "inserted_per_s": last.inserted / last.seconds,
        "sampled_per_s": last.sampled / last.seconds,
        "wraps": _wraps(last, capacity),
        "full_seconds": full,
        "judged_from_seconds": since,
        "flat": True,
    }
    for name in ("shard", "client"):
        slope, growth = grown([r.seconds for r in late], [getattr(r, f"{name}_mib") for r in late])
        figures[f"{name}_mib_first"] = getattr(late[0], f"{name}_mib")
        figures[f"{name}_mib_last"] = getattr(late[-1], f"{name}_mib")
        figures[f"{name}_mib_max"] = max(getattr(r, f"{name}_mib") for r in readings)
        figures[f"{name}_mib_per_hour"], figures[f"{name}_growth"] = slope, growth
        figures["flat"] &= growth < GROWTH
        for what in ("files", "threads"):
            figures[f"{name}_{what}_first"] = getattr(late[0], f"{name}_{what}")
            figures[f"{name}_{what}_max"] = max(getattr(r, f"{name}_{what}") for r in late)
            figures[f"{name}_{what}_last"] = getattr(last, f"{name}_{what}")
    return figures


def grown(seconds: Sequence[float], mib: Sequence[float]) -> tuple[float, float]:
    """(slope in MiB an hour, rise as a share of where it starts) of the least-squares line through the readings."""
    slope, at_0 = np.polyfit(seconds, mib, 1)
    rise = slope * (seconds[-1] - seconds[0])
    return float(slope * 3600), float(rise / (slope * seconds[0] + at_0))


def _summary(c: Command, f: dict[str, Any]) -> str:
    memory = ", ".join(
        f"{name} {f[f'{name}_mib_first']:.1f} to {f[f'{name}_mib_last']:.1f} MiB (most {f[f'{name}_mib_max']:.1f}), "
        f"{f[f'{name}_mib_per_hour']:+.1f} MiB/h, {f[f'{name}_growth']:+.2%}"
        for name in ("shard", "client")
    )
    failed = f"{len(f['checks_failed'])} of {f['checks']} checks failed {f['checks_failed'][:1]}"
    checks = failed if f["checks_failed"] else f"valid at {f['checks']} checks"
    return (
        f"{os.cpu_count()} cores, {c.minutes:g} minutes: {f['wraps']:.1f} wraps of {c.capacity:,} (at least {c.wraps} "
        f"asked), {f['inserted']:,.0f} inserted, {f['sampled']:,.0f} sampled, {f['dropped_updates']:,.0f} updates "
        f"dropped, {checks}; "
        f"{'flat' if f['flat'] else 'NOT FLAT'} (less than {GROWTH:.0%} asked): {memory}; "
        f"{'passed' if f['passed'] else 'NOT PASSED'}; picture: {c.to}"
    )
