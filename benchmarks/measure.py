"""What the measurements share: child processes, windows, and medians of alternating windows."""

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


def check_picture(to: str) -> None:
    """Raise BadInput where a picture cannot be written."""
    if not to.endswith(".png") or not Path(to).parent.is_dir():
        raise BadInput(f"--to is {to}: write the path of a .png file in a directory that is there")


def line_from(process: subprocess.Popen[str], seconds: float, what: str) -> str:
    """The next line that a process prints. Raises RunFault where none comes within ``seconds``."""
    assert process.stdout is not None
    if not select.select([process.stdout], [], [], seconds)[0]:
        raise RunFault(f"{what} has said nothing for {seconds:g} s")
    line = process.stdout.readline()
    if not line:
        raise RunFault(f"{what} has ended: its error stands above")
    return line.strip()


@contextlib.contextmanager
def checked_shard_process(
    capacity: int, spec: ObservationSpec = PONG_SPEC, limited: bool = False, snapshots: Path | None = None
) -> Iterator[tuple[str, int, Callable[[], str]]]:
    """A replay shard in a process of its own; yields its address, its process id, and a function that checks it.

    The function asks the shard whether its parts agree; returns `processes.shard.VALID` or what contradicts what.
    Raises RuntimeError where the shard does not start.
    """
    command = [sys.executable, "-m", "benchmarks.processes.shard", "--capacity", str(capacity), "--dtype", spec.dtype]
    command += ["--shape", *map(str, spec.frame_shape), "--stack", str(spec.stack)] + ["--limited"] * limited
    command += ["--alpha", str(SelectorConfig().exponent)] + (["--snapshots", str(snapshots)] if snapshots else [])
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line:
            raise RuntimeError("the replay shard did not start")

        def check() -> str:
            process.send_signal(signal.SIGUSR1)
            return line_from(process, 60.0, "the replay shard that was asked whether it is valid")

        yield f"127.0.0.1:{int(line)}", process.pid, check
    finally:
        process.kill()
        process.wait(timeout=10.0)
        process.stdout.close()


@contextlib.contextmanager
def shard_process(capacity: int, **options: Any) -> Iterator[tuple[str, int]]:
    """A replay shard in a process of its own; yields its address (host:port) and its process id."""
    with checked_shard_process(capacity, **options) as (address, pid, _):
        yield address, pid


def pong_segments(items: int, n_step: int = 3, segment_items: int = 40, seed: int = 0) -> list[Segment]:
    """Segments of about ``items`` transitions of real Pong frames under a random policy."""
    count = 8
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


def inserting(writer: Writer, segments: Sequence[Segment]) -> Callable[[], int]:
    """A function that inserts the next segment, from the start again after the last, and returns its items."""
    turn = itertools.cycle(segments)

    def insert() -> int:
        segment = next(turn)
        writer.write(segment)
        return segment.items

    return insert


def fill(address: str, items: int, segments: Sequence[Segment]) -> None:
    """Insert at least ``items`` items."""
    with contextlib.closing(Writer([address])) as writer:
        insert, done = inserting(writer, segments), 0
        while done < items:
            done += insert()
        writer.flush(60.0)


def free_sampler(addresses: list[str], batch: int, batches_ahead: int) -> Sampler:
    """A sampler of Pong without a samples-per-insert limit."""
    limiter = RateLimiter(LimiterConfig(0.0, 1), max_insert=100, batch=batch, shards=len(addresses))
    return Sampler(addresses, PONG_SPEC, limiter, BetaConfig(), batches_ahead)


def next_batch(sampler: Sampler) -> SampledBatch:
    """The next batch. Raises RunFault where none comes."""
    batch = sampler.sample(10.0)
    if batch is None:
        raise RunFault(f"replay gave no batch for 10 s: {sampler.blocked_reason() or 'a shard does not answer'}")
    return batch


def drawn(sampler: Sampler) -> int:
    """Take a batch; returns its size."""
    batch = next_batch(sampler)
    assert batch.transitions.s_tm1.shape == batch.transitions.s_t.shape == (len(batch.keys), *PONG_SPEC.shape)
    return len(batch.keys)


def rate(step: Callable[[], int], seconds: float, finish: Callable[[], None] = lambda: None) -> float:
    """Units/s that ``step`` reports, over a window of ``seconds`` and the time that ``finish`` takes."""
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        done += step()
    finish()
    return done / (time.perf_counter() - began)


