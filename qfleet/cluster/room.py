"""Whether a cluster has room for the parts of a run, and what is short: functions of plain data, as in placement.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qfleet.cluster.needs import Resources, amounts, and_shards, nonzero, short
from qfleet.cluster.placement import Node, Placement


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
        own = free.get(placement.node.id, {})  # it may just have left
        lacks = short(placement.on_learner_node, own)
        for name, amount in placement.on_learner_node.items():
            own[name] = max(own.get(name, 0) - amount, 0)
    needs = placement.needs
    shard = {"CPU": needs.shard_cpus, "memory": needs.shard_memory}
    spread = 0 if placement.shards_beside else placement.shards
    placed = sum(_take(free.values(), shard) for _ in range(spread))
    theirs = [free[n.id] for n in _for_actors(placement, nodes)]
    evaluator = _take(theirs, {"CPU": needs.evaluator_cpus})
    actors = sum(int(r.get("CPU", 0)) // needs.actor_cpus for r in theirs)
    return Room(nonzero(lacks), spread - placed, evaluator, min(actors, placement.actors))


def describe_lack(room: Room, placement: Placement, ready_timeout: float) -> str:
    """One line about what is short and what is waited for; "" if all of the run has room."""
    lacks = []
    if room.learner_lacks:
        where = f"on the node {placement.node.address}" if placement.node else "on a node that is not there yet"
        beside = and_shards(placement.shards if placement.shards_beside else 0)
        lacks.append(f"{amounts(room.learner_lacks)} {where} for the learner{beside}")
    if room.shards:
        lacking = {"CPU": room.shards, "memory": room.shards * placement.needs.shard_memory}
        lacks.append(f"{amounts(nonzero(lacking))} for {room.shards} replay shard(s)")
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
    if missing and not room.actors and placement.kept_off is not None:
        parts.append(
            f"actors are kept off the learner's node {placement.kept_off.address}: `placement.actors` anywhere allows "
            "them there"
        )
    return "; ".join(parts)


def _take(nodes: Any, wanted: Resources) -> bool:
    """Take ``wanted`` from the node of ``nodes`` (their free resources) with most free CPUs; returns whether it fits."""
    fit = [r for r in nodes if not short(wanted, r)]
    if fit:
        idlest = max(fit, key=lambda r: r.get("CPU", 0))
        idlest.update({k: idlest.get(k, 0) - v for k, v in wanted.items()})
    return bool(fit)


def _for_actors(placement: Placement, nodes: Sequence[Node]) -> list[Node]:
    """The nodes where actors and evaluator may be."""
    return [n for n in nodes if placement.kept_off is None or n.id != placement.kept_off.id]


def learner_lack(placement: Placement, nodes: Sequence[Node]) -> str:
    """What the learner's process needs and what is free where it may be, if it is not ready in time; and what to do."""
    needs, node = placement.needs, placement.node
    each = nonzero({"CPU": needs.learner_cpus, "GPU": needs.learner_gpus})
    if node is not None:
        ways = "reduce `learner.threads`, write another node as `placement.learner`"
        return _lack(each, f" on the node {node.address}", "there", [n for n in nodes if n.id == node.id], ways)
    no_gpu = needs.learner_gpus and not any(n.gpus for n in nodes)
    ways = "add a node with a GPU, write `learner.device` auto" if no_gpu else "add nodes, reduce `learner.threads`"
    return _lack(each, " on one node", "in the cluster", nodes, ways)


def shards_lack(placement: Placement, nodes: Sequence[Node]) -> str:
    """As `learner_lack`, of replay shards."""
    needs, node = placement.needs, placement.node if placement.shards_beside else None
    each = nonzero({"CPU": needs.shard_cpus, "memory": needs.shard_memory})
    if node is None:
        return _lack(each, " each", "in the cluster", nodes, "add nodes, reduce `replay.shards`")
    ways = "reduce `replay.shards`, write `placement.shards` spread"
    return _lack(each, f" each on the node {node.address}", "there", [n for n in nodes if n.id == node.id], ways)


def actors_lack(placement: Placement, nodes: Sequence[Node]) -> str:
    """As `learner_lack`, of actors."""
    each, node, allowed = {"CPU": placement.needs.actor_cpus}, placement.kept_off, _for_actors(placement, nodes)
    if node is None:
        return _lack(each, " each", "in the cluster", allowed, "add nodes, reduce `replay.shards` or `learner.threads`")
    ways = "add nodes, write `placement.actors` anywhere to allow actors there"
    return _lack(each, f" each, not on the learner's node {node.address}", "on the others", allowed, ways)


def _lack(each: Resources, of_what: str, there: str, nodes: Sequence[Node], ways: str) -> str:
    free = {name: sum(n.free.get(name, 0) for n in nodes) for name in each}
    return f" (needed: {amounts(each)}{of_what}; free {there}: {amounts(free)}): {ways}, or raise `ready_timeout`"
