"""The driver of a distributed run: polls the workers, starts evaluations and checkpoints, and shuts everything down."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ray

from qfleet.cluster.connect import start_ray
from qfleet.cluster.faults import first_line, last_line
from qfleet.cluster.topology import Stopped, Topology, build
from qfleet.config import TrainConfig, to_yaml
from qfleet.run.directory import CONFIG, SCALE, ScaleRequest
from qfleet.run.run import Run
from qfleet.run.scheduler import Candidate, Kind
from rl.errors import RunFault

POLL_PERIOD = 1.0  # seconds between polls
CALL_TIMEOUT = 60.0  # seconds that a worker may take to answer


class _Poller:
    """Polls each worker, with one call at a time under way; a worker that restarts does not answer for a while."""

    def __init__(self, topology: Topology, warn: Callable[[str], None]) -> None:
        self._topology = topology
        self._warn = warn
        self._asked: dict[str, Any] = {}
        self._heard: dict[str, float] = {}
        self._dead: set[str] = set()

    def poll(self) -> dict[str, dict[str, Any]]:
        """Answers by worker; one that has died answers once, with `failure`. Raises RunFault for a silent learner."""
        workers = {name: handle for name, handle in self._topology.workers() if name not in self._dead}
        self._heard = {name: self._heard.get(name, time.monotonic()) for name in workers}
        self._asked = {name: call for name, call in self._asked.items() if name in workers}
        for name, handle in workers.items():
            if name not in self._asked:
                self._asked[name] = handle.poll.remote()
        refs = list(self._asked.values())
        ready, _ = ray.wait(refs, num_returns=len(refs), timeout=POLL_PERIOD / 2)
        answers = {}
        for name, ref in [(n, r) for n, r in self._asked.items() if r in ready]:
            del self._asked[name]
            try:
                answers[name] = ray.get(ref)
                self._heard[name] = time.monotonic()
            except ray.exceptions.ActorUnavailableError:
                continue
            except ray.exceptions.RayActorError as error:
                answers[name] = {"failure": f"the process ended: {first_line(error)}"}
                self._dead.add(name)
        for name, heard in list(self._heard.items()):
            if time.monotonic() - heard > CALL_TIMEOUT * 3:
                if name == "learner":
                    raise RunFault(f"{name} has not answered for {CALL_TIMEOUT * 3:g} s")
                self._warn(f"warning: {name} has not answered for {CALL_TIMEOUT * 3:g} s; the run goes on without it")
                self._heard[name] = time.monotonic()
        return answers


class _Evaluation:
    """An evaluation under way on the evaluator, advanced without waiting."""

    def __init__(self, run: Run, evaluator: Any) -> None:
        self._run, self._evaluator = run, evaluator
        self._kind: Kind | None = None
        self._candidate: Candidate | None = None
        self._weights_call: Any = None
        self._play_call: Any = None

    def advance(self) -> None:
        """Start an evaluation when one is due, and take its result when it is there."""
        if self._kind is None:
            self._kind = self._run.scheduler.due(self._run.stats)
            if self._kind is not None:
                self._weights_call = self._evaluator.take_weights.remote()
            return
        try:
            self._advance(self._kind)
        except ray.exceptions.RayActorError as error:  # it restarts; the next evaluation starts afresh
            self._run.progress.note(f"the evaluation was lost, the evaluator restarts: {first_line(error)}")
            self._kind = self._weights_call = self._play_call = None

    def _advance(self, kind: Kind) -> None:
        if self._weights_call is not None and _ready(self._weights_call):
            version, updates, weights = ray.get(self._weights_call)
            self._weights_call = None
            self._candidate = Candidate(weights, version, self._run.stats.agent_steps, updates)
            self._play_call = self._evaluator.evaluate.remote(self._run.scheduler.episodes(kind))
        elif self._play_call is not None and _ready(self._play_call):
            assert self._candidate is not None
            result = ray.get(self._play_call)
            self._kind = follow = self._run.record_evaluation(kind, self._candidate, result)
            self._play_call = None
            if follow is not None:
                self._play_call = self._evaluator.evaluate.remote(self._run.scheduler.episodes(follow))


def run_distributed(run: Run, address: str | None, on_ready: Callable[[], None]) -> None:
    """Train on Ray until the run is finished; no process is left behind. Raises RunFault, BadInput.

    ``on_ready`` is called once Ray has started or was joined.
    """
    directory = run.dir.path.resolve()
    (directory / SCALE).unlink(missing_ok=True)
    try:
        for warning in start_ray(run.config, address, directory.name):
            run.progress.note(f"warning: {warning}")
        on_ready()
        topology = build(
            run.config,
            directory,
            run.resumed,
            run.stats.base_steps,
            local=address is None,
            stopping=lambda: run.interrupted_by is not None,
        )
        run.progress.note(_describe(run.config, topology))
        run.stats.start_clock()
        failure: RunFault | None = None
        try:
            _drive(run, topology)
        except RunFault as fault:
            failure = fault
        except (ray.exceptions.RayError, TimeoutError) as error:
            failure = RunFault(first_line(error))
        run.stats.stop_clock()
        _finish(run, topology)
        if failure is not None:
            raise failure
    except Stopped:
        run.progress.note("stopped before training began")
    finally:
        ray.shutdown()


def _describe(config: TrainConfig, topology: Topology) -> str:
    url = ray.get_runtime_context().gcs_address
    dashboard = ray._private.worker.global_worker.node and ray._private.worker.get_dashboard_url()  # type: ignore[no-untyped-call]
    where = f", dashboard http://{dashboard}" if dashboard else ""
    shards = topology.shards.addresses
    return (
        f"{config.actors.count} actor(s) x {config.actors.environments} environments, {len(shards)} replay shard(s) at "
        f"{', '.join(shards.values())}, learner on {topology.device}; Ray at {url}{where}"
    )


def _drive(run: Run, topology: Topology) -> None:
    poller, evaluation = _Poller(topology, run.progress.note), _Evaluation(run, topology.evaluator)
    saving: Any = None
    pinned: Any = None
    while not run.is_finished():
        began = time.monotonic()
        for name, answer in poller.poll().items():
            _take(run, topology, name, answer)
        evaluation.advance()
        if saving is None and run.is_checkpoint_due():
            saving = topology.learner.checkpoint.remote(run.checkpoint_extra())
        if saving is not None and _ready(saving):
            run.save_checkpoint(ray.get(saving))
            saving = None
        run.tick()
        asked = ray.get(pinned) if pinned is not None and _ready(pinned) else None
        _resize(run, topology, asked)
        pinned = topology.board.set_status.remote(run.status(run.last_row))
        while time.monotonic() - began < POLL_PERIOD and not run.is_finished():
            time.sleep(0.05)


def _resize(run: Run, topology: Topology, asked: ScaleRequest | None) -> None:
    """Take one step towards the shards that `qfleet scale` asked for, in the run's directory or in the cluster."""
    request = run.dir.read_json(SCALE) or asked or None
    news = topology.shards.advance(request, topology.board, topology.learner, topology.actors)
    shards = len(topology.shards.addresses)
    if news:
        run.progress.note(news)
        run.config = topology.shards.with_shards(shards)  # which the next checkpoint holds
        run.dir.write(CONFIG, to_yaml(run.config))
    answered: dict[str, Any] = {"scale_news": news, "scale_request": request} if news else {}
    if not topology.shards.changing:  # `qfleet scale` waits until all clients know the shards
        answered["shards"] = shards
    run.scaling = {"scale_news": "", "scale_request": None, "shards": shards, **run.scaling, **answered}


