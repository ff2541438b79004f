"""The Ray actors of a run: each wraps one component and runs its loop in a thread.

If a loop fails, the next `poll` reports the reason. The driver polls every worker and never waits for one without a
timeout.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import ray
import torch

from actors.actor import FleetView
from learner.checkpoint import Checkpoint
from learner.learner import LearnerConfig, pick_device
from qfleet.cluster.acknowledged import log_here
from qfleet.cluster.board import RemoteBoard, ShardsView
from qfleet.cluster.metrics import RayMetrics
from qfleet.cluster.process import RunProcess
from qfleet.cluster.versions import check_versions, versions_here
from qfleet.cluster.weights import MAX_IN_FLIGHT, RayWeightSink, RayWeightSource
from qfleet.config import TrainConfig
from qfleet.run.parts import make_actor, make_evaluator, make_learner
from replay.security import Access
from replay.wire.sampler import Sampler
from replay.wire.writer import Writer
from rl.allocator import keep_freed_memory
from rl.envs.make import spec_and_actions
from rl.errors import BadInput, RunFault, Unreachable
from rl.evaluation import EvaluationResult
from rl.ports import Weights

FIRST_WEIGHTS_TIMEOUT = 60.0  # seconds that a starting actor waits for the first weights of the learner
VERSIONS_AHEAD = 1_000  # publications that the driver may not know of yet; it polls once a second
SILENT_AFTER = 10.0  # seconds without an answer after which an actor reports a shard


class _ThreadedLoop:
    """Runs the loop of a component in its own thread; `failure` holds the reason if it fails.

    A RunFault ends the run: the component knows what is wrong. After Unreachable or any other exception, for example of
    a GPU, a new process may do better, so `restart` is set.
    """

    def __init__(self, body: Callable[[], None], name: str) -> None:
        self.stopping = threading.Event()
        self.failure: str | None = None
        self.restart = False
        self._body = body
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def is_started(self) -> bool:
        """Whether `start` was called."""
        return self._thread.ident is not None

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        try:
            self._body()
        except RunFault as fault:
            self._fail(str(fault), isinstance(fault, Unreachable))
        except Exception as error:
            traceback.print_exc()  # into Ray's log of the process
            self._fail(f"{type(error).__name__}: {error}", True)

    def _fail(self, why: str, restart: bool) -> None:
        if not self.stopping.is_set():
            self.restart, self.failure = restart, why

    @property
    def state(self) -> dict[str, Any]:
        """`failure` and `restart`, for the answer to a poll."""
        return {"failure": self.failure, "restart": self.restart}

    def stop(self, timeout: float) -> bool:
        """Ask the loop to end; returns whether it ended within ``timeout`` seconds, or was never started."""
        self.stopping.set()
        if self.is_started:
            self._thread.join(timeout)
        return not self._thread.is_alive()


def choose_device(config: LearnerConfig, gpus: int, node: str) -> tuple[str, str]:
    """The device of a learner to which Ray has assigned ``gpus`` GPUs, and a warning for the user or "".

    ``node``: the address of this machine, for messages. Raises RunFault if it lacks the configured device.
    """
    name, torch_here = config.device, f"torch {torch.__version__}"
    if gpus and not torch.cuda.is_available():
        problem = f"Ray has a GPU on the node {node}, but {torch_here} finds no CUDA there"
        if name != "auto":
            raise RunFault(f"{problem}: install a build of torch for CUDA, or write `learner.device` auto or cpu")
        return "cpu", f"{problem}: the learner trains on the CPU"
    if (
        name == "auto" and not gpus and torch.cuda.is_available()
    ):  # another process may use a GPU that Ray does not count
        problem = f"torch finds CUDA on the node {node}, but Ray declares no GPU there"
        return "cpu", f"{problem}: the learner trains on the CPU; start Ray there with --num-gpus"
    if name == "auto":
        return "cuda" if gpus else "mps" if torch.backends.mps.is_available() else "cpu", ""
    try:
        return str(pick_device(name)), ""
    except BadInput:
        raise RunFault(f"the node {node} has no `learner.device` {name} ({torch_here}): write auto") from None


def niceness_warning(address: str) -> str:
    """A warning if this process, on the node at ``address``, has a lower priority than others; else ""."""
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    if nice <= 0:
        return ""
    return (
        f"the learner on {address} has niceness {nice}, below the priority of other processes: start Ray there with "
        "RAY_worker_niceness=0 in its environment"
    )


class ActorWorker(RunProcess):
    """One actor. It starts acting at its first poll: then it knows its place in the fleet.

    ``base_steps``: agent steps made before a resume. ``versions``: those of the driver, because this node may have joined
    after it compared them. Raises RunFault if this node has other versions, or if the learner publishes no weights
    within FIRST_WEIGHTS_TIMEOUT seconds.
    """

    def __init__(
        self,
        config: TrainConfig,
        index: int,
        base_steps: int,
        run: str,
        nice: int,
        access: Access,
        versions: Mapping[str, str],
    ) -> None:
        check_versions(versions, {ray.util.get_node_ip_address(): versions_here()})  # type: ignore[no-untyped-call]
        os.nice(nice)
        torch.set_num_threads(1)
        board = RemoteBoard.here()
        shards = board.await_shards(FIRST_WEIGHTS_TIMEOUT)
        steps_so_far = board.status().get("agent_steps", 0)  # of all actors; above base_steps after a restart
        base_steps = max(base_steps, int(steps_so_far))
        self._weights = RayWeightSource()
        self._weights.await_first(FIRST_WEIGHTS_TIMEOUT)  # initial weights would act badly and give wrong priorities
        self._writer = Writer(shards, config.replay.give_up_after, access=access, on_stored=log_here(index))
        self._shards_version = -1  # of the last `ShardsView`
        self._actor = make_actor(config, index, base_steps, self._writer, self._weights)
        self._metrics = RayMetrics("actor", f"{run}/{index}")
        self._loop = _ThreadedLoop(self._act, "actor")

    def _act(self) -> None:
        torch.set_num_threads(1)  # OpenMP keeps this number for each thread
        self._actor.run(self._loop.stopping.is_set)

    def report(self, view: FleetView, shards: ShardsView) -> dict[str, Any]:
        """`agent_steps` since the process started, and `episodes` finished since the last poll.

        `news` is a line about a failure of the environments since the last poll, or "".
        ``view`` and ``shards`` are the fleet and the shards as the driver sees them now. The answer has the version of
        ``shards`` in `shards_version`, the addresses that may have segments in flight in `shards_in_use`, and in
        `shards_silent` those that have not answered for SILENT_AFTER seconds, with their last errors.
        """
        self._actor.set_view(view)
        if shards.version != self._shards_version:
            self._writer.set_shards(shards.addresses)
            self._shards_version = shards.version
        if not self._loop.is_started:
            self._loop.start()
        silent = self._writer.silent_shards(SILENT_AFTER)
        own = {"shards_version": self._shards_version, "shards_in_use": self._writer.in_use, "shards_silent": silent}
        return {**self._stats(), **own, "news": self._actor.take_news()}

    def _stats(self) -> dict[str, Any]:
        stats = dict(self._actor.stats())
        sent = {f"replay_{k}": v for k, v in self._writer.stats().items()}
        self._metrics.report({**stats, **sent, **{f"weights_{k}": v for k, v in self._weights.stats().items()}})
        return {**self._loop.state, "episodes": self._actor.take_episodes(), **stats}

    def finish(self, timeout: float) -> dict[str, Any]:
        """Stop acting for good, and wait up to ``timeout`` seconds until replay has stored all complete segments.

        Returns the answer of a last poll, and `unsent`: the number of segments that replay has not stored by then.
        """
        deadline = time.monotonic() + timeout
        self._loop.stop(timeout)
        with contextlib.suppress(TimeoutError, RunFault):
            self._writer.flush(deadline - time.monotonic())
        unsent = self._actor.unwritten + self._writer.in_flight
        report = self._stats()
        self._writer.close()
        return {**report, "unsent": unsent}

    def stop(self) -> bool:
        """Stop acting; returns whether the loop ended within 10 s."""
        return self._loop.stop(timeout=10.0)


class LearnerPlace(NamedTuple):
    """What the learner's process reports about where it is."""

    node: str  # Ray's id
    address: str
    warnings: list[str]


