"""The faults of `qfleet bench chaos`, in an order that follows from a seed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Literal, NamedTuple

Kind = Literal["actor", "shard", "learner", "evaluator", "board", "weight_store"]
How = Literal["kill", "freeze", "corrupt"]
CLASSES: dict[Kind, str] = {
    "actor": "ActorWorker",
    "shard": "ShardWorker",
    "learner": "LearnerWorker",
    "evaluator": "EvaluatorWorker",
    "board": "RunBoard",
    "weight_store": "WeightStore",
}  # the classes of the Ray processes
PAUSE = 1.0, 4.0  # seconds from a recovery to the next fault, at least and at most


class Fault(NamedTuple):
    """A fault of one part.

    kill: SIGKILL. freeze: SIGSTOP. corrupt, of a learner: bytes of the newest checkpoint are changed; of a shard: bytes
    of its newest snapshot; then SIGKILL.
    """

    kind: Kind
    how: How
    choice: float
    """In [0, 1): which of the parts of this kind."""
    pause: float
    """Seconds before the fault."""


def schedule(seed: int) -> Iterator[Fault]:
    """Faults without end.

    They come in rounds of 14: each kind is hit once, in random order, by a kill or a freeze; then each kind again by the
    other of the two; then come the two corruptions. So after any number of faults the kinds differ by at most one hit
    within a half of a round.
    """
    rng = random.Random(seed)

    def fault(kind: Kind, how: How) -> Fault:
        return Fault(kind, how, rng.random(), rng.uniform(*PAUSE))

    while True:
        kinds = list(CLASSES)
        first: dict[Kind, How] = {kind: rng.choice(("kill", "freeze")) for kind in kinds}
        rng.shuffle(kinds)
        yield from (fault(kind, first[kind]) for kind in kinds)
        rng.shuffle(kinds)
        yield from (fault(kind, "freeze" if first[kind] == "kill" else "kill") for kind in kinds)
        corrupted: list[Kind] = ["learner", "shard"]
        rng.shuffle(corrupted)
        yield from (fault(kind, "corrupt") for kind in corrupted)
