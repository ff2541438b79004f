"""`qfleet bench pipeline`: `qfleet train` on Pong, compared with Stable-Baselines3 and with an upper limit.

Nature network, batch 32, one update per 4 agent steps, Double DQN, n-step 3, prioritized replay. The medians over the
windows are reported of:

loop        agent steps/s and updates/s of `qfleet train` in float32 and, where the processor supports it, bfloat16
limit       at most 1 / (u + 4 a / C) updates/s are possible on C cores. u is the seconds of one update when nothing else
            runs: targets and gradient step in two threads, or one after the other on all cores, whichever is faster.
            a is the CPU seconds of one agent step when nothing else runs.
sb3         environment steps/s of Stable-Baselines3's DQN with the same sizes
efficiency  updates/s of a learner that samples from a full shard (no limiter, no actors), divided by updates/s of
            the same learner on one batch in memory
"""

from __future__ import annotations

import csv
import functools
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.measure import (
    PONG,
    PONG_ACTIONS,
    PONG_SPEC,
    format_duration,
    measure_rate,
    pong_segments,
    run_alternating,
    shard_process,
)
from benchmarks.stubs import DiscardingSink, SameBatchSource
from learner.learner import Learner, LearnerConfig, learner_threads
from learner.update import UpdateConfig, Updater
from replay.importance_weights import BetaConfig
from replay.rate_limiter import LimiterConfig, RateLimiter
from replay.wire.sampler import Sampler
from replay.wire.writer import Writer
from rl.allocator import keep_freed_memory
from rl.bounds import at_least
from rl.envs.make import make_environments
from rl.errors import BadInput, RunFault
from rl.networks import NetworkConfig, make_network, prepare_for_acting, q_values
from rl.policies import epsilon_greedy
from rl.ports import BatchSource
from rl.precision import Precision, pick_dtype
from rl.stepping import SeedSequence, rollout

NATURE = NetworkConfig(kind="nature", hidden=(512,), dueling=False)
STEPS_PER_UPDATE = 4
BATCH = 32
LIMIT_SECONDS, EFFICIENCY_SECONDS = 8.0, 20.0  # to measure one rate of the limit, and one of the efficiency
# Estimates in seconds, for the time left:
WARM_UP, START = 35.0, 18.0  # of a run: until it learns at a steady rate; to start and to stop
SB3_START = 20.0  # until Stable-Baselines3 learns
FILL = 12.0  # to fill the shard for the efficiency
ENVIRONMENTS = 16


@dataclass(frozen=True)
class Command:
    """Throughput of `qfleet train` on Pong: about 20 minutes; about 4 with --seconds 5 --windows 1."""

    seconds: float = 60.0
    """Length of a window in seconds."""
    windows: int = 3
    """Windows of each case; the medians are reported."""
    sb3: bool = True
    """Measure Stable-Baselines3 too; needs pip install 'qfleet[bench]'."""
    json: bool = False
    """The last line of output is a JSON object with the figures."""

    def __post_init__(self) -> None:
        at_least(self, 1, "windows", "seconds")
        if self.sb3 and importlib.util.find_spec("stable_baselines3") is None:
            raise BadInput(
                "Stable-Baselines3 is not installed: run pip install 'qfleet[bench]', or leave it out with --no-sb3"
            )


