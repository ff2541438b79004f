"""`qfleet bench pipeline`: the whole distributed loop on Pong beside Stable-Baselines3 and beside its own limit.

Nature network, batch 32, one update per 4 steps, Double DQN, n-step 3, prioritized. With u the seconds of one update
alone (its halves side by side, or in turn on all cores, whichever is faster) and a the core-seconds of one agent step
alone, C cores allow at most 1 / (u + 4 a / C) updates/s. Learner efficiency: updates/s from a full replay (limiter off,
no actors) over updates/s of the same learner on one batch in memory.
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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.measure import (
    PONG,
    PONG_ACTIONS,
    PONG_SPEC,
    alternating,
    pong_segments,
    rate,
    roughly,
    shard_process,
)
from learner.learner import Learner, LearnerConfig, learner_threads
from learner.update import UpdateConfig, Updater
from replay.importance_weights import BetaConfig
from replay.rate_limiter import LimiterConfig, RateLimiter
from replay.wire.sampler import Sampler
from replay.wire.writer import Writer
from rl.allocator import keep_freed_memory
from rl.bounds import at_least
from rl.envs.make import make_environments
from rl.errors import BadInput
from rl.networks import NetworkConfig, make_network, prepare_for_acting, q_values
from rl.policies import epsilon_greedy
from rl.ports import BatchSource
from rl.precision import Precision, pick_dtype
from rl.stepping import SeedSequence, rollout
from rl.types import SampledBatch, Segment, TransitionBatch

NATURE = NetworkConfig(kind="nature", hidden=(512,), dueling=False)
STEPS_PER_UPDATE = 4
BATCH = 32
LIMIT_SECONDS, EFFICIENCY_SECONDS = 8.0, 20.0  # of each rate in a window of the limit and of the learner's efficiency
WARM_UP, START = 35.0, 18.0  # seconds that a run takes until it learns at its pace, and to start and end
SB3_START = 20.0  # seconds until Stable-Baselines3 learns
FILL = 12.0  # seconds until the replay of the efficiency's windows is full
ENVIRONMENTS = 16


@dataclass(frozen=True)
class Command:
    """The distributed loop on Pong: about 20 minutes; about 4 with --seconds 5 --windows 1."""

    seconds: float = 60.0
    """Length of a window."""
    windows: int = 3
    """Windows of each kind, taking turns; medians are reported."""
    sb3: bool = True
    """Measure Stable-Baselines3 too (the extra `bench`)."""
    json: bool = False
    """The last line of output is a JSON object with the figures."""

    def __post_init__(self) -> None:
        at_least(self, 1, "windows", "seconds")
        if self.sb3 and importlib.util.find_spec("stable_baselines3") is None:
            raise BadInput(
                "Stable-Baselines3 is not installed: pip install 'qfleet[bench]', or leave it out with --no-sb3"
            )


class Discard:
    """A sink that drops segments, figures and weights."""

    def write(self, segment: Segment) -> None:
        """Drop a segment."""
        del segment

    def publish(self, publication: object) -> None:
        """Drop a publication."""
        del publication

    def report(self, metrics: object) -> None:
        """Drop figures."""
        del metrics

    def flush(self, timeout: float) -> None:
        """Do nothing: nothing waits."""
        del timeout

    def close(self) -> None:
        """Do nothing."""
        pass


def run(c: Command, say: Callable[[str], None] = print) -> dict[str, float]:
    """Measure; returns the figures."""
    keep_freed_memory()  # as the learner of a run does
    native = pick_dtype("auto", torch.device("cpu")) == torch.bfloat16
    precisions: list[Precision] = ["float32", "bfloat16"] if native else ["float32"]
    if not native:
        say("bfloat16 is left out: this processor has none")
    cases: dict[str, Callable[[], dict[str, float]]] = {p: functools.partial(_loop, c.seconds, p) for p in precisions}
    cases["limit"] = lambda: _limits(precisions)
    if c.sb3:
        cases["sb3"] = lambda: _sb3(c.seconds)
    expected, after = _expected(c, len(precisions)), c.windows * 2 * EFFICIENCY_SECONDS + FILL
    whole = c.windows * sum(expected[name] for name in cases) + after
    say(
        f"about {roughly(whole)} in all: the loop and what it is compared with, then {c.windows} window(s) of the learner's "
        "efficiency; --seconds, --windows and --no-sb3 make it shorter"
    )
    got = alternating(cases, c.windows, say, expected, after)
    result = dict(got["sb3"]) if c.sb3 else {}
    for precision, suffix in zip(precisions, ("", "_bf16"), strict=False):
        result[f"steps_per_s{suffix}"] = got[precision]["steps_per_s"]
        result[f"updates_per_s{suffix}"] = got[precision]["updates_per_s"]
        result[f"limit_updates_per_s{suffix}"] = got["limit"][precision]
    result["learner_efficiency"] = _efficiency(c.windows, say)
    for precision, suffix in zip(precisions, ("", "_bf16"), strict=False):
        say(
            f"{precision}: {result[f'updates_per_s{suffix}'] / result[f'limit_updates_per_s{suffix}']:.0%} of its limit"
        )
    say(f"learner efficiency {result['learner_efficiency']:.2f}")
    return result


def _expected(c: Command, precisions: int) -> dict[str, float]:
    """About how many seconds a window of each case takes."""
    loop = START + WARM_UP + c.seconds
    limit = precisions * 3 * (LIMIT_SECONDS + 0.3)
    return {"float32": loop, "bfloat16": loop, "limit": limit, "sb3": SB3_START + c.seconds}


def _loop(seconds: float, precision: Precision) -> dict[str, float]:
    """One window of `qfleet train`, read from its metrics.csv once the replay has its minimum."""
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
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 300)
        if done.returncode != 0:
            raise RuntimeError(f"qfleet train failed: {done.stderr[-2000:]}")
        with (run_dir / "metrics.csv").open() as file:
            rows = list(csv.DictReader(file))
    learning = [r for r in rows if int(r["updates"]) > 50][:-1]  # the last row is of the end, after the actors stopped
    first, last = learning[0], learning[-1]
    span = float(last["wall_seconds"]) - float(first["wall_seconds"])
    steps, updates = (int(last[k]) - int(first[k]) for k in ("agent_steps", "updates"))
    return {"steps_per_s": steps / span, "updates_per_s": updates / span, "window_s": span}


def _sb3(seconds: float) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.processes.sb3", str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 300)
    if done.returncode != 0:
        raise RuntimeError(f"Stable-Baselines3 failed (pip install 'qfleet[bench]'?): {done.stderr[-2000:]}")
    steps = float(done.stdout.splitlines()[-1])
    return {"sb3_steps_per_s": steps, "sb3_updates_per_s": steps / STEPS_PER_UPDATE}


class Memory:
    """A `BatchSource` that always has the same batch at once."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        pixels = [rng.integers(0, 255, (BATCH, *PONG_SPEC.shape), dtype=np.uint8) for _ in range(2)]
        ones, keys = np.ones(BATCH, np.float32), np.arange(BATCH)
        transition = TransitionBatch(pixels[0], rng.integers(0, PONG_ACTIONS, BATCH), 0 * ones, 0.97 * ones, pixels[1])
        self._batch = SampledBatch(transition, keys.astype(np.uint64), 0 * keys, ones)

    def sample(self, timeout: float) -> SampledBatch:
        """The batch, of BATCH transitions."""
        del timeout
        return self._batch

    def update_priorities(self, batch: SampledBatch, td_abs: object) -> None:
        """Ignore the |TD errors| [B]."""
        del batch, td_abs

    def stats(self) -> dict[str, float]:
        """No figures: {}."""
        return {}

    def get_state(self) -> dict[str, int]:
        """No state: {}."""
        return {}

    def set_state(self, state: Mapping[str, int]) -> None:
        """Ignore the state."""
        del state

    def close(self) -> None:
        """Do nothing."""
        pass


