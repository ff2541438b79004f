"""The driver of a distributed run: polls the workers, starts evaluations, writes checkpoints, ends the processes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

import ray

from learner.checkpoint import Checkpoint
from qfleet.cluster.connect import start_ray
from qfleet.cluster.evaluation import Evaluation
from qfleet.cluster.faults import DIED, StoppedDuringStart, last_line, reason
from qfleet.cluster.placement import cluster_nodes
from qfleet.cluster.process import is_ready
from qfleet.cluster.scaling import Scaling
from qfleet.cluster.topology import Topology
from qfleet.cluster.watch import SILENT_AFTER, Watch
from qfleet.config import TrainConfig
from qfleet.run.directory import SCALE, ScaleRequest
from qfleet.run.run import Run
from qfleet.run.stats import RunStats
from rl.errors import RunFault

POLL_PERIOD = 1.0  # seconds between polls
CALL_TIMEOUT = 60.0  # seconds to wait for an answer of a worker


class _Poller:
    """Polls all processes, with one call per process in flight.

    A poll tells an actor its place in the fleet, the agent steps of all actors, and the shards that it writes to.
    """

    def __init__(self, topology: Topology, stats: RunStats, note: Callable[[str], None]) -> None:
        self._topology, self._stats = topology, stats
        self._watch = Watch(note)
        self._pending: dict[str, tuple[Any, float]] = {}  # calls in flight, and when they were sent
        self._last_polls: list[Any] = []  # calls in flight to actors that were scaled away since
        self._handles: dict[str, Any] = {}

    def poll(self) -> dict[str, dict[str, Any]]:
        """The answers since the last call, by process.

        A process that has died has failed, for `Topology`. One that is silent for SILENT_AFTER seconds is looked at.
        """
        workers = self._forget_gone()
        for name, handle in workers.items():
            if name not in self._pending:
                is_actor, fleet = name.startswith("actor-"), self._topology.fleet
                views = [fleet.view(name, self._stats.agent_steps), self._topology.shards.view] if is_actor else []
                self._pending[name] = handle.poll.remote(*views), time.monotonic()
        refs = [*(ref for ref, _ in self._pending.values()), *self._last_polls]
        ready = set(ray.wait(refs, num_returns=len(refs), timeout=POLL_PERIOD / 2)[0])
        self._topology.fleet.polled()
        self._add_last_episodes(ready)
        answers = {}
        for name, (ref, asked) in list(self._pending.items()):
            if ref in ready:
                del self._pending[name]
                self._watch.heard(name)
                if (answer := self._take(name, ref)) is not None:
                    answers[name] = answer
            elif time.monotonic() - asked > SILENT_AFTER:
                self._watch.look_at(name, workers[name])
        self._watch.look_at_starts(self._topology.starting())
        self._watch.advance()
        return answers

    def _forget_gone(self) -> dict[str, Any]:
        """Forget the calls to processes that are not polled any more; returns the handles of the others, by name."""
        workers = dict(self._topology.workers())
        for name, handle in list(self._handles.items()):
            if workers.get(name) is handle:
                continue
            ref, _ = self._pending.pop(name, (None, 0.0))
            if name.startswith("actor-") and ref is not None:
                self._last_polls.append(ref)
            self._watch.heard(name)
        self._handles = workers
        return workers

    def _take(self, name: str, ref: Any) -> dict[str, Any] | None:
        """The answer ``ref`` of process ``name``; None if it was lost, or the process has died."""
        try:
            answer: dict[str, Any] = ray.get(ref)
        except (ray.exceptions.ActorUnavailableError, ray.exceptions.ObjectLostError):
            return None
        except ray.exceptions.RayError as error:  # it has died, or its `report` has raised the error
            fail(self._topology, self._stats, name, error)
            return None
        return answer

    def _add_last_episodes(self, ready: set[Any]) -> None:
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
        topology = Topology(run.config, directory, address, lambda: _last_checkpoint(run), run.progress.note)
        topology.start(run.resumed, run.stats.base_steps, stopping=lambda: run.interrupted_by is not None)
        run.progress.note(_describe(run.config, topology))
        run.start_clock()
        failure: Exception | None = None
        try:
            _training_loop(run, topology)
        except (ray.exceptions.RayError, RunFault, TimeoutError) as error:
            is_own = isinstance(error, RunFault) and not isinstance(error, ray.exceptions.RayTaskError)
            failure = error if is_own else RunFault(reason(error))
        run.stats.stop_clock()
        _finish(run, topology)
        if failure is not None:
            raise failure
    except StoppedDuringStart:
        run.progress.note("stopped before training started")
    finally:
        ray.shutdown()


def _last_checkpoint(run: Run) -> Checkpoint | None:
    """The newest whole checkpoint; None if there is none yet. Raises RunFault if all are damaged."""
    checkpoints = run.dir.checkpoints
    newest = checkpoints.load_newest()
    if newest is None and checkpoints.steps():
        raise RunFault(f"all checkpoints in {run.dir.where} are damaged: the learner has nothing to go on from")
    return newest


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
        for name, answer in poller.poll().items():
            _handle_answer(run, topology, name, answer)
        topology.advance()
        evaluation.advance()
        if checkpoint_call is None and topology.learner.is_working and run.is_checkpoint_due():
            checkpoint_call = topology.learner.handle.checkpoint.remote(run.checkpoint_extra())
        if checkpoint_call is not None and is_ready(checkpoint_call):
            _save_checkpoint(run, topology, checkpoint_call)
            checkpoint_call = None
        scaling.advance(_request_on_board(status_call))
        run.faults = topology.restarts.status()
        run.tick()
        status, shards = run.status(run.last_row), topology.shards.view.addresses
        status_call = topology.board.handle.set_status.remote(status, shards)
        while time.monotonic() - started < POLL_PERIOD and not run.is_finished():
            time.sleep(0.05)


def fail(topology: Topology, stats: RunStats, name: str, error: Exception) -> None:
    """Process ``name`` has failed with ``error``: it is started again. Raises RunFault if it is given up."""
    if name.startswith("actor-"):
        stats.forget_actor(int(name.removeprefix("actor-")))
    topology.failed(name, error)


def _save_checkpoint(run: Run, topology: Topology, call: Any) -> None:
    """Write the checkpoint that the learner has made. One that was lost with its learner is made again later.

    A learner that cannot make one is started again: its loop hangs, or it has no room for it.
    """
    try:
        checkpoint = ray.get(call)
    except (*DIED, ray.exceptions.ObjectLostError):
        return
    except ray.exceptions.RayError as error:
        if topology.learner.is_working:
            topology.failed("learner", error)
        return
    run.save_checkpoint(checkpoint)


def _request_on_board(status_call: Any) -> ScaleRequest | None:
    """The last request on the board, in the answer of its `set_status`; None if it has not answered yet, or has died."""
    if status_call is None or not is_ready(status_call):
        return None
    try:
        request: ScaleRequest = ray.get(status_call)
    except (*DIED, ray.exceptions.ObjectLostError):
        return None
    return request


def _handle_answer(run: Run, topology: Topology, name: str, answer: dict[str, Any]) -> None:
    """Add a process's answer to the totals. Raises RunFault if it reports a failure that ends the run."""
    failure, restart = answer.pop("failure"), answer.pop("restart")
    if news := answer.pop("news", ""):
        if name.startswith("actor-"):
            run.warn_of_actor(name, news)
        else:
            run.progress.note(f"replay {name} {news}")
    if name == "learner":
        topology.weights_version = max(topology.weights_version, answer["weights_version"])
        run.stats.add_learner_report(answer)
    elif name.startswith("actor-"):
        shards = (answer[f"shards_{what}"] for what in ("version", "in_use", "silent"))
        if warning := topology.shards.answered(name, *shards):
            run.progress.note(warning)
        run.stats.add_actor_report(topology.fleet.answered(name), answer["agent_steps"], answer["episodes"])
    elif name == "weight store" and not answer["weights_version"]:
        topology.weights_lost()
    if failure is not None:
        # What one actor knows may be wrong with its node alone.
        if not restart and not (name.startswith("actor-") and len(topology.fleet.roster.living) > 1):
            raise RunFault(f"{name}: {failure}")
        fail(topology, run.stats, name, RunFault(failure))


def _finish(run: Run, topology: Topology) -> None:
    """Stop the actors and the learner, write the last checkpoint and snapshots, and kill all processes."""
    try:
        if calls := [a.stop.remote() for a in topology.actors]:
            ray.wait(calls, num_returns=len(calls), timeout=0.5)
        if not topology.learner.is_working:
            raise TimeoutError("the learner had failed and was being started again; its last checkpoint is the newest")
        learner = topology.learner.handle
        ended = ray.get(learner.stop.remote(), timeout=CALL_TIMEOUT)
        if not ended:  # a checkpoint could hold an update that is only half done
            raise TimeoutError("the learner did not end its last update within 20 s")
        run.stats.learner["updates"] = ray.get(learner.poll.remote(), timeout=CALL_TIMEOUT)["updates"]
        run.save_checkpoint(ray.get(learner.checkpoint.remote(run.checkpoint_extra()), timeout=CALL_TIMEOUT))
    except (ray.exceptions.RayError, TimeoutError) as error:
        run.progress.note(f"warning: could not write the last checkpoint: {reason(error)}")
    shards = topology.shards.handles
    if run.config.replay.snapshot_minutes > 0:
        _stop_shards(run, shards)
    for handle in topology.all_handles():
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
