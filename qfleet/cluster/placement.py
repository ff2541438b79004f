"""Decides on which node of a cluster each part of a run is placed, and whether there is room for it.

The decisions are functions of plain data: the nodes as Ray describes them (`cluster_nodes`), and the configuration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from learner.learner import threads_on
from qfleet.cluster.needs import Needs
from qfleet.config import TrainConfig
from rl.errors import BadInput

LABEL, LEARNER = "qfleet", "learner"  # Ray's label qfleet=learner marks the learner's node
NODE_ID = "ray.io/node-id"  # Ray's own label of each node

Resources = Mapping[str, float]  # by Ray's name: CPU, GPU, memory (bytes)


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
        return {"num_cpus": 0, "max_restarts": 0, **self._beside_learner()}

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
        options: dict[str, Any] = {"max_restarts": -1, "scheduling_strategy": "SPREAD"}
        if self.elsewhere and self.node is not None:
            options["label_selector"] = {NODE_ID: f"!{self.node.id}"}
        return options

    @property
    def on_learner_node(self) -> dict[str, float]:
        """What the learner and the shards beside it request of their node."""
        n, shards = self.needs, self.shards if self.shards_beside else 0
        cpus = n.learner_cpus + n.shard_cpus * shards
        return {"CPU": cpus, "GPU": n.learner_gpus, "memory": n.shard_memory * shards}


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
    needed, short = placement.on_learner_node, _short(placement.on_learner_node, node.total)
    if not short:
        return
    beside = placement.shards if placement.shards_beside else 0
    ways = ["fewer `learner.threads`"] if "CPU" in short and placement.needs.threads > 1 else []
    if beside and not _short({"CPU": placement.needs.learner_cpus, "GPU": placement.needs.learner_gpus}, node.total):
        fewer = ["fewer `replay.shards`"] if beside > 1 and "CPU" in short else []
        less = ["a smaller `replay.capacity_bytes`"] if "memory" in short else []
        ways = ["`placement.shards` spread", *fewer, *ways, *less]
    raise BadInput(
        f"the learner{_and_shards(beside)} {'need' if beside else 'needs'} {_amounts(needed)}, and the learner's node "
        f"{node.address} has {_amounts({k: node.total.get(k, 0) for k in short})} in all (short of {_amounts(short)}): "
        f"write {', or '.join([*ways, 'another node as `placement.learner`'])}"
    )


@dataclass(frozen=True)
class Room:
    """What is free in a cluster for a run that is about to start."""

    learner_lacks: dict[str, float]  # on the learner's node, for the learner and the shards beside it
    shards: int  # spread shards without a node
    evaluator: bool  # whether there is room for the evaluator
    actors: int  # actors with a free CPU


def count_room(placement: Placement, nodes: Sequence[Node]) -> Room:
    """How much of a run has room in what is free on ``nodes`` now."""
    free = {n.id: dict(n.free) for n in nodes}
    lacks = dict(placement.on_learner_node)
    if placement.node is not None:
        own = free[placement.node.id]
        lacks = _short(placement.on_learner_node, own)
        for name, amount in placement.on_learner_node.items():
            own[name] = max(own.get(name, 0) - amount, 0)
    needs = placement.needs
    shard = {"CPU": needs.shard_cpus, "memory": needs.shard_memory}
    spread = 0 if placement.shards_beside else placement.shards
    placed = sum(_take(free.values(), shard) for _ in range(spread))
    excluded = placement.node.id if placement.elsewhere and placement.node else None
    theirs = [resources for node, resources in free.items() if node != excluded]
    evaluator = _take(theirs, {"CPU": needs.evaluator_cpus})
    actors = sum(int(r.get("CPU", 0)) // needs.actor_cpus for r in theirs)
    return Room({k: v for k, v in lacks.items() if v}, spread - placed, evaluator, min(actors, placement.actors))


def describe_lack(room: Room, placement: Placement, ready_timeout: float) -> str:
    """One line about what is short and what is waited for; "" if all of the run has room."""
    lacks = []
    if room.learner_lacks:
        where = f"on the node {placement.node.address}" if placement.node else "on a node that is not there yet"
        beside = _and_shards(placement.shards if placement.shards_beside else 0)
        lacks.append(f"{_amounts(room.learner_lacks)} {where} for the learner{beside}")
    if room.shards:
        memory = room.shards * placement.needs.shard_memory
        lacks.append(f"{_amounts({'CPU': room.shards, 'memory': memory})} for {room.shards} replay shard(s)")
    if not room.evaluator:
        lacks.append("1 CPU for the evaluator")
    missing = placement.actors - room.actors
    parts = []
    if missing:
        parts.append(
            f"the cluster has room for {room.actors} of {placement.actors} actors now (short of "
            f"{missing * placement.needs.actor_cpus} CPU)"
        )
    if lacks:
        parts.append(f"{'it' if parts else 'the cluster'} is short of {', and of '.join(lacks)}")
    if lacks or (missing and not room.actors):
        parts.append(f"the run waits for it, up to {ready_timeout:g} s (`ready_timeout`)")
    elif missing:
        parts.append("the others start when there is room")
    return "; ".join(parts)


def _take(nodes: Any, wanted: Resources) -> bool:
    """Take ``wanted`` from the node of ``nodes`` (their free resources) with most free CPUs; returns whether it fits."""
    fit = [r for r in nodes if not _short(wanted, r)]
    if fit:
        idlest = max(fit, key=lambda r: r.get("CPU", 0))
        idlest.update({k: idlest.get(k, 0) - v for k, v in wanted.items()})
    return bool(fit)


def _short(needed: Resources, there: Resources) -> dict[str, float]:
    """What of ``needed`` is not there, by resource."""
    return {k: v - there.get(k, 0) for k, v in needed.items() if v > there.get(k, 0)}


def _amounts(resources: Resources) -> str:
    """Resources as text, such as "2 CPU, 1 GPU, 1.5 GB of memory"."""
    texts = []
    for name, amount in resources.items():
        if name == "memory":
            texts += [f"{amount / 1e9:,.1f} GB of memory"] if amount else []
        elif amount or name == "CPU" or len(resources) == 1:
            texts.append(f"{amount:g} {name}")
    return ", ".join(texts)


def _and_shards(shards: int) -> str:
    return f" and {shards} replay shard(s) beside it" if shards else ""