def _update_rate(precision: Precision, source: BatchSource, seconds: float) -> float:
    """Updates/s of a learner, with the threads and halves that it has in a run, fed by ``source``."""
    config = LearnerConfig(
        batch_size=BATCH, device="cpu", precision=precision, publish_period=10**9, metrics_period=10**9
    )
    torch.set_num_threads(learner_threads(config))
    learner = Learner(config, NATURE, PONG_SPEC, PONG_ACTIONS, source, Discard(), Discard(), seed=1)
    for _ in range(5):
        learner.step(10.0)
    found = rate(lambda: int(learner.step(10.0)), seconds)
    learner.close()
    return found


def _limits(precisions: Sequence[Precision], seconds: float = LIMIT_SECONDS) -> dict[str, float]:
    """The limit in updates/s by precision."""
    cores = os.cpu_count() or 1
    found: dict[str, float] = {}
    for name in precisions:
        u = min(1.0 / _update_rate(name, Memory(), seconds), _update_seconds(name, cores, seconds))
        a = _agent_step_seconds(name, seconds)
        found[name] = 1.0 / (u + STEPS_PER_UPDATE * a / cores)
        found[f"{name}_u_ms"], found[f"{name}_a_ms"] = u * 1e3, a * 1e3
    return found


def _update_seconds(precision: Precision, threads: int, seconds: float) -> float:
    """Seconds of an update whose halves are made in turn, each spread over ``threads`` threads by torch."""
    online, target = (make_network(NATURE, PONG_SPEC, PONG_ACTIONS, 1) for _ in range(2))
    updater = Updater(UpdateConfig(precision=precision), online, target, torch.device("cpu"))
    sampled = Memory().sample(0.0)
    torch.set_num_threads(threads)
    batch = updater.prepare(sampled)

    def update() -> int:
        updater.update(batch)
        return 1

    for _ in range(5):
        update()
    return 1.0 / rate(update, seconds)


def _agent_step_seconds(precision: Precision, seconds: float) -> float:
    """Core-seconds (CPU time of all threads) of one agent step: environment and policy."""
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
    steps = rate(act, seconds) * (time.perf_counter() - began)
    spent = time.process_time() - cpu
    environments.close()
    return spent / steps


def _efficiency(windows: int, say: Callable[[str], None], seconds: float = EFFICIENCY_SECONDS) -> float:
    """Updates/s fed by a full replay over updates/s on one batch in memory, float32, alternating windows."""
    items = 10_000
    with shard_process(items) as (address, _):
        writer = Writer([address])
        for segment in pong_segments(items):
            writer.write(segment)
        writer.flush(60.0)
        limiter = RateLimiter(LimiterConfig(0.0, 1), max_insert=100, batch=BATCH)
        sampler = Sampler([address], PONG_SPEC, limiter, BetaConfig())

        def window() -> dict[str, float]:
            from_memory = _update_rate("float32", Memory(), seconds)
            fed = _update_rate("float32", sampler, seconds)
            return {"fed_per_s": fed, "from_memory_per_s": from_memory, "ratio": fed / from_memory}

        name = "learner efficiency"
        got = alternating({name: window}, windows, say, {name: 2 * seconds})
        sampler.close()
        writer.close()
    return got[name]["ratio"]
