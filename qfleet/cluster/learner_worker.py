"""The Ray actor of the learner."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from typing import Any, NamedTuple

import ray
import torch

from learner.checkpoint import Checkpoint
from learner.learner import LearnerConfig, pick_device
from qfleet.cluster.metrics import RayMetrics
from qfleet.cluster.process import RunProcess, ThreadedLoop
from qfleet.cluster.weights import MAX_IN_FLIGHT, RayWeightSink
from qfleet.config import TrainConfig
from qfleet.run.parts import make_learner
from replay.security import Access
from replay.wire.sampler import Sampler
from rl.allocator import keep_freed_memory
from rl.envs.make import spec_and_actions
from rl.errors import BadInput, RunFault

VERSIONS_AHEAD = 1_000  # publications that the driver may not know of yet; it polls once a second


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


class LearnerPlace(NamedTuple):
    """What the learner's process reports about where it is."""

    node: str  # Ray's id
    address: str
    warnings: list[str]


class Started(NamedTuple):
    """What a learner that has started reports."""

    device: str  # with its precision, such as "cuda in bfloat16"
    place: LearnerPlace


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
        self._sampler: Sampler | None = None
        self._starting = threading.Lock()
        self._metrics = RayMetrics("learner", run)
        self._checkpoint_request: dict[str, Any] | None = None  # the extra state of a requested checkpoint
        self._checkpoint: Checkpoint | None = None
        self._checkpoint_done = threading.Event()
        self._loop = ThreadedLoop(self._learn, "learner")

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

    def start(self, shards: list[str], resumed: Checkpoint | None, version: int | None = None) -> Started:
        """Start to learn from the shards at these addresses (host:port), from the checkpoint ``resumed`` if there is one.

        ``version``: of the last publication that the driver knows, if the learner is started again. A second call, after
        a network failure, does not start it twice.
        """
        with self._starting:
            place = self.describe()
            if not self._loop.is_started:
                self._make_learner(shards, resumed, version)
                self._loop.start()
        updater = self._learner.updater
        return Started(f"{updater.device} in {str(updater.dtype).removeprefix('torch.')}", place)

    def _make_learner(self, shards: list[str], resumed: Checkpoint | None, version: int | None) -> None:
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
            patient=True,  # the driver starts shards again
        )
        self._sink = RayWeightSink()
        self._learner = make_learner(config, spec, self._sampler, self._sink, self._metrics, threaded=True)
        if resumed is not None:
            self._learner.set_checkpoint(resumed)
        if version is not None:  # readers ignore versions that are not newer than theirs
            stored = self._sink.stored_version()
            least = stored + MAX_IN_FLIGHT if stored else version + VERSIONS_AHEAD
            self._learner.publisher.version = max(self._learner.publisher.version, least)

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
        assert self._sampler is not None
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
        if self._sampler is not None:  # else it has not started: `start` or a later call gets the addresses
            self._sampler.set_shards(addresses)

    def checkpoint(self, extra: dict[str, Any]) -> Checkpoint:
        """A checkpoint made between two updates, with ``extra`` added to its state. Raises TimeoutError after 60 s."""
        if not self._loop.is_started:  # it may have no weights yet, or not those of its checkpoint
            raise TimeoutError("the learner has not started yet")
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
        if self._sampler is not None:
            self._sampler.close()
        return ended
