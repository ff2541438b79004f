"""The processes of a run on Ray: starts them on the nodes of its placement, and starts those again that fail."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ray

from learner.checkpoint import Checkpoint
from qfleet.cluster.autoscaler import nodes_outside
from qfleet.cluster.faults import StoppedDuringStart, last_line
from qfleet.cluster.fleet import ActorFleet
from qfleet.cluster.learner_worker import LearnerWorker
from qfleet.cluster.placement import Node, Placement, cluster_nodes, place, place_locally
from qfleet.cluster.process import Process
from qfleet.cluster.restarts import Restarts, title
from qfleet.cluster.room import actors_lack, count_room, describe_lack, learner_lack, shards_lack
from qfleet.cluster.shards import ReplayShards
from qfleet.cluster.stores import make_board, make_weight_store
from qfleet.cluster.versions import check_versions, survey_nodes, versions_here
from qfleet.cluster.workers import EvaluatorWorker
from qfleet.config import TrainConfig
from replay.security import Access, new_token
from rl.errors import RunFault

TELL_AFTER = 30.0  # seconds until the user is told of a process that has not started

remote: Any = ray.remote  # untyped, because Ray's handles have no typed methods


class Topology:
    """The processes of a run.

        topology = Topology(config, directory, address, load_checkpoint, note)
        topology.start(resumed, base_steps, stopping)  # waits until they can train
        for name, handle in topology.workers():  # repeatedly, from the driver's loop
            handle.poll.remote()
        topology.failed("learner", error)
        topology.advance()  # starts again what has failed, without waiting

    ``address``: the Ray that the run has joined; None: it has started its own. ``load_checkpoint`` returns the last
    checkpoint, from which the learner is started again. ``note`` gets lines for the user.
    """

    placement: Placement
    learner: Process
    board: Process
    weights: Process
    shards: ReplayShards
    evaluator: Process
    fleet: ActorFleet
    device: str  # of the learner, with its precision

    def __init__(
        self,
        config: TrainConfig,
        directory: Path,
        address: str | None,
        load_checkpoint: Callable[[], Checkpoint | None],
        note: Callable[[str], None],
    ) -> None:
        self._config, self._directory, self._is_local = config, directory, address is None
        self._load_checkpoint, self._note = load_checkpoint, note
        access = Access.load(config.replay.security)
        # the token is passed as an argument only, never written to disk
        self._access = replace(access, token=access.token or new_token())
        self.restarts = Restarts()
        self.weights_version = 0  # of the learner's last publication, as far as the driver knows
        self._has_autoscaler = False
        self._starting_since: dict[str, float] = {}  # times; infinite once the user was told

    def start(self, resumed: Checkpoint | None, base_steps: int, stopping: Callable[[], bool]) -> None:
        """Start all processes and wait until they can train.

        One actor is enough: the others join when they have started. The evaluator is requested before the actors, so
        that it gets a CPU; the run does not wait for it. ``base_steps``: agent steps made before a resume. Raises
        BadInput if the run does not fit the cluster, RunFault if a process is not ready in time, and StoppedDuringStart
        once ``stopping`` returns True.
        """
        config, run = self._config, self._directory.name
        if self._is_local:
            self.placement = place_locally(config)
        else:
            self.placement, self._has_autoscaler = place_in_cluster(config, stopping, self._note)
        try:
            self._start_learner(run, stopping)
            self.board = make_board(self._current_placement, self.restarts)
            self.weights = make_weight_store(self._current_placement, self.restarts)
        except ValueError as error:
            raise RunFault(f"this Ray already has a run named {run!r}: write a --run-dir with another name") from error
        addresses = self._start_shards(resumed is not None, stopping)
        started = {"learner": self.learner.handle.start.remote(addresses, resumed)}
        [answer] = _await_ready(started, lambda: ": raise `ready_timeout`", config.ready_timeout, stopping)
        self.device = answer.device
        self.learner.started(answer)
        self.evaluator = Process("evaluator", partial(self._request_evaluator, base_steps, run), self.restarts)
        for process in (self.board, self.weights, self.evaluator):
            process.start()
        extra = {"num_cpus": 0} if self._is_local else {}  # the local Ray has no CPU for actors that are added later
        nice, options = config.actors.nice, lambda: self.placement.actor_options()
        self.fleet = ActorFleet(config, run, self._access, base_steps, nice, options, self.restarts, extra)
        self.fleet.start()
        self.fleet.await_first(config.ready_timeout, stopping, partial(_say, actors_lack, self.placement))
        if stopping():
            raise StoppedDuringStart

    def _start_learner(self, run: str, stopping: Callable[[], bool]) -> None:
        """Create the learner's process, and place what is beside it on its node.

        Raises ValueError if this Ray already has a run of the same name.
        """
        self.learner = Process("learner", partial(self._request_learner, run), self.restarts, self._resume_learner)
        lack = partial(_say, learner_lack, self.placement)
        calls = {"learner": self.learner.handle.describe.remote()}
        [where] = _await_ready(calls, lack, self._config.ready_timeout, stopping)
        for warning in where.warnings:
            self._note(f"warning: {warning}")
        if not self._is_local:
            self.placement = replace(self.placement, node=self.placement.node or Node(where.node, where.address))

    def _start_shards(self, resumed: bool, stopping: Callable[[], bool]) -> list[str]:
        """Start the shards, and tell the board their addresses, which are returned."""
        local = self._is_local
        self.shards = ReplayShards(
            self._config, self._directory, self._access, local, resumed, self._shard_options, self.restarts
        )
        calls = {f"shard-{i}": self.shards.start(i) for i in range(self._config.replay.shards)}
        lack = partial(_say, shards_lack, self.placement)
        addresses = _await_ready(calls, lack, self._config.ready_timeout, stopping)
        self.shards.addresses = dict(enumerate(addresses))
        self.board.handle.set_shards.remote(addresses)
        return addresses

    def _shard_options(self) -> dict[str, Any]:
        return self._current_placement().shard_options()

    def _request_learner(self, run: str) -> Any:
        placement = self._current_placement()
        needs = placement.needs
        return (
            remote(LearnerWorker)
            # concurrency: it answers polls while it makes a checkpoint
            .options(name="learner", max_concurrency=4, **placement.learner_options())
            .remote(self._config, run, needs.threads, self._access, None if self._is_local else needs.learner_gpus)
        )

    def _resume_learner(self, handle: Any) -> Any:
        """Let a learner that was started again go on from the last checkpoint."""
        checkpoint = self._load_checkpoint()
        updates = 0 if checkpoint is None else int(checkpoint.state["updates"])
        self._note(f"the learner is requested again, to go on from its state after {updates:,} updates")
        return handle.start.remote(list(self.shards.addresses.values()), checkpoint, self.weights_version)

    def _request_evaluator(self, base_steps: int, run: str) -> Any:
        # concurrency: it answers polls while it plays, also one more evaluation that the driver has given up
        options = {"name": "evaluator", "max_concurrency": 4, **self._current_placement().evaluator_options()}
        return remote(EvaluatorWorker).options(**options).remote(self._config, base_steps, run)

    def _current_placement(self) -> Placement:
        """The placement, on another node if the learner's node has died. Raises BadInput if none suits it now."""
        node = self.placement.node
        if node is None:
            return self.placement
        nodes = cluster_nodes()
        if node.id not in {n.id for n in nodes}:
            self.placement = place(self._config, nodes, self._has_autoscaler)
            to = self.placement.node.address if self.placement.node else "one that is not there yet"
            self._note(f"warning: the learner's node {node.address} has died: the learner moves to {to}")
        return self.placement

    @property
    def actors(self) -> list[Any]:
        """Handles of the actors that have started; the same list object all the time."""
        return self.fleet.actors

    @property
    def _singles(self) -> tuple[Process, ...]:
        """The processes of which there is one each."""
        return self.learner, self.board, self.weights, self.evaluator

    def workers(self) -> list[tuple[str, Any]]:
        """(name, handle) of every process that has started and works."""
        singles = [(p.name, p.handle) for p in self._singles if p.is_working]
        return [*singles, *self.fleet.workers(), *self.shards.workers()]

    def starting(self) -> dict[str, Any]:
        """Handles of the processes that have been requested and do not work yet, by name."""
        singles = {p.name: p.handle for p in self._singles if p.is_starting}
        return {**singles, **self.fleet.starting, **self.shards.starting}

    def all_handles(self) -> list[Any]:
        """The handles of all processes, the board's last."""
        singles = [p.handle for p in (self.evaluator, self.learner, self.weights, self.board)]
        return [*self.fleet.all_handles(), *self.shards.handles.values(), *singles]

    def failed(self, name: str, error: Exception) -> None:
        """Process ``name`` has failed with ``error``: `advance` starts it again. Raises RunFault if it is given up."""
        if name.startswith("actor-"):
            self.fleet.failed(name, error)
        elif name.startswith("shard-"):
            self.shards.failed(name, error)
        else:
            next(p for p in self._singles if p.name == name).failed(error)

    @property
    def may_start_actors(self) -> bool:
        """Whether actors can act, and cannot take the room that the learner waits for."""
        return self.learner.is_working and self.weights.is_working

    def advance(self) -> None:
        """Start the processes again that have failed, when it is time to; actors are left to the fleet.

        Raises RunFault if one is given up.
        """
        for process in self._singles:
            if self.restarts.given_up(process.name):
                raise RunFault(self.restarts.describe_last(process.name))
        if line := self.restarts.news(time.monotonic()):
            self._note(line)
        for process in self._singles:
            if process.advance() and process is self.learner:
                self._learner_has_started()
        self.shards.restart(self.board.handle, self.learner.handle)
        self._tell_what_waits()

    def _learner_has_started(self) -> None:
        """The learner works again: tell it the shards of now, and the user where it is."""
        device, place = self.learner.answer
        if not self._is_local and self.placement.node is None:
            self.placement = replace(self.placement, node=Node(place.node, place.address))
        for warning in place.warnings:
            self._note(f"warning: {warning}")
        self._note(f"the learner learns again, on {place.address} ({device})")
        self.shards.tell(self.board.handle, self.learner.handle)

    def _tell_what_waits(self) -> None:
        """Tell the user once of a learner or shard that has been starting for long, and what is short."""
        starting = [name for name in self.starting() if name == "learner" or name.startswith("shard-")]
        now = time.monotonic()
        self._starting_since = {name: self._starting_since.get(name, now) for name in starting}
        for name, since in self._starting_since.items():
            if now - since > TELL_AFTER:
                self._starting_since[name] = math.inf
                lack = _say(learner_lack if name == "learner" else shards_lack, self.placement)
                self._note(f"warning: {title(name)} has not started for {TELL_AFTER:g} s{lack}")

    def weights_lost(self) -> None:
        """The weight store has no weights, because it was started again: the learner sends its newest ones."""
        if self.learner.is_working and self.weights_version:
            self.learner.handle.republish.remote()


def place_in_cluster(
    config: TrainConfig, stopping: Callable[[], bool], note: Callable[[str], None]
) -> tuple[Placement, bool]:
    """The placement of the run in the cluster that this process has joined, after a comparison of versions.

    Also returns whether the cluster has an autoscaler. Raises BadInput, RunFault and StoppedDuringStart.
    """
    nodes = cluster_nodes()
    answers = survey_nodes({n.id: n.address for n in nodes}, stopping)
    check_versions(versions_here(), {n.address: answers[n.id].versions for n in nodes})
    autoscaler = any(answer.autoscaler for answer in answers.values())
    placement = place(config, nodes, autoscaler)
    lack = describe_lack(count_room(placement, cluster_nodes()), placement, config.ready_timeout)
    if lack:
        note(f"warning: {'; '.join(filter(None, (lack, nodes_outside())))}")
    return placement, autoscaler


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
