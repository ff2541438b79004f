"""Decides on which node of a cluster each part of a run is placed; room.py says whether there is room for it.

The decisions are functions of plain data: the nodes as Ray describes them (`cluster_nodes`), and the configuration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from learner.learner import threads_on
from qfleet.cluster.needs import Needs, Resources, amounts, and_shards, nonzero, short
from qfleet.config import TrainConfig
from rl.errors import BadInput

LABEL, LEARNER = "qfleet", "learner"  # Ray's label qfleet=learner marks the learner's node
NODE_ID = "ray.io/node-id"  # Ray's own label of each node


@dataclass(frozen=True)
class Node:
    """A node of a cluster."""

    id: str
    address: str
    total: Resources = field(default_factory=dict)
    free: Resources = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_head(self) -> bool:
        """Whether the node is the cluster's head."""
        return "node:__internal_head__" in self.total

    @property
    def gpus(self) -> int:
        """GPUs that the node declares."""
        return int(self.total.get("GPU", 0))


def cluster_nodes() -> list[Node]:
    """The nodes that are alive, in the order of their addresses."""
    free = ray._private.state.available_resources_per_node()  # type: ignore[no-untyped-call]
    described: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    nodes = [
        Node(n["NodeID"], n["NodeManagerAddress"], n["Resources"], free.get(n["NodeID"], {}), n["Labels"])
        for n in described
        if n["Alive"]
    ]
    return sorted(nodes, key=lambda node: node.address)


def choose_learner_node(nodes: Sequence[Node], wanted: str, device: str, autoscaler: bool) -> Node | None:
    """The node for the learner by `placement.learner` (``wanted``) and `learner.device`; of several, the idlest one.

    None: the autoscaler must first launch a node with a GPU. Raises BadInput if there is no such node.
    """
    needs_gpu = device.startswith("cuda")
    if wanted != "auto":
        candidates = [n for n in nodes if n.address == wanted]
        if not candidates:
            there = ", ".join(n.address for n in nodes)
            raise BadInput(f"`placement.learner` {wanted} is no node of the cluster: write one of {there}, or auto")
    else:
        candidates = [n for n in nodes if n.labels.get(LABEL) == LEARNER]
        if not candidates and device != "cpu":
            candidates = [n for n in nodes if n.gpus]
        if not candidates and needs_gpu and autoscaler:
            return None
        if not candidates and not needs_gpu:
            candidates = [n for n in nodes if n.is_head] or list(nodes)
    fit = [n for n in candidates if n.gpus or not needs_gpu]
    if not fit:
        which = f"the learner's node {candidates[0].address}" if candidates else "no node of the cluster"
        has = "has no GPU" if candidates else "has a GPU"
        raise BadInput(
            f"{which} {has}, and `learner.device` is {device}: write cpu or auto, or start Ray with --num-gpus on a node "
            "that has one"
        )
    return max(fit, key=lambda n: (bool(n.free.get("GPU", 0)) and device != "cpu", n.free.get("CPU", 0), n.is_head))


