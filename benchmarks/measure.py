"""Functions that the benchmarks share: child processes, Pong transitions, and timed windows.

A window is a fixed time during which one case is measured. The cases of a benchmark take turns (`run_alternating`), so
that a slow drift of the machine affects all of them alike; the median over a case's windows is reported.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from replay.importance_weights import BetaConfig
from replay.rate_limiter import LimiterConfig, RateLimiter
from replay.store.selectors import SelectorConfig
from replay.wire.sampler import Sampler
from replay.wire.writer import Writer
from rl.envs.config import EnvConfig
from rl.envs.make import make_environments
from rl.errors import BadInput, RunFault
from rl.returns import ReturnConfig
from rl.segments import SegmentBuilder, newest_frame
from rl.stepping import rollout
from rl.types import ObservationSpec, SampledBatch, Segment

PONG = EnvConfig(id="PongNoFrameskip-v4")
PONG_SPEC = ObservationSpec((84, 84), "uint8", 4)
PONG_ACTIONS = 6


def check_picture_path(to: str) -> None:
    """Raise BadInput unless ``to`` is the path of a .png file in an existing directory."""
    if not to.endswith(".png") or not Path(to).parent.is_dir():
        raise BadInput(f"--to is {to}: write the path of a .png file in an existing directory")


def read_line(process: subprocess.Popen[str], seconds: float, what: str) -> str:
    """Return the next line that ``process`` prints, without the newline.

    ``what`` names the process in messages. Raises RunFault if no line arrives within ``seconds`` or the process ended.
    """
    assert process.stdout is not None
    if not select.select([process.stdout], [], [], seconds)[0]:
        raise RunFault(f"{what} printed nothing for {seconds:g} s")
    line = process.stdout.readline()
    if not line:
        raise RunFault(f"{what} ended unexpectedly: see its error output above")
    return line.strip()


@contextlib.contextmanager
def shard_process_with_check(
    capacity: int, spec: ObservationSpec = PONG_SPEC, limited: bool = False, snapshots: Path | None = None
) -> Iterator[tuple[str, int, Callable[[], str]]]:
    """Run a replay shard in a separate process; yields (address, process id, check).

    ``check()`` makes the shard verify that its internal structures are consistent. It returns `processes.shard.VALID`
    or a line that describes the inconsistency. Raises RunFault if the shard does not start.
    """
    command = [sys.executable, "-m", "benchmarks.processes.shard", "--capacity", str(capacity), "--dtype", spec.dtype]
    command += ["--shape", *map(str, spec.frame_shape), "--stack", str(spec.stack)] + ["--limited"] * limited
    command += ["--alpha", str(SelectorConfig().exponent)] + (["--snapshots", str(snapshots)] if snapshots else [])
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line:
            raise RunFault("the replay shard did not start: see its error output above")

        def check() -> str:
            process.send_signal(signal.SIGUSR1)
            return read_line(process, 60.0, "the replay shard, asked to check itself,")

        yield f"127.0.0.1:{int(line)}", process.pid, check
    finally:
        process.kill()
        process.wait(timeout=10.0)
        process.stdout.close()


@contextlib.contextmanager
def shard_process(capacity: int, **options: Any) -> Iterator[tuple[str, int]]:
    """Run a replay shard in a separate process; yields its address (host:port) and process id.

    ``options`` are those of `shard_process_with_check`. Raises RunFault if the shard does not start.
    """
    with shard_process_with_check(capacity, **options) as (address, pid, _):
        yield address, pid


def pong_segments(items: int, n_step: int = 3, segment_items: int = 40, seed: int = 0) -> list[Segment]:
    """Play Pong with a random policy; returns segments that hold at least ``items`` items."""
    count = 8  # environments
    environments = make_environments(PONG, count)
    rng, returns = np.random.default_rng(seed), ReturnConfig(n_step, clip_reward=1.0)
    builders = [SegmentBuilder(returns, PONG_SPEC, segment_items, i << 24) for i in range(count)]
    steps = rollout(
        environments,
        lambda _: rng.integers(0, environments.actions, count),
        lambda episodes: rng.integers(0, 2**31, episodes),
    )
    segments: list[Segment] = []
    while sum(s.items for s in segments) < items:
        acted = next(steps)
        step = acted.step
        first, frames = (newest_frame(x, PONG_SPEC) for x in (acted.observation, step.observation))
        for i, builder in enumerate(builders):
            if acted.is_first[i]:
                builder.begin(first[i])
            segment = builder.add(
                action=int(acted.action[i]),
                reward=float(step.reward[i]),
                terminated=bool(step.terminated[i]),
                truncated=bool(step.truncated[i]),
                lost_life=bool(step.lost_life[i]),
                version=0,
                frame=frames[i],
            )
            if segment is not None:
                segments.append(segment.with_td_errors(np.ones(segment.items, np.float32)))
    environments.close()
    return segments


def make_inserter(writer: Writer, segments: Sequence[Segment]) -> Callable[[], int]:
    """Return a function that writes the next segment, in an endless cycle, and returns its number of items."""
    cycle = itertools.cycle(segments)

    def insert() -> int:
        segment = next(cycle)
        writer.write(segment)
        return segment.items

    return insert


def fill(address: str, items: int, segments: Sequence[Segment]) -> None:
    """Insert at least ``items`` items into the shard at ``address``; returns when all are acknowledged."""
    with contextlib.closing(Writer([address])) as writer:
        insert, done = make_inserter(writer, segments), 0
        while done < items:
            done += insert()
        writer.flush(60.0)


def unlimited_sampler(addresses: list[str], batch: int, batches_ahead: int) -> Sampler:
    """A sampler of Pong batches of ``batch`` items without a samples-per-insert limit."""
    limiter = RateLimiter(LimiterConfig(0.0, 1), max_insert=100, batch=batch, shards=len(addresses))
    return Sampler(addresses, PONG_SPEC, limiter, BetaConfig(), batches_ahead)


def next_batch(sampler: Sampler) -> SampledBatch:
    """Return the next batch. Raises RunFault if none arrives within 10 s."""
    batch = sampler.sample(10.0)
    if batch is None:
        raise RunFault(f"no batch from replay within 10 s: {sampler.blocked_reason() or 'a shard does not answer'}")
    return batch


def draw_batch(sampler: Sampler) -> int:
    """Draw the next batch and check its shape; returns its size in items. Raises RunFault as `next_batch` does."""
    batch = next_batch(sampler)
    assert batch.transitions.s_tm1.shape == batch.transitions.s_t.shape == (len(batch.keys), *PONG_SPEC.shape)
    return len(batch.keys)


def measure_rate(step: Callable[[], int], seconds: float, finish: Callable[[], None] = lambda: None) -> float:
    """Call ``step`` for ``seconds``, then ``finish`` once; returns units/s over the whole time.

    ``step`` returns how many units (transitions, updates, ...) one call did.
    """
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        done += step()
    finish()
    return done / (time.perf_counter() - began)


def measure_rate_and_latency(step: Callable[[], int], seconds: float) -> dict[str, float]:
    """Call ``step`` for ``seconds``; returns units/s (per_s) and the milliseconds per call (p50_ms, p99_ms).

    ``step`` returns how many units (transitions, updates, ...) one call did.
    """
    began = last = time.perf_counter()
    done, latencies = 0, []
    while last - began < seconds:
        done += step()
        now = time.perf_counter()
        latencies.append(now - last)
        last = now
    p50, p99 = np.percentile(latencies, [50, 99]) * 1e3
    return {"per_s": done / (last - began), "p50_ms": float(p50), "p99_ms": float(p99)}


def cpu_seconds(pids: Sequence[int]) -> float:
    """CPU seconds (user and system) that the processes have used since they started, in total."""
    return sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids)


def resident_mib(pids: Sequence[int]) -> float:
    """Resident memory (RSS) of the processes in MiB, in total."""
    return float(sum(psutil.Process(pid).memory_info().rss for pid in pids) / 2**20)


def run_with_idle_share(case: Callable[[], Mapping[str, float]]) -> dict[str, float]:
    """Run ``case``; returns its figures and ``idle``, the share of the machine's CPU time that no process used."""
    before = psutil.cpu_times()
    figures = case()
    spent = {name: now - then for name, now, then in zip(before._fields, psutil.cpu_times(), before, strict=True)}
    unused = spent["idle"] + spent.get("iowait", 0.0)
    total = sum(seconds for name, seconds in spent.items() if not name.startswith("guest"))  # included in user
    return {**figures, "idle": unused / total if total else 0.0}


