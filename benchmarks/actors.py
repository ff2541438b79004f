"""`qfleet bench actors`: agent steps a second of 1, 2, 4, ... actor processes on Pong with a random policy.

Everything an actor does except its network: environments, segments, compression, and insertion into one real shard.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.measure import shard_process
from rl.bounds import at_least
from rl.errors import BadInput, RunFault


@dataclass(frozen=True)
class Command:
    """How acting scales with the number of actors."""

    counts: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of actors to measure."""
    environments: int = 16
    """Environments an actor."""
    seconds: float = 15.0
    """Length of a window."""
    json: bool = False
    """The last line of output is a JSON object with the figures."""

    def __post_init__(self) -> None:
        at_least(self, 1, "environments")
        if not self.counts or min(self.counts) < 1:
            raise BadInput(f"--counts {self.counts}: write numbers of actors from 1 on")


def run(c: Command, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Measure agent steps/s for each number of actors; returns the figures. Raises RunFault."""
    rates: dict[str, float] = {}
    for count in c.counts:
        with shard_process(100_000) as (address, _):
            rates[str(count)] = _together(address, count, c)
        say(f"{count} actor(s) x {c.environments} environments: {rates[str(count)]:,.0f} agent steps/s")
    best = max(rates, key=lambda k: rates[k])
    say(f"saturates at {best} actor(s) on {os.cpu_count()} cores: {rates[best]:,.0f} agent steps/s")
    return {"agent_steps_per_s": rates, "saturates_at": int(best), "cores": os.cpu_count()}


def _together(address: str, count: int, c: Command) -> float:
    """Agent steps/s of ``count`` actor processes that start at the same moment."""
    command = [sys.executable, "-m", "benchmarks.processes.actor", address, str(c.environments), str(c.seconds)]
    pinned = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen([*command, str(i)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=pinned)
        for i in range(count)
    ]
    try:
        for process in running:
            assert process.stdout is not None
            if process.stdout.readline().strip() != "ready":
                raise RunFault("an actor process of the benchmark did not start: its error stands above")
        for process in running:  # all are built: start them together
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        return sum(float(p.communicate(timeout=c.seconds * 4 + 60)[0]) for p in running)
    finally:
        for process in running:
            process.kill()