def batches_timed(step: Callable[[], int], seconds: float) -> dict[str, float]:
    """Units/s that ``step`` reports, and milliseconds per call (p50 and p99), in a window of ``seconds``."""
    began = last = time.perf_counter()
    done, took = 0, []
    while last - began < seconds:
        done += step()
        now = time.perf_counter()
        took.append(now - last)
        last = now
    p50, p99 = np.percentile(took, [50, 99]) * 1e3
    return {"per_s": done / (last - began), "p50_ms": float(p50), "p99_ms": float(p99)}


def cpu_seconds(pids: Sequence[int]) -> float:
    """CPU seconds that the processes have used so far."""
    return sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids)


def resident_mib(pids: Sequence[int]) -> float:
    """Resident memory of the processes in MiB."""
    return float(sum(psutil.Process(pid).memory_info().rss for pid in pids) / 2**20)


def with_idle(case: Callable[[], Mapping[str, float]]) -> dict[str, float]:
    """The figures of ``case``, and the share of the machine's cores that was idle meanwhile, whoever used the rest."""
    before = psutil.cpu_times()
    found = case()
    spent = {name: now - then for name, now, then in zip(before._fields, psutil.cpu_times(), before, strict=True)}
    unused = spent["idle"] + spent.get("iowait", 0.0)
    total = sum(seconds for name, seconds in spent.items() if not name.startswith("guest"))  # user has the guest's
    return {**found, "idle": unused / total if total else 0.0}


def with_cpu(case: Callable[[], Mapping[str, float]], pids: Sequence[int]) -> dict[str, float]:
    """The figures of ``case``, which does nothing but its window, and CPU seconds of ``pids`` per million units."""
    before, began = cpu_seconds(pids), time.perf_counter()
    found = case()
    units = found["per_s"] * (time.perf_counter() - began)
    return {**found, "cpu_s_per_million": (cpu_seconds(pids) - before) / units * 1e6}


def alternating(
    cases: Mapping[str, Callable[[], Mapping[str, float]]],
    windows: int,
    say: Callable[[str], None],
    expected: Mapping[str, float] | None = None,
    after: float = 0.0,
) -> dict[str, dict[str, float]]:
    """Each case's figures as medians over ``windows`` rounds in which the cases take turns.

    Prints what is to come and, after each window, about how much is left. ``expected``: seconds that a window takes, by
    case, where that is known beforehand; ``after``: seconds that the benchmark goes on for after the last window.
    """
    seen: dict[str, list[Mapping[str, float]]] = {name: [] for name in cases}
    took: dict[str, list[float]] = {name: [] for name in cases}
    total, expected = windows * len(cases), expected or {}
    names = ", ".join(cases) if len(cases) <= 8 else f"{len(cases)} kinds"
    known = expected.keys() >= cases.keys()
    whole = roughly(seconds_left(took, windows, expected) + after)
    say(f"{total} windows to come, {windows} each of {names}" + (f"; about {whole} in all" if known else ""))
    for number, (_, (name, run)) in enumerate(itertools.product(range(windows), cases.items()), 1):
        began = time.monotonic()
        figures = run()
        took[name].append(time.monotonic() - began)
        seen[name].append(figures)
        left = seconds_left(took, windows, expected) + after
        say(
            f"window {number} of {total}, {name}: "
            + ", ".join(f"{k} {v:,.2f}" for k, v in figures.items())
            + (f"; about {roughly(left)} left" if left > 0 else "")
        )
    return {name: {key: median([f[key] for f in found]) for key in found[0]} for name, found in seen.items()}


def seconds_left(took: Mapping[str, Sequence[float]], windows: int, expected: Mapping[str, float]) -> float:
    """Seconds left of ``windows`` of each case, when those in ``took`` are done.

    A window will take as long as those of its case so far; without one, as long as expected; else as all windows so
    far.
    """
    done = [seconds for own in took.values() for seconds in own]
    usual = statistics.fmean(done) if done else 0.0
    each = {name: statistics.fmean(own) if own else expected.get(name, usual) for name, own in took.items()}
    return sum((windows - len(own)) * each[name] for name, own in took.items())


def roughly(seconds: float) -> str:
    """Seconds as text: ``40 s``, ``12 min``."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def median(values: Sequence[float]) -> float:
    """The median, as a float."""
    return float(statistics.median(values))
