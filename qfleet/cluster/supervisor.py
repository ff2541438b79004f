"""The driver of a distributed run: polls the workers, starts evaluations, writes checkpoints, ends the processes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

import ray

from qfleet.cluster.connect import start_ray
from qfleet.cluster.evaluation import Evaluation, is_ready
from qfleet.cluster.faults import DIED, StoppedDuringStart, first_line, last_line, reason
from qfleet.cluster.placement import cluster_nodes
from qfleet.cluster.scaling import Scaling
from qfleet.cluster.topology import Topology, start_processes
from qfleet.config import TrainConfig
from qfleet.run.directory import SCALE
from qfleet.run.run import Run
from qfleet.run.stats import RunStats
from rl.errors import RunFault

POLL_PERIOD = 1.0  # seconds between polls
CALL_TIMEOUT = 60.0  # seconds to wait for an answer of a worker


class _Poller:
    """Polls all workers, with one call per worker in flight. A worker that is restarting may miss some polls.

    A poll tells an actor its place in the fleet, the agent steps of all actors, and the shards that it writes to.
    """

    def __init__(self, topology: Topology, stats: RunStats, warn: Callable[[str], None]) -> None:
        self._topology, self._stats = topology, stats
        self._warn = warn
        self._pending: dict[str, Any] = {}  # calls in flight
        self._last_polls: list[Any] = []  # calls in flight to actors that were scaled away since
        self._last_answer: dict[str, float] = {}  # times
        self._dead: set[str] = set()

    def poll(self) -> dict[str, dict[str, Any]]:
        """The answers since the last call, by worker.

        For a learner or a shard that has died there is one last answer, with its `failure`; an actor is left to the
        fleet. A shard that does not answer causes a warning (of the actors, the fleet keeps account); a learner that
        does not answer raises RunFault.
        """
        workers = dict(self._topology.workers())
        self._dead &= workers.keys()  # a shard that was removed may come back under its name
        workers = {name: handle for name, handle in workers.items() if name not in self._dead}
        self._last_answer = {name: self._last_answer.get(name, time.monotonic()) for name in workers}
        self._last_polls += [c for n, c in self._pending.items() if n not in workers and n.startswith("actor-")]
        self._pending = {name: call for name, call in self._pending.items() if name in workers}
        for name, handle in workers.items():
            if name not in self._pending:
                is_actor, fleet = name.startswith("actor-"), self._topology.fleet
                views = [fleet.view(name, self._stats.agent_steps), self._topology.shards.view] if is_actor else []
                self._pending[name] = handle.poll.remote(*views)
        refs = [*self._pending.values(), *self._last_polls]
        ready, _ = ray.wait(refs, num_returns=len(refs), timeout=POLL_PERIOD / 2)
        self._topology.fleet.polled()
        self._add_last_episodes(ready)
        answers = {}
        for name, ref in [(n, r) for n, r in self._pending.items() if r in ready]:
            del self._pending[name]
            try:
                answers[name] = ray.get(ref)
                self._last_answer[name] = time.monotonic()
            except (ray.exceptions.ActorUnavailableError, ray.exceptions.ObjectLostError):  # an answer was lost
                continue
            except DIED as error:
                if name.startswith("actor-"):
                    self._topology.fleet.failed(name, error)
                    continue
                answers[name] = {"failure": f"the process ended: {reason(error)}"}
                self._dead.add(name)
        for name, last in list(self._last_answer.items()):
            if time.monotonic() - last > CALL_TIMEOUT * 3:
                if name == "learner":
                    raise RunFault(f"{name} has not answered for {CALL_TIMEOUT * 3:g} s")
                if name.startswith("actor-"):
                    continue
                self._warn(f"warning: {name} has not answered for {CALL_TIMEOUT * 3:g} s; the run continues without it")
                self._last_answer[name] = time.monotonic()
        return answers

    def _add_last_episodes(self, ready: list[Any]) -> None:
        """Add the episodes of last polls; their agent steps are in the answer with which the actor ends."""
        for call in [c for c in self._last_polls if c in ready]:
            self._last_polls.remove(call)
            with contextlib.suppress(ray.exceptions.RayError):
                self._stats.add_episodes(ray.get(call)["episodes"])


def run_distributed(run: Run, address: str | None, on_ready: Callable[[], None]) -> None:
    """Train on Ray until the run is finished, and end all of its processes.

    ``address`` None: start a local Ray, else join the Ray there. ``on_ready`` is called once Ray is started or joined.
    Raises RunFault, BadInput.
    """
    directory = run.dir.path.resolve()
    (directory / SCALE).unlink(missing_ok=True)  # the request of an earlier process: it is not repeated after a resume
    try:
        for warning in start_ray(run.config, address, directory.name):
            run.progress.note(f"warning: {warning}")
        on_ready()
        topology = start_processes(
            run.config,
            directory,
            run.dir.where,
            run.resumed,
            run.stats.base_steps,
            address,
            stopping=lambda: run.interrupted_by is not None,
            note=run.progress.note,
        )
        run.progress.note(_describe(run.config, topology))
        run.stats.start_clock()
        failure: Exception | None = None
        try:
            _training_loop(run, topology)
        except (ray.exceptions.RayError, RunFault, TimeoutError) as error:
            # The death of a store shows first as an error of whoever used it.
            is_own = isinstance(error, RunFault) and not isinstance(error, ray.exceptions.RayTaskError)
            failure = topology.stores.fault(wait=5.0) or (error if is_own else RunFault(reason(error)))
        run.stats.stop_clock()
        _finish(run, topology)
        if failure is not None:
            raise failure
    except StoppedDuringStart:
        run.progress.note("stopped before training started")
    finally:
        ray.shutdown()


def _describe(config: TrainConfig, topology: Topology) -> str:
    """One line about the processes of the run and where they are, for the user."""
    url, node = ray.get_runtime_context().gcs_address, topology.placement.node
    learner = f"learner on {topology.device}" if node is None else f"learner on {node.address} ({topology.device})"
    shards, started, wanted = topology.shards.addresses, len(topology.actors), topology.fleet.wanted
    rest = f" (of {wanted}: the others join when there is room)" if started < wanted else ""
    return (
        f"{started} actor(s){rest} x {config.actors.environments} environments, {len(shards)} replay shard(s) at "
        f"{', '.join(shards.values())}, {learner}; Ray at {url}{_describe_dashboard(local=node is None)}"
    )


def _describe_dashboard(local: bool) -> str:
    """How to open Ray's dashboard: its address on this machine, else the command for the machine where the user sits."""
    dashboard = ray._private.worker.global_worker.node and ray._private.worker.get_dashboard_url()  # type: ignore[no-untyped-call]
    if not dashboard:
        return ""
    if local:
        return f", dashboard http://{dashboard}"
    head = next((n.address for n in cluster_nodes() if n.is_head), "HEAD")
    host, _, port = dashboard.rpartition(":")
    target = "127.0.0.1" if host in ("0.0.0.0", "::", "localhost") else host
    return (
        f", dashboard at http://127.0.0.1:{port} after `ray dashboard deploy/FILE` or "
        f"`ssh -N -L {port}:{target}:{port} {head}` on your machine"
    )


