"""One actor with a random policy, writing to a shard; prints agent steps/s.

`python -m benchmarks.processes.actor ADDRESS ENVIRONMENTS SECONDS INDEX`; it says "ready" and waits for a line.
"""

from __future__ import annotations

import sys
import time

import torch

from actors.actor import Actor, ActorConfig
from benchmarks.measure import PONG, PONG_ACTIONS
from replay.wire.writer import Writer
from rl.exploration import Exploration, ExplorationConfig
from rl.ports import Publication
from rl.returns import ReturnConfig


class Indifferent(torch.nn.Module):
    """Gives all actions the same value, at no cost."""

    convolves_pixels = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Zeros [N, A]."""
        return torch.zeros(len(x), PONG_ACTIONS)


class NoWeights:
    """A `WeightSource` without publications."""

    def poll(self) -> Publication | None:
        """None: there is never a publication."""
        return None


def main() -> None:
    """Act for the seconds that the arguments say, and print agent steps/s."""
    address, environments, seconds, index = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(1)
    explore = ExplorationConfig(kind="linear", start=1.0, end=1.0)
    actor = Actor(
        ActorConfig(environments=environments),
        PONG,
        ReturnConfig(n_step=3, clip_reward=1.0),
        False,
        (Indifferent(), Indifferent()),  # type: ignore[arg-type]
        Exploration(explore, 0, environments, environments),
        Writer([address]),
        NoWeights(),
        seed=index,
        index=index,
    )
    for _ in range(20):
        actor.step()
    print("ready", flush=True)
    sys.stdin.readline()
    began, done = time.perf_counter(), 0
    while (now := time.perf_counter()) - began < seconds:
        done += actor.step()
    print(done / (now - began), flush=True)
    actor.close()


if __name__ == "__main__":
    main()
