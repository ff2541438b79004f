"""Settings that say on which nodes of a Ray cluster the parts of a run are placed."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import ClassVar, Literal

from rl.bounds import require
from rl.resuming import Rules, rules


@dataclass(frozen=True)
class PlacementConfig:
    """Where the parts of a run are placed in a cluster (--address)."""

    learner: str = "auto"
    """The node of learner, board and weight store. auto: a node with Ray's label qfleet=learner; else, unless
    `learner.device` is cpu, a node with a GPU; else the head node. Or the IP address of a node."""
    shards: Literal["learner", "spread"] = "learner"
    """Replay shards on the learner's node, or spread over all nodes."""
    actors: Literal["others", "anywhere"] = "others"
    """Actors and evaluator on all nodes but the learner's, or on all nodes. A single node without an autoscaler always
    means anywhere."""

    on_resume: ClassVar[Rules] = rules(may="learner shards actors")

    def __post_init__(self) -> None:
        named = self.learner == "auto" or _is_ip_address(self.learner)
        require(named, self, "learner", "auto, or the IP address of a node (`ray status -v` lists the nodes)")


def _is_ip_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