def _training_loop(run: Run, topology: Topology) -> None:
    poller, evaluation = _Poller(topology, run.stats, run.progress.note), Evaluation(run, topology.evaluator)
    scaling = Scaling(run, topology)
    checkpoint_call: Any = None
    status_call: Any = None
    while not run.is_finished():
        started = time.monotonic()
        if (fault := topology.stores.fault()) is not None:
            raise fault
        for name, answer in poller.poll().items():
            _handle_answer(run, topology, name, answer)
        evaluation.advance()
        if checkpoint_call is None and run.is_checkpoint_due():
            checkpoint_call = topology.learner.checkpoint.remote(run.checkpoint_extra())
        if checkpoint_call is not None and is_ready(checkpoint_call):
            run.save_checkpoint(ray.get(checkpoint_call))
            checkpoint_call = None
        request = ray.get(status_call) if status_call is not None and is_ready(status_call) else None
        scaling.advance(request)
        run.tick()
        status_call = topology.board.set_status.remote(run.status(run.last_row))
        while time.monotonic() - started < POLL_PERIOD and not run.is_finished():
            time.sleep(0.05)


def _handle_answer(run: Run, topology: Topology, name: str, answer: dict[str, Any]) -> None:
    """Add a worker's answer to the totals. Raises RunFault if it reports a failure that ends the run."""
    failure = answer.pop("failure")
    if news := answer.pop("news", ""):
        if name.startswith("actor-"):
            run.warn_of_actor(name, news)
        else:
            run.progress.note(f"replay {name} {news}")
    if failure is not None:
        index = int(name.removeprefix("shard-")) if name.startswith("shard-") else None
        if index is not None and index not in topology.shards.addresses:
            return  # it was still being added: `ReplayShards.advance` reports the failure
        if index is None or len(topology.shards.addresses) < 2:
            raise RunFault(f"{name}: {failure}")
        run.progress.note(f"warning: lost replay {name} with its content: {failure}")
        topology.shards.forget(index)
        topology.shards.tell(topology.board, topology.learner)
        _check_min_size(run.config, len(topology.shards.addresses))
        return
    if name.startswith("shard-"):
        index = int(name.removeprefix("shard-"))
        topology.shards.update_address(index, answer["address"], topology.board, topology.learner)
    elif name == "learner":
        run.stats.add_learner_report(answer)
    elif name.startswith("actor-"):
        shards = (answer[f"shards_{what}"] for what in ("version", "in_use", "silent"))
        if warning := topology.shards.answered(name, *shards):
            run.progress.note(warning)
        run.stats.add_actor_report(topology.fleet.answered(name), answer["agent_steps"], answer["episodes"])


