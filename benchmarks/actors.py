"""`qfleet bench actors`: agent steps/s of 1, 2, 4, ... actor processes on Pong with a random policy.

Measures all work of an actor except its network: environments, segments, compression, and insertion into one shard.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.measure import shard_process
from rl.bounds import at_least, require
from rl.errors import RunFault


@dataclass(frozen=True)
class Command:
    """Agent steps/s on Pong with different numbers of actor processes."""

    counts: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of actors to measure."""
    environments: int = 16
    """Environments per actor."""
    seconds: float = 15.0
    """Seconds to measure each number of actors."""
    json: bool = False
    """The last line of output is a JSON object with the figures."""

    def __post_init__(self) -> None:
        at_least(self, 1, "environments")
        require(bool(self.counts) and min(self.counts) >= 1, self, "counts", "one or more numbers, each at least 1")


def run(c: Command, log: Callable[[str], None] = print) -> dict[str, Any]:
    """Measure each number of actors; returns the figures by name. Raises RunFault if a process does not start."""
    rates: dict[str, float] = {}
    for count in c.counts:
        with shard_process(100_000) as (address, _):
            rates[str(count)] = _measure_actors(address, count, c)
        log(f"{count} actor(s) x {c.environments} environments: {rates[str(count)]:,.0f} agent steps/s")
    best = max(rates, key=lambda k: rates[k])
    log(f"fastest with {best} actor(s) on {os.cpu_count()} cores: {rates[best]:,.0f} agent steps/s")
    return {"agent_steps_per_s": rates, "saturates_at": int(best), "cores": os.cpu_count()}


def _measure_actors(address: str, count: int, c: Command) -> float:
    """Return the total agent steps/s of ``count`` actor processes that start at the same moment."""
    command = [sys.executable, "-m", "benchmarks.processes.actor", address, str(c.environments), str(c.seconds)]
    single_threaded = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            [*command, str(i)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=single_threaded
        )
        for i in range(count)
    ]
    try:
        for process in running:
            assert process.stdout is not None
            if process.stdout.readline().strip() != "ready":
                raise RunFault("an actor process did not start: see its error output above")
        for process in running:  # all are ready: start them together
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        return sum(float(p.communicate(timeout=c.seconds * 4 + 60)[0]) for p in running)
    finally:
        for process in running:
            process.kill()
