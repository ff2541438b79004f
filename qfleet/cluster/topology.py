"""Starts the processes of a run on Ray, each on the node and with the resources of its placement."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import ray

from learner.checkpoint import Checkpoint
from qfleet.cluster.autoscaler import nodes_outside
from qfleet.cluster.evaluation import EvaluatorProcess
from qfleet.cluster.faults import StoppedDuringStart, last_line
from qfleet.cluster.fleet import ActorFleet
from qfleet.cluster.placement import Node, Placement, cluster_nodes, place, place_locally
from qfleet.cluster.room import actors_lack, count_room, describe_lack, learner_lack, shards_lack
from qfleet.cluster.shards import ReplayShards
from qfleet.cluster.stores import Stores
from qfleet.cluster.versions import check_versions, survey_nodes, versions_here
from qfleet.cluster.workers import LearnerWorker
from qfleet.config import TrainConfig
from replay.security import Access, new_token
from rl.errors import RunFault

remote: Any = ray.remote  # untyped, because Ray's handles have no typed methods


@dataclass
class Topology:
    """Handles of the Ray actors of a run, where they are placed, and a description of the learner's device."""

    stores: Stores
    shards: ReplayShards
    learner: Any
    fleet: ActorFleet
    evaluator: EvaluatorProcess
    placement: Placement
    device: str

    @property
    def board(self) -> Any:
        """The handle of the board."""
        return self.stores.board

    @property
    def weights(self) -> Any:
        """The handle of the weight store."""
        return self.stores.weights

    @property
    def actors(self) -> list[Any]:
        """Handles of the actors that have started; the same list object all the time."""
        return self.fleet.actors

    def workers(self) -> list[tuple[str, Any]]:
        """(name, handle) of every worker that the driver polls: the learner, the started actors and the shards."""
        shards = [(f"shard-{i}", s) for i, s in self.shards.handles.items()]
        return [("learner", self.learner), *self.fleet.workers(), *shards]


def start_processes(
    config: TrainConfig,
    directory: Path,
    where: str,
    resumed: Checkpoint | None,
    base_steps: int,
    address: str | None,
    stopping: Callable[[], bool],
    note: Callable[[str], None],
) -> Topology:
    """Start all processes of a run and wait until they can train; returns their handles.

    One actor is enough: the others join when they have started. The evaluator is requested before the actors, so that
    it gets a CPU; the run does not wait for it.
    ``where``: the run's directory or URL, for the user. ``base_steps``: agent steps made before a resume. ``address``:
    the Ray that the run has joined; None: it has started its own. ``note`` gets lines for the user. Raises BadInput if
    the run does not fit the cluster, RunFault if a process is not ready in time, and StoppedDuringStart once
    ``stopping`` returns True.
    """
    run, local = directory.name, address is None
    placement = place_locally(config) if local else place_in_cluster(config, stopping, note)
    access = Access.load(config.replay.security)
    access = replace(access, token=access.token or new_token())  # passed as an argument only, never written to disk
    try:
        learner, placement = _start_learner(config, run, placement, access, local, stopping, note)
        resume = f"qfleet train --resume {where}" + ("" if local else f" --address {address}")
        stores = Stores(placement, resume)
    except ValueError as error:
        raise RunFault(f"this Ray already has a run named {run!r}: write a --run-dir with another name") from error
    timeout = config.ready_timeout
    shards = ReplayShards(config, directory, access, local, resumed is not None, placement.shard_options())
    shard_calls = {f"shard-{i}": shards.start(i) for i in range(config.replay.shards)}
    addresses = _await_ready(shard_calls, partial(_say, shards_lack, placement), timeout, stopping)
    shards.addresses = dict(enumerate(addresses))
    stores.board.set_shards.remote(addresses)
    started = {"learner": learner.start.remote(addresses, resumed)}
    [device] = _await_ready(started, lambda: ": raise `ready_timeout`", timeout, stopping)
    evaluator = EvaluatorProcess(config, base_steps, run, placement.evaluator_options())
    fleet = _start_actors(config, base_steps, run, local, access, placement.actor_options())
    fleet.await_first(timeout, stopping, partial(_say, actors_lack, placement))
    if stopping():
        raise StoppedDuringStart
    return Topology(stores, shards, learner, fleet, evaluator, placement, device)


def place_in_cluster(config: TrainConfig, stopping: Callable[[], bool], note: Callable[[str], None]) -> Placement:
    """The placement of the run in the cluster that this process has joined, after a comparison of versions.

    Raises BadInput, RunFault and StoppedDuringStart.
    """
    nodes = cluster_nodes()
    answers = survey_nodes({n.id: n.address for n in nodes}, stopping)
    check_versions(versions_here(), {n.address: answers[n.id].versions for n in nodes})
    placement = place(config, nodes, any(answer.autoscaler for answer in answers.values()))
    lack = describe_lack(count_room(placement, cluster_nodes()), placement, config.ready_timeout)
    if lack:
        note(f"warning: {'; '.join(filter(None, (lack, nodes_outside())))}")
    return placement


def _start_learner(
    config: TrainConfig,
    run: str,
    placement: Placement,
    access: Access,
    local: bool,
    stopping: Callable[[], bool],
    note: Callable[[str], None],
) -> tuple[Any, Placement]:
    """Create the learner's process; returns its handle and the placement with the node that it is on.

    Raises ValueError if this Ray already has a run of the same name.
    """
    needs = placement.needs
    learner = (
        remote(LearnerWorker)
        .options(name="learner", **placement.learner_options())
        .remote(config, run, needs.threads, access, None if local else needs.learner_gpus)
    )
    lack = partial(_say, learner_lack, placement)
    [where] = _await_ready({"learner": learner.describe.remote()}, lack, config.ready_timeout, stopping)
    for warning in where.warnings:
        note(f"warning: {warning}")
    if local:
        return learner, placement
    return learner, replace(placement, node=placement.node or Node(where.node, where.address))


def _start_actors(
    config: TrainConfig, base_steps: int, run: str, local: bool, access: Access, options: dict[str, Any]
) -> ActorFleet:
    extra = {"num_cpus": 0} if local else {}  # the local Ray has no CPU left for actors that are added later
    fleet = ActorFleet(config, run, access, base_steps, config.actors.nice, options, extra)
    fleet.start()
    return fleet


def _say(lack: Callable[[Placement, Sequence[Node]], str], placement: Placement) -> str:
    """What is short now by ``lack``, with the nodes that should be in the cluster and are not."""
    return "; ".join(filter(None, (lack(placement, cluster_nodes()), nodes_outside())))


def _await_ready(
    calls: dict[str, Any], lack: Callable[[], str], timeout: float, stopping: Callable[[], bool]
) -> list[Any]:
    """Wait for ``calls`` (process name -> Ray reference); returns their results in order.

    Raises RunFault, which names the processes that are not ready after ``timeout`` seconds and ends with ``lack()``;
    raises StoppedDuringStart once ``stopping`` returns True.
    """
    refs = list(calls.values())
    deadline = time.monotonic() + timeout
    ready: list[Any] = []
    while len(ready) < len(refs) and time.monotonic() < deadline:
        if stopping():
            raise StoppedDuringStart
        ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0.5)
    if len(ready) < len(refs):
        missing = [name for name, ref in calls.items() if ref not in ready]
        raise RunFault(f"not ready after {timeout:g} s: {', '.join(missing)}{lack()}")
    try:
        return list(ray.get(refs))
    except ray.exceptions.RayError as error:
        raise RunFault(f"{', '.join(calls)} could not start: {last_line(error)}") from error