def run(c: Command, log: Callable[[str], None] = print) -> dict[str, float]:
    """Measure; returns the figures by name. Raises RunFault if a run fails."""
    keep_freed_memory()  # as the learner of a run does
    has_bfloat16 = pick_dtype("auto", torch.device("cpu")) == torch.bfloat16
    precisions: list[Precision] = ["float32", "bfloat16"] if has_bfloat16 else ["float32"]
    if not has_bfloat16:
        log("bfloat16 is skipped: this processor does not support it")
    cases: dict[str, Callable[[], dict[str, float]]] = {
        p: functools.partial(_measure_loop, c.seconds, p) for p in precisions
    }
    cases["limit"] = lambda: _measure_limits(precisions)
    if c.sb3:
        cases["sb3"] = lambda: _measure_sb3(c.seconds)
    expected, after = _expected_seconds(c, len(precisions)), c.windows * 2 * EFFICIENCY_SECONDS + FILL
    whole = c.windows * sum(expected[name] for name in cases) + after
    log(
        f"about {format_duration(whole)} in total; --seconds, --windows and --no-sb3 make it shorter. "
        f"The learner efficiency ({c.windows} windows) is measured last"
    )
    medians = run_alternating(cases, c.windows, log, expected, after)
    result = dict(medians["sb3"]) if c.sb3 else {}
    for precision, suffix in zip(precisions, ("", "_bf16"), strict=False):
        result[f"steps_per_s{suffix}"] = medians[precision]["steps_per_s"]
        result[f"updates_per_s{suffix}"] = medians[precision]["updates_per_s"]
        result[f"limit_updates_per_s{suffix}"] = medians["limit"][precision]
    result["learner_efficiency"] = _measure_efficiency(c.windows, log)
    for precision, suffix in zip(precisions, ("", "_bf16"), strict=False):
        log(
            f"{precision}: {result[f'updates_per_s{suffix}'] / result[f'limit_updates_per_s{suffix}']:.0%} of its limit"
        )
    log(f"learner efficiency {result['learner_efficiency']:.2f}")
    return result


def _expected_seconds(c: Command, precisions: int) -> dict[str, float]:
    """Estimate the seconds that one window of each case takes."""
    loop = START + WARM_UP + c.seconds
    limit = precisions * 3 * (LIMIT_SECONDS + 0.3)
    return {"float32": loop, "bfloat16": loop, "limit": limit, "sb3": SB3_START + c.seconds}


def _measure_loop(seconds: float, precision: Precision) -> dict[str, float]:
    """Run `qfleet train`; returns steps/s and updates/s from its metrics.csv, counted from the 50th update on."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        flags = f"""
            --network.kind nature --network.hidden 512 --network.no-dueling --network.no-layer-norm
            --returns.n-step 3 --learner.double
            --learner.batch-size {BATCH} --learner.learning-rate 1e-4 --learner.learning-rate-updates 0 --learner.threads 0
            --learner.device cpu
            --replay.limiter.samples-per-insert {BATCH / STEPS_PER_UPDATE} --replay.limiter.min-size 2000
            --replay.limiter.slack 1500 --evaluation.period 0 --evaluation.goal inf --max-minutes {(seconds + WARM_UP) / 60}
            --learner.precision {precision} --actors.precision {precision}
        """
        command = [sys.executable, "-m", "qfleet", "train", "pong", "--run-dir", str(run_dir), *flags.split()]
        _run_child(command, seconds + 300, "qfleet train")
        with (run_dir / "metrics.csv").open() as file:
            rows = list(csv.DictReader(file))
    learning = [r for r in rows if int(r["updates"]) > 50][:-1]  # the last row was written after the actors stopped
    first, last = learning[0], learning[-1]
    span = float(last["wall_seconds"]) - float(first["wall_seconds"])
    steps, updates = (int(last[k]) - int(first[k]) for k in ("agent_steps", "updates"))
    return {"steps_per_s": steps / span, "updates_per_s": updates / span, "window_s": span}


def _measure_sb3(seconds: float) -> dict[str, float]:
    """Run Stable-Baselines3 for one window; returns environment steps/s and updates/s."""
    command = [sys.executable, "-m", "benchmarks.processes.sb3", str(seconds)]
    steps = float(_run_child(command, seconds + 300, "Stable-Baselines3").splitlines()[-1])
    return {"sb3_steps_per_s": steps, "sb3_updates_per_s": steps / STEPS_PER_UPDATE}


def _run_child(command: Sequence[str], timeout: float, what: str) -> str:
    """Run a command; returns its standard output. Prints its error output and raises RunFault if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired as error:
        raise RunFault(f"{what} did not end within {timeout:g} s") from error
    if done.returncode != 0:
        print(done.stderr, end="", file=sys.stderr, flush=True)
        raise RunFault(f"{what} ended with status {done.returncode}: see its error output above")
    return done.stdout