class LearnerWorker(RunProcess):
    """The learner. Its process starts before replay and weight store do: `describe` is called first, then `start`.

    ``gpus``: the number of GPUs that Ray has assigned to it. None: the run has its own Ray, whose processes have all
    devices of the machine.
    """

    def __init__(self, config: TrainConfig, run: str, threads: int, access: Access, gpus: int | None) -> None:
        keep_freed_memory()
        torch.set_num_threads(threads)
        self._config, self._threads, self._access, self._gpus = config, threads, access, gpus
        self._node = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        self._place: LearnerPlace | None = None
        self._metrics = RayMetrics("learner", run)
        self._checkpoint_request: dict[str, Any] | None = None  # the extra state of a requested checkpoint
        self._checkpoint: Checkpoint | None = None
        self._checkpoint_done = threading.Event()
        self._loop = _ThreadedLoop(self._learn, "learner")

    def describe(self) -> LearnerPlace:
        """Choose the device, and say where this process is. Raises RunFault if the node lacks the configured device."""
        if self._place is not None:
            return self._place
        warnings = []
        if self._gpus is not None:
            device, warning = choose_device(self._config.learner, self._gpus, self._node)
            self._config = replace(self._config, learner=replace(self._config.learner, device=device))
            warnings = [warning, niceness_warning(self._node)]
        self._place = LearnerPlace(ray.get_runtime_context().get_node_id(), self._node, [w for w in warnings if w])
        return self._place

    def start(self, shards: list[str], resumed: Checkpoint | None, version: int | None = None) -> str:
        """Start to learn from the shards at these addresses (host:port), from the checkpoint ``resumed`` if there is one.

        ``version``: of the last publication that the driver knows, if the learner is started again. Returns the device
        and the precision as text, such as "cuda in bfloat16".
        """
        self.describe()
        config = self._config
        spec, _ = spec_and_actions(config.env)
        self._sampler = Sampler(
            shards,
            spec,
            config.make_limiter(),
            config.beta,
            config.replay.batches_ahead,
            config.replay.give_up_after,
            seed=config.seed + (int(resumed.state["updates"]) if resumed else 0),
            access=self._access,
        )
        self._sink = RayWeightSink()
        self._learner = make_learner(config, spec, self._sampler, self._sink, self._metrics, threaded=True)
        if resumed is not None:
            self._learner.set_checkpoint(resumed)
        if version is not None:  # readers ignore versions that are not newer than theirs
            stored = self._sink.stored_version()
            least = stored + MAX_IN_FLIGHT if stored else version + VERSIONS_AHEAD
            self._learner.publisher.version = max(self._learner.publisher.version, least)
        self._loop.start()
        updater = self._learner.updater
        return f"{updater.device} in {str(updater.dtype).removeprefix('torch.')}"

    def _learn(self) -> None:
        torch.set_num_threads(self._threads)  # OpenMP keeps this number for each thread
        self._learner.run(self._loop.stopping, self._tick)

    def _tick(self) -> None:
        """Between two updates: make the checkpoint that `checkpoint` has requested."""
        if self._checkpoint_request is not None:
            extra, self._checkpoint_request = self._checkpoint_request, None
            self._checkpoint = self._learner.get_checkpoint(extra)
            self._checkpoint_done.set()

    def report(self) -> dict[str, Any]:
        """`updates`, the newest metrics of the learner, and those of replay as `replay_...`."""
        own = {"updates": self._learner.updater.updates, "weights_version": self._learner.publisher.version}
        stats = {f"replay_{k}": v for k, v in self._sampler.stats().items()}
        return {**self._loop.state, **self._metrics.values, **stats, **own}

    def republish(self) -> None:
        """Send the newest weights again, to a weight store that has none. Raises Unreachable if there is no store."""
        self._sink.republish()

    def set_shards(self, addresses: list[str]) -> None:
        """Sample from the shards at ``addresses`` (host:port).

        Raises BadInput if the limiter's slack is too small for so many shards.
        """
        self._sampler.set_shards(addresses)

    def checkpoint(self, extra: dict[str, Any]) -> Checkpoint:
        """A checkpoint made between two updates, with ``extra`` added to its state. Raises TimeoutError after 60 s."""
        if self._loop.stopping.is_set():
            return self._learner.get_checkpoint(extra)
        self._checkpoint_done.clear()
        self._checkpoint_request = extra
        if not self._checkpoint_done.wait(timeout=60.0):
            raise TimeoutError("the learner did not reach the end of an update within 60 s")
        assert self._checkpoint is not None
        return self._checkpoint

    def stop(self) -> bool:
        """Stop learning; returns whether the last update ended within 20 s. `checkpoint` still works afterwards."""
        ended = self._loop.stop(timeout=20.0)
        self._learner.close()
        self._sampler.close()
        return ended


