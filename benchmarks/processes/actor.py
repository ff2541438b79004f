"""One actor with a random policy that writes to a shard, for `qfleet bench actors`.

    python -m benchmarks.processes.actor ADDRESS ENVIRONMENTS SECONDS INDEX

It prints "ready", waits for a line on standard input, acts for SECONDS and prints agent steps/s.
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


class ZeroNetwork(torch.nn.Module):
    """A network that returns 0 for every action, at almost no cost."""

    convolves_pixels = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return zeros, float32 [N, A]."""
        return torch.zeros(len(x), PONG_ACTIONS)


class NoWeights:
    """A `WeightSource` that never has a publication."""

    def poll(self) -> Publication | None:
        """Return None."""
        return None


def main() -> None:
    """Run the actor and print agent steps/s."""
    address, environments, seconds, index = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(1)
    explore = ExplorationConfig(kind="linear", start=1.0, end=1.0)
    actor = Actor(
        ActorConfig(environments=environments),
        PONG,
        ReturnConfig(n_step=3, clip_reward=1.0),
        False,
        (ZeroNetwork(), ZeroNetwork()),  # type: ignore[arg-type]
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