def _measure_update_rate(precision: Precision, source: BatchSource, seconds: float) -> float:
    """Updates/s of a learner that samples from ``source`` and uses as many threads as in a run."""
    config = LearnerConfig(
        batch_size=BATCH, device="cpu", precision=precision, publish_period=10**9, metrics_period=10**9
    )
    torch.set_num_threads(learner_threads(config))
    learner = Learner(config, NATURE, PONG_SPEC, PONG_ACTIONS, source, DiscardingSink(), DiscardingSink(), seed=1)
    for _ in range(5):
        learner.step(10.0)
    updates_per_s = measure_rate(lambda: int(learner.step(10.0)), seconds)
    learner.close()
    return updates_per_s


def _measure_limits(precisions: Sequence[Precision], seconds: float = LIMIT_SECONDS) -> dict[str, float]:
    """The upper limit in updates/s by precision (see the module docstring), and its u and a in milliseconds."""
    cores = os.cpu_count() or 1
    limits: dict[str, float] = {}
    for name in precisions:
        u = min(
            1.0 / _measure_update_rate(name, SameBatchSource(BATCH), seconds),
            _measure_update_seconds(name, cores, seconds),
        )
        a = _measure_agent_step_seconds(name, seconds)
        limits[name] = 1.0 / (u + STEPS_PER_UPDATE * a / cores)
        limits[f"{name}_u_ms"], limits[f"{name}_a_ms"] = u * 1e3, a * 1e3
    return limits


def _measure_update_seconds(precision: Precision, threads: int, seconds: float) -> float:
    """Seconds of one update: targets, then the gradient step, each with ``threads`` torch threads."""
    online, target = (make_network(NATURE, PONG_SPEC, PONG_ACTIONS, 1) for _ in range(2))
    updater = Updater(UpdateConfig(precision=precision), online, target, torch.device("cpu"))
    sampled = SameBatchSource(BATCH).sample(0.0)
    torch.set_num_threads(threads)
    batch = updater.prepare(sampled)

    def update() -> int:
        updater.update(batch)
        return 1

    for _ in range(5):
        update()
    return 1.0 / measure_rate(update, seconds)


def _measure_agent_step_seconds(precision: Precision, seconds: float) -> float:
    """CPU seconds (of all threads) of one agent step: environment and policy."""
    torch.set_num_threads(1)
    network = prepare_for_acting(make_network(NATURE, PONG_SPEC, PONG_ACTIONS, 1), precision)
    environments = make_environments(PONG, ENVIRONMENTS)
    rng = np.random.default_rng(1)
    acting = rollout(environments, lambda s: epsilon_greedy(q_values(network, s), 0.1, rng), SeedSequence(1, 0).draw)

    def act() -> int:
        next(acting)
        return ENVIRONMENTS

    for _ in range(10):
        act()
    began, cpu = time.perf_counter(), time.process_time()
    steps = measure_rate(act, seconds) * (time.perf_counter() - began)
    spent = time.process_time() - cpu
    environments.close()
    return spent / steps


def _measure_efficiency(windows: int, log: Callable[[str], None], seconds: float = EFFICIENCY_SECONDS) -> float:
    """The learner efficiency in float32 (see the module docstring), the median of ``windows`` windows."""
    items = 10_000
    with shard_process(items) as (address, _):
        writer = Writer([address])
        for segment in pong_segments(items):
            writer.write(segment)
        writer.flush(60.0)
        limiter = RateLimiter(LimiterConfig(0.0, 1), max_insert=100, batch=BATCH)
        sampler = Sampler([address], PONG_SPEC, limiter, BetaConfig())

        def compare() -> dict[str, float]:
            from_memory = _measure_update_rate("float32", SameBatchSource(BATCH), seconds)
            sampled = _measure_update_rate("float32", sampler, seconds)
            return {"from_replay_per_s": sampled, "from_memory_per_s": from_memory, "ratio": sampled / from_memory}

        name = "learner efficiency"
        medians = run_alternating({name: compare}, windows, log, {name: 2 * seconds})
        sampler.close()
        writer.close()
    return medians[name]["ratio"]