def _check_min_size(config: TrainConfig, alive: int) -> None:
    """Raise RunFault if ``alive`` shards may hold fewer items than `min_size`: the learner would wait forever."""
    if config.min_items_when_full(alive) < config.replay.limiter.min_size:
        raise RunFault(
            f"the remaining {alive} replay shard(s) cannot hold the {config.replay.limiter.min_size:,} transitions of "
            f"`replay.limiter.min_size`: resume with a larger `replay.capacity` (now {config.replay.capacity:,} in all)"
        )


def _finish(run: Run, topology: Topology) -> None:
    """Stop the actors and the learner, write the last checkpoint and snapshots, and kill all processes."""
    try:
        if calls := [a.stop.remote() for a in topology.actors]:
            ray.wait(calls, num_returns=len(calls), timeout=0.5)
        ended = ray.get(topology.learner.stop.remote(), timeout=CALL_TIMEOUT)
        if not ended:  # a checkpoint could hold an update that is only half done
            raise TimeoutError("the learner did not end its last update within 20 s")
        run.stats.learner["updates"] = ray.get(topology.learner.poll.remote(), timeout=CALL_TIMEOUT)["updates"]
        run.save_checkpoint(ray.get(topology.learner.checkpoint.remote(run.checkpoint_extra()), timeout=CALL_TIMEOUT))
    except (ray.exceptions.RayError, TimeoutError) as error:
        run.progress.note(f"warning: could not write the last checkpoint: {first_line(error)}")
    shards = topology.shards.handles
    if run.config.replay.snapshot_minutes > 0:
        _stop_shards(run, shards)
    for handle in (
        *topology.fleet.all_handles(),
        *shards.values(),
        topology.evaluator.handle,
        topology.learner,
        topology.weights,
        topology.board,
    ):
        ray.kill(handle)


def _stop_shards(run: Run, shards: dict[int, Any]) -> None:
    """Stop every shard; each writes its last snapshot."""
    calls = {index: shard.stop.remote() for index, shard in shards.items()}
    ray.wait(list(calls.values()), num_returns=len(calls), timeout=CALL_TIMEOUT)
    for k, call in calls.items():
        try:
            ray.get(call, timeout=0)
        except (ray.exceptions.RayError, TimeoutError, RunFault) as error:
            run.progress.note(f"warning: replay shard-{k} could not write its last snapshot: {last_line(error)}")