@dataclass(frozen=True)
class Placement:
    """Where the parts of a run are placed, and what they request from Ray.

    ``node`` is the learner's node. None: the only node of a local Ray, or one that the autoscaler must launch.
    """

    needs: Needs
    shards: int
    actors: int
    node: Node | None = None
    shards_beside: bool = True  # the shards are on the learner's node
    elsewhere: bool = False  # actors and evaluator are not on the learner's node

    def learner_options(self) -> dict[str, Any]:
        """Ray's options of the learner."""
        cpus, gpus = self.needs.learner_cpus, self.needs.learner_gpus
        return {"num_cpus": cpus, "num_gpus": gpus, **self._beside_learner()}

    def store_options(self) -> dict[str, Any]:
        """Ray's options of the board and of the weight store: beside the learner."""
        return {"num_cpus": 0, **self._beside_learner()}

    def shard_options(self) -> dict[str, Any]:
        """Ray's options of a replay shard."""
        memory = {"memory": self.needs.shard_memory} if self.needs.shard_memory else {}
        place = self._beside_learner() if self.shards_beside else {"scheduling_strategy": "SPREAD"}
        return {"num_cpus": self.needs.shard_cpus, **memory, **place}

    def actor_options(self) -> dict[str, Any]:
        """Ray's options of an actor."""
        return {"num_cpus": self.needs.actor_cpus, **self._like_actors()}

    def evaluator_options(self) -> dict[str, Any]:
        """Ray's options of the evaluator: it is where the actors may be."""
        return {"num_cpus": self.needs.evaluator_cpus, **self._like_actors()}

    def _beside_learner(self) -> dict[str, Any]:
        if self.node is None:
            return {}
        return {"scheduling_strategy": NodeAffinitySchedulingStrategy(self.node.id, soft=False)}

    def _like_actors(self) -> dict[str, Any]:
        options: dict[str, Any] = {"scheduling_strategy": "SPREAD"}
        if self.kept_off is not None:
            options["label_selector"] = {NODE_ID: f"!{self.kept_off.id}"}
        return options

    @property
    def on_learner_node(self) -> dict[str, float]:
        """What the learner and the shards beside it request of their node."""
        n, shards = self.needs, self.shards if self.shards_beside else 0
        cpus = n.learner_cpus + n.shard_cpus * shards
        return nonzero({"CPU": cpus, "GPU": n.learner_gpus, "memory": n.shard_memory * shards})

    @property
    def kept_off(self) -> Node | None:
        """The node where actors and evaluator may not be, if there is one."""
        return self.node if self.elsewhere else None


def place_locally(config: TrainConfig) -> Placement:
    """The placement of a run that starts its own Ray, whose only node has room for all of it.

    Raises BadInput if this machine lacks the configured device.
    """
    return Placement(Needs.here(config), config.replay.shards, config.actors.count)


def place(config: TrainConfig, nodes: Sequence[Node], autoscaler: bool) -> Placement:
    """The placement of a run in a cluster of ``nodes``; ``autoscaler``: more nodes can be launched.

    Raises BadInput if no node suits the learner, or if the learner and the shards beside it never fit on its node.
    """
    c, shards = config.placement, config.replay.shards
    node = choose_learner_node(nodes, c.learner, config.learner.device, autoscaler)
    elsewhere = c.actors == "others" and (len(nodes) > 1 or autoscaler)
    uses_gpu = node is None or (node.gpus > 0 and config.learner.device in ("auto", "cuda", "cuda:0"))
    others = (shards if c.shards == "learner" else 0) + (0 if elsewhere else 2)  # at least one actor and the evaluator
    cpus = 0.0 if node is None else node.total.get("CPU", 0) - others
    threads = config.learner.threads or threads_on(cpus, uses_gpu)
    needs = Needs.of(threads, int(uses_gpu), config.replay.shard_capacity_bytes)
    made = Placement(needs, shards, config.actors.count, node, c.shards == "learner", elsewhere)
    if node is not None:
        _check_fits(made, node)
    return made


def _check_fits(placement: Placement, node: Node) -> None:
    """Raise BadInput if the learner and the shards beside it need more than their node has when it is idle."""
    needed, lacking = placement.on_learner_node, short(placement.on_learner_node, node.total)
    if not lacking:
        return
    beside = placement.shards if placement.shards_beside else 0
    ways = ["fewer `learner.threads`"] if "CPU" in lacking and placement.needs.threads > 1 else []
    if beside and not short({"CPU": placement.needs.learner_cpus, "GPU": placement.needs.learner_gpus}, node.total):
        fewer = ["fewer `replay.shards`"] if beside > 1 and "CPU" in lacking else []
        less = ["a smaller `replay.capacity_bytes`"] if "memory" in lacking else []
        ways = ["`placement.shards` spread", *fewer, *ways, *less]
    raise BadInput(
        f"the learner{and_shards(beside)} {'need' if beside else 'needs'} {amounts(needed)}, and the learner's node "
        f"{node.address} has {amounts({k: node.total.get(k, 0) for k in lacking})} in all (short of {amounts(lacking)}): "
        f"write {', or '.join([*ways, 'another node as `placement.learner`'])}"
    )
