"""Which processes a run has, where they go and what they ask for: Ray, started here or joined."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray

from launch.config import TrainConfig
from launch.fleet import ShardFleet
from launch.ray_weights import WeightRegistry
from launch.workers import ActorWorker, EvaluatorWorker, LearnerWorker, last_line
from learner.checkpoint import Checkpoint
from learner.learner import learner_threads, pick_device
from replay.security import Access, new_token
from rl.errors import BadInput, RunFault

JOIN_TIMEOUT = 10.0  # seconds that a Ray may take to answer at --address


@dataclass(frozen=True)
class Needs:
    """CPUs and GPUs of each kind of process."""

    learner_cpus: int
    learner_gpus: int
    actor_cpus: int = 1
    shard_cpus: int = 1
    evaluator_cpus: int = 1

    @classmethod
    def of(cls, config: TrainConfig) -> Needs:
        cuda = pick_device(config.learner.device).type == "cuda"
        return cls(2 * learner_threads(config.learner), 1 if cuda else 0)

    def total_cpus(self, config: TrainConfig) -> int:
        """CPUs of all processes together."""
        actors = self.actor_cpus * config.actors.count
        return self.learner_cpus + actors + self.shard_cpus * config.replay.shards + self.evaluator_cpus


def start_ray(config: TrainConfig, address: str | None, namespace: str) -> list[str]:
    """Join the Ray at ``address``, or start one here; returns warnings.

    Raises BadInput when none answers at the address, RunFault when none starts here.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 would put the learner behind everything else
    env = {"OMP_NUM_THREADS": "1", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    common: dict[str, Any] = {
        "namespace": namespace,
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "runtime_env": {"env_vars": env},
    }
    if address is not None:
        join(address, **common)
        return []
    needs = Needs.of(config)
    asked, cores = needs.total_cpus(config), os.cpu_count() or 1
    try:
        ray.init(
            address="local",
            num_cpus=max(asked, cores),
            include_dashboard=True,
            object_store_memory=300 * 2**20,
            **common,
        )
    except (RuntimeError, OSError) as error:  # its control service did not begin in time, or the disk is full
        raise RunFault(f"Ray could not be started on this machine: {last_line(error)}") from error
    if asked > cores:
        return [f"{asked} CPUs asked for on {cores} cores: the processes share them (speeds below are of that)"]
    return []


HINT = "start one with `ray start --head`, or leave --address out to start a local one"


def resolve(address: str) -> str:
    """host:port of the Ray that ``address`` means; raises BadInput when none answers within JOIN_TIMEOUT seconds."""
    target = address
    if address == "auto":
        target = os.environ.get("RAY_ADDRESS") or ray._private.utils.read_ray_address() or ""
        if not target:
            raise BadInput(f"--address auto: no Ray runs on this machine: {HINT}")
    if not _answers(target, JOIN_TIMEOUT):
        raise BadInput(f"--address {address}: no Ray answers at {target} within {JOIN_TIMEOUT:g} s: {HINT}")
    return target


def join(address: str, namespace: str, **options: Any) -> None:
    """Join a running Ray; raises BadInput when none answers within JOIN_TIMEOUT seconds."""
    target = resolve(address)
    try:
        ray.init(address=target, namespace=namespace, **{"log_to_driver": False, **options})
    except Exception as error:
        raise BadInput(f"--address {address}: Ray at {target} could not be joined ({error}): {HINT}") from error


def _answers(address: str, timeout: float) -> bool:
    """Whether a Ray head listens at host:port."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise BadInput(f"--address {address!r}: write auto, or host:port of a Ray head")
    try:
        with socket.create_connection((host, int(port)), timeout=timeout):
            return True
    except OSError:
        return False


remote: Any = ray.remote  # Ray's handles type no methods


class Stopped(Exception):
    """The user ended the run while its processes were starting."""


@dataclass
class Topology:
    """Handles of a run's Ray actors."""

    registry: Any
    fleet: ShardFleet
    learner: Any
    actors: list[Any]
    evaluator: Any
    device: str = ""

    def workers(self) -> list[tuple[str, Any]]:
        """(name, handle) of everything that is polled or stopped."""
        actors = [(f"actor-{i}", a) for i, a in enumerate(self.actors)]
        shards = [(f"shard-{i}", s) for i, s in self.fleet.handles.items()]
        return [("learner", self.learner), *actors, *shards]


def build(
    config: TrainConfig,
    directory: Path,
    resumed: Checkpoint | None,
    base_steps: int,
    local: bool,
    stopping: Callable[[], bool],
) -> Topology:
    """Start every process and wait until all are ready. Raises RunFault naming what was not placed in time."""
    needs, run = Needs.of(config), directory.name
    nice = config.actors.nice if local else 0
    try:
        registry = remote(WeightRegistry).options(name="registry", num_cpus=0, max_restarts=0).remote()
    except ValueError as error:
        raise RunFault(f"this Ray already has a run named {run!r}: write a --run-dir of another name") from error
    access = Access.of(config.replay.security)
    access = replace(access, token=access.token or new_token())  # goes to the parts as an argument, and nowhere else
    fleet = ShardFleet(config, directory, access, local)
    wanted = {f"shard-{i}": fleet.start(i) for i in range(config.replay.shards)}
    addresses = _await_ready(wanted, f"{needs.shard_cpus} CPU each", config.ready_timeout, stopping)
    fleet.addresses = dict(enumerate(addresses))
    registry.set_shards.remote(addresses)
    threads = learner_threads(config.learner)
    learner = (
        remote(LearnerWorker)
        .options(name="learner", num_cpus=needs.learner_cpus, num_gpus=needs.learner_gpus)
        .remote(config, addresses, resumed, run, threads, access)
    )
    device = _await_ready(
        {"learner": learner.start.remote()},
        f"{needs.learner_cpus} CPU, {needs.learner_gpus} GPU",
        config.ready_timeout,
        stopping,
    )
    actors = [
        remote(ActorWorker)
        .options(name=f"actor-{i}", num_cpus=needs.actor_cpus, max_restarts=-1, scheduling_strategy="SPREAD")
        .remote(config, i, base_steps, run, nice, access)
        for i in range(config.actors.count)
    ]
    evaluator = (
        remote(EvaluatorWorker)
        .options(name="evaluator", num_cpus=needs.evaluator_cpus, max_restarts=-1)
        .remote(config, base_steps, run)
    )
    ready = {f"actor-{i}": a.poll.remote() for i, a in enumerate(actors)}
    ready["evaluator"] = evaluator.__ray_ready__.remote()
    _await_ready(ready, "1 CPU each", config.ready_timeout, stopping)
    return Topology(registry, fleet, learner, actors, evaluator, device[0])


def _await_ready(calls: dict[str, Any], asks: str, timeout: float, stopping: Callable[[], bool]) -> list[Any]:
    """Results of ``calls`` by name in order. Raises RunFault naming those not there after ``timeout`` seconds."""
    refs = list(calls.values())
    deadline = time.monotonic() + timeout
    ready: list[Any] = []
    while len(ready) < len(refs) and time.monotonic() < deadline:
        if stopping():
            raise Stopped
        ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0.5)
    if len(ready) < len(refs):
        missing = [name for name, ref in calls.items() if ref not in ready]
        resources: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
        free = {k: v for k, v in resources.items() if k in ("CPU", "GPU")}
        raise RunFault(
            f"not ready after {timeout:g} s: {', '.join(missing)} (asking for {asks}; free in the cluster: {free}); "
            "ask for fewer with --actors.count, --replay.shards and --learner.threads, add nodes, or wait longer with "
            "--ready-timeout"
        )
    try:
        return list(ray.get(refs))
    except ray.exceptions.RayActorError as error:
        raise RunFault(f"{', '.join(calls)} could not start: {last_line(error)}") from error