def _take(run: Run, topology: Topology, name: str, answer: dict[str, Any]) -> None:
    """Add one worker's answer to the totals. Raises RunFault where the run cannot go on without that worker."""
    failure = answer.pop("failure")
    if news := answer.pop("news", ""):
        run.progress.note(f"replay {name} {news}")
    if failure is not None:
        index = int(name.removeprefix("shard-")) if name.startswith("shard-") else None
        if index is not None and index not in topology.shards.addresses:
            return  # it had not joined yet: `ReplayShards.advance` gives the reason
        if index is None or len(topology.shards.addresses) < 2:
            raise RunFault(f"{name}: {failure}")
        run.progress.note(f"warning: replay {name} is gone, its content with it: {failure}")
        topology.shards.lost(index)
        _check_min_size(run.config, len(topology.shards.addresses))
        return
    if name.startswith("shard-"):
        clients = [topology.board, topology.learner, *topology.actors]
        topology.shards.moved(int(name.removeprefix("shard-")), answer["address"], clients)
    elif name == "learner":
        run.stats.add_learner_report(answer)
    elif name.startswith("actor-"):
        run.stats.add_actor_report(int(name.removeprefix("actor-")), answer["agent_steps"], answer["episodes"])


def _check_min_size(config: TrainConfig, alive: int) -> None:
    if config.min_items_when_full(alive) < config.replay.limiter.min_size:
        raise RunFault(
            f"the {alive} replay shard(s) left cannot hold `replay.limiter.min_size` of {config.replay.limiter.min_size} "
            f"transitions: resume with a larger `replay.capacity` (now {config.replay.capacity} over all shards)"
        )


def _finish(run: Run, topology: Topology) -> None:
    """Stop acting, stop learning, write the last checkpoint, stop the shards, with deadlines."""
    try:
        ray.wait([a.stop.remote() for a in topology.actors], num_returns=len(topology.actors), timeout=0.5)
        ended = ray.get(topology.learner.stop.remote(), timeout=CALL_TIMEOUT)
        if not ended:  # a checkpoint now would be half an update
            raise TimeoutError("the learner did not end its last update within 20 s")
        run.stats.learner["updates"] = ray.get(topology.learner.poll.remote(), timeout=CALL_TIMEOUT)["updates"]
        run.save_checkpoint(ray.get(topology.learner.checkpoint.remote(run.checkpoint_extra()), timeout=CALL_TIMEOUT))
    except (ray.exceptions.RayError, TimeoutError) as error:
        run.progress.note(f"warning: no last checkpoint: {first_line(error)}")
    shards = topology.shards.handles
    if run.config.replay.snapshot_minutes > 0:
        _stop_shards(run, shards)
    for handle in (
        *topology.actors,
        *shards.values(),
        topology.evaluator,
        topology.learner,
        topology.weights,
        topology.board,
    ):
        ray.kill(handle)


def _stop_shards(run: Run, shards: dict[int, Any]) -> None:
    """Have every shard write its last snapshot."""
    calls = {index: shard.stop.remote() for index, shard in shards.items()}
    ray.wait(list(calls.values()), num_returns=len(calls), timeout=CALL_TIMEOUT)
    for k, call in calls.items():
        try:
            ray.get(call, timeout=0)
        except (ray.exceptions.RayError, TimeoutError, RunFault) as error:
            run.progress.note(f"warning: no last snapshot of replay shard-{k}: {last_line(error)}")


def _ready(ref: Any) -> bool:
    return bool(ray.wait([ref], timeout=0)[0])
