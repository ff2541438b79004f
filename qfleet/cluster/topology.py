"""Starts the processes of a run on Ray, each with the CPUs and GPUs that it needs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray

from learner.checkpoint import Checkpoint
from learner.learner import learner_threads
from qfleet.cluster.board import BOARD, RunBoard
from qfleet.cluster.faults import last_line
from qfleet.cluster.fleet import ActorFleet
from qfleet.cluster.needs import Needs
from qfleet.cluster.shards import ReplayShards
from qfleet.cluster.weights import WEIGHT_STORE, WeightStore
from qfleet.cluster.workers import EvaluatorWorker, LearnerWorker
from qfleet.config import TrainConfig
from replay.security import Access, new_token
from rl.errors import RunFault

remote: Any = ray.remote  # untyped, because Ray's handles have no typed methods


class StoppedDuringStart(Exception):
    """The user ended the run while its processes were starting."""


@dataclass
class Topology:
    """Handles of the Ray actors of a run, and a description of the learner's device."""

    board: Any
    weights: Any
    shards: ReplayShards
    learner: Any
    fleet: ActorFleet
    evaluator: Any
    device: str = ""

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
    resumed: Checkpoint | None,
    base_steps: int,
    local: bool,
    stopping: Callable[[], bool],
) -> Topology:
    """Start all processes of a run and wait until they can train; returns their handles.

    One actor is enough: the others join when they have started. The evaluator is requested before the actors, so that
    it gets a CPU; the run does not wait for it.
    ``base_steps``: agent steps made before a resume. ``local``: the run has started its own Ray. Raises RunFault if a
    process is not ready in time, and StoppedDuringStart once ``stopping`` returns True.
    """
    needs, run = Needs.of(config), directory.name
    board, weights = _start_stores(run)
    access = Access.load(config.replay.security)
    access = replace(access, token=access.token or new_token())  # passed as an argument only, never written to disk
    shards = ReplayShards(config, directory, access, local)
    shard_calls = {f"shard-{i}": shards.start(i) for i in range(config.replay.shards)}
    addresses = _await_ready(shard_calls, f"{needs.shard_cpus} CPU each", config.ready_timeout, stopping)
    shards.addresses = dict(enumerate(addresses))
    board.set_shards.remote(addresses)
    learner = (
        remote(LearnerWorker)
        .options(name="learner", num_cpus=needs.learner_cpus, num_gpus=needs.learner_gpus)
        .remote(config, addresses, resumed, run, learner_threads(config.learner), access)
    )
    device = _await_ready(
        {"learner": learner.start.remote()},
        f"{needs.learner_cpus} CPU, {needs.learner_gpus} GPU",
        config.ready_timeout,
        stopping,
    )
    evaluator = (
        remote(EvaluatorWorker)
        .options(name="evaluator", num_cpus=needs.evaluator_cpus, max_restarts=-1)
        .remote(config, base_steps, run)
    )
    fleet = _start_actors(config, base_steps, run, local, access)
    fleet.await_first(config.ready_timeout, stopping)
    if stopping():
        raise StoppedDuringStart
    return Topology(board, weights, shards, learner, fleet, evaluator, device[0])


def _start_stores(run: str) -> tuple[Any, Any]:
    """Start the run's board and its weight store. Raises RunFault if this Ray already has a run of the same name."""
    try:
        board = remote(RunBoard).options(name=BOARD, num_cpus=0, max_restarts=0).remote()
        return board, remote(WeightStore).options(name=WEIGHT_STORE, num_cpus=0, max_restarts=0).remote()
    except ValueError as error:
        raise RunFault(f"this Ray already has a run named {run!r}: write a --run-dir with another name") from error


def _start_actors(config: TrainConfig, base_steps: int, run: str, local: bool, access: Access) -> ActorFleet:
    options = {"num_cpus": Needs.of(config).actor_cpus, "max_restarts": -1, "scheduling_strategy": "SPREAD"}
    extra = {"num_cpus": 0} if local else {}  # the local Ray has no CPU left for actors that are added later
    fleet = ActorFleet(config, run, access, base_steps, config.actors.nice if local else 0, options, extra)
    fleet.start()
    return fleet


def _await_ready(calls: dict[str, Any], needs: str, timeout: float, stopping: Callable[[], bool]) -> list[Any]:
    """Wait for ``calls`` (process name -> Ray reference); returns their results in order.

    Raises RunFault, which names the processes that are not ready after ``timeout`` seconds and their ``needs``; raises
    StoppedDuringStart once ``stopping`` returns True.
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
        resources: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
        free = ", ".join(f"{resources.get(name, 0):g} {name}" for name in ("CPU", "GPU"))
        raise RunFault(
            f"not ready after {timeout:g} s: {', '.join(missing)} (needed: {needs}; free in the cluster: {free}): "
            "reduce `actors.count`, `replay.shards` or `learner.threads`, add nodes, or raise `ready_timeout`"
        )
    try:
        return list(ray.get(refs))
    except ray.exceptions.RayActorError as error:
        raise RunFault(f"{', '.join(calls)} could not start: {last_line(error)}") from error