def run_with_cpu_seconds(case: Callable[[], Mapping[str, float]], pids: Sequence[int]) -> dict[str, float]:
    """Run ``case``; returns its figures and ``cpu_s_per_million``, the CPU seconds of ``pids`` per million units.

    ``case`` must return ``per_s`` and do nothing outside its window, because the whole call is counted.
    """
    before, began = cpu_seconds(pids), time.perf_counter()
    figures = case()
    units = figures["per_s"] * (time.perf_counter() - began)
    return {**figures, "cpu_s_per_million": (cpu_seconds(pids) - before) / units * 1e6}


def run_alternating(
    cases: Mapping[str, Callable[[], Mapping[str, float]]],
    windows: int,
    log: Callable[[str], None],
    expected: Mapping[str, float] | None = None,
    after: float = 0.0,
) -> dict[str, dict[str, float]]:
    """Run ``windows`` rounds in which the cases take turns; returns the medians of each case's figures.

    Logs the number of windows first, and the figures and the estimated time left after each window.

    Args:
        cases: By name, a function that measures one window and returns its figures.
        windows: How often each case runs.
        log: Called with each line.
        expected: Seconds of one window by case, where known in advance.
        after: Seconds that the benchmark needs after the last window; added to the time left.
    """
    measured: dict[str, list[Mapping[str, float]]] = {name: [] for name in cases}
    durations: dict[str, list[float]] = {name: [] for name in cases}
    total, expected = windows * len(cases), expected or {}
    names = f" ({'; '.join(cases)})" if len(cases) <= 8 else ""
    is_estimated = expected.keys() >= cases.keys()
    duration = format_duration(seconds_left(durations, windows, expected) + after)
    log(
        f"measuring {total} windows: {windows} for each of {len(cases)} cases{names}"
        + (f"; about {duration} in total" if is_estimated else "")
    )
    for number, (_, (name, run)) in enumerate(itertools.product(range(windows), cases.items()), 1):
        began = time.monotonic()
        figures = run()
        durations[name].append(time.monotonic() - began)
        measured[name].append(figures)
        left = seconds_left(durations, windows, expected) + after
        log(
            f"window {number} of {total}, {name}: "
            + ", ".join(f"{k} {v:,.2f}" for k, v in figures.items())
            + (f"; about {format_duration(left)} left" if left > 0 else "")
        )
    return {name: {key: median([f[key] for f in rounds]) for key in rounds[0]} for name, rounds in measured.items()}


def seconds_left(durations: Mapping[str, Sequence[float]], windows: int, expected: Mapping[str, float]) -> float:
    """Estimate the seconds left until every case has had ``windows`` windows.

    ``durations`` holds the seconds of the finished windows by case. A window is estimated to take the mean of its case
    so far; if its case has none yet, its entry in ``expected``; if it has no entry, the mean of all finished windows.
    """
    finished = [seconds for own in durations.values() for seconds in own]
    mean = statistics.fmean(finished) if finished else 0.0
    estimate = {name: statistics.fmean(own) if own else expected.get(name, mean) for name, own in durations.items()}
    return sum((windows - len(own)) * estimate[name] for name, own in durations.items())


def format_duration(seconds: float) -> str:
    """Seconds as rounded text: ``40 s``, ``12 min``."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def median(values: Sequence[float]) -> float:
    """The median, as a float."""
    return float(statistics.median(values))