class EvaluatorWorker(RunProcess):
    """The evaluator. It has the learner's niceness, not the actors', because a run may wait for its result."""

    def __init__(self, config: TrainConfig, base_steps: int, run: str) -> None:
        torch.set_num_threads(1)
        self._evaluator = make_evaluator(config, base_steps)
        self._source = RayWeightSource()
        self._weights: Weights | None = None
        self._version, self._updates = 0, 0  # of the weights
        self._metrics = RayMetrics("evaluator", run)

    def take_weights(self) -> tuple[int, int, dict[str, Any]]:
        """Keep the weights of the newest publication; returns (version, updates, weights).

        Raises RunFault if there is no publication yet.
        """
        publication = self._source.wait(timeout=30.0)
        if publication is not None:
            self._weights = {k: v.copy() for k, v in publication.weights.items()}
            self._version, self._updates = publication.version, publication.updates
        if self._weights is None:
            raise RunFault("the learner has published no weights yet")
        return self._version, self._updates, dict(self._weights)

    def evaluate(self, episodes: int) -> EvaluationResult:
        """Play ``episodes`` episodes with the weights from the last `take_weights`; returns the result."""
        assert self._weights is not None
        torch.set_num_threads(1)  # OpenMP keeps this number for each thread
        result = self._evaluator.evaluate(self._weights, episodes)
        self._metrics.report({"mean_return": result.mean_return, "episodes": len(result.episodes)})
        return result
