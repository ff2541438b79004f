"""The Ray actors of a run: each wraps one plain component and runs its loop in a thread.

A loop that fails stores its reason for `poll`. The driver polls every worker and never waits for one without a
deadline.
"""

from __future__ import annotations

import os
import threading
import traceback
from collections.abc import Callable
from typing import Any

import ray
import torch

from learner.checkpoint import Checkpoint
from qfleet.cluster.board import RemoteBoard
from qfleet.cluster.metrics import RayMetrics
from qfleet.cluster.weights import WEIGHT_STORE, RayWeightSink, RayWeightSource
from qfleet.config import TrainConfig
from qfleet.run.parts import make_actor, make_evaluator, make_learner
from replay.security import Access
from replay.wire.sampler import Sampler
from replay.wire.writer import Writer
from rl.allocator import keep_freed_memory
from rl.envs.make import describe
from rl.errors import RunFault
from rl.evaluation import EvaluationResult
from rl.ports import Weights

FIRST_WEIGHTS = 60.0  # seconds in which the learner must have published weights for an actor that starts


class _Loop:
    """A component's loop in a thread of its own."""

    def __init__(self, body: Callable[[], None], name: str) -> None:
        self.stopping = threading.Event()
        self.failure: str | None = None
        self._body = body
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        try:
            self._body()
        except RunFault as fault:
            if not self.stopping.is_set():
                self.failure = str(fault)
        except Exception:
            if not self.stopping.is_set():
                self.failure = traceback.format_exc(limit=8)

    def stop(self, timeout: float) -> bool:
        """Ask the loop to end; returns whether it did within ``timeout`` seconds."""
        self.stopping.set()
        self._thread.join(timeout)
        return not self._thread.is_alive()


def _weight_store() -> Any:
    return ray.get_actor(WEIGHT_STORE)  # in the run's own namespace


class ActorWorker:
    """One actor, which acts from the moment it is made, also after a restart.

    Raises RunFault where the learner publishes no weights within FIRST_WEIGHTS seconds.
    """

    def __init__(
        self,
        config: TrainConfig,
        index: int,
        base_steps: int,
        run: str,
        nice: int,
        access: Access,
    ) -> None:
        os.nice(nice)
        torch.set_num_threads(1)
        board = RemoteBoard.here()
        seen = board.status().get("agent_steps", 0)  # of all actors, after a restart
        base_steps = max(base_steps, int(seen))
        shards = board.shards()
        weights = RayWeightSource(_weight_store())
        weights.await_first(FIRST_WEIGHTS)  # initial weights would act badly and give wrong priorities
        self._writer = Writer(shards, config.replay.give_up_after, access=access)
        self._actor = make_actor(config, index, base_steps, self._writer, weights)
        self._metrics = RayMetrics("actor", f"{run}/{index}")
        self._loop = _Loop(self._act, "actor")
        self._loop.start()

    def _act(self) -> None:
        torch.set_num_threads(1)  # OpenMP counts threads by thread
        self._actor.run(self._loop.stopping.is_set)

    def poll(self) -> dict[str, Any]:
        """`failure`, or None; `agent_steps` since the process (re)started; `episodes` finished since the last poll."""
        stats = dict(self._actor.stats())
        self._metrics.report(stats)
        return {"failure": self._loop.failure, "episodes": self._actor.take_episodes(), **stats}

    def set_shards(self, addresses: list[str]) -> None:
        """Write to these shards (host:port); returns when nothing is in flight to the others. Raises TimeoutError."""
        self._writer.set_shards(addresses, timeout=60.0)

    def stop(self) -> bool:
        """Stop acting; returns whether the loop ended within 10 s."""
        return self._loop.stop(timeout=10.0)


class LearnerWorker:
    """The learner; idle until `start`."""

    def __init__(
        self,
        config: TrainConfig,
        shards: list[str],
        resumed: Checkpoint | None,
        run: str,
        threads: int,
        access: Access,
    ) -> None:
        keep_freed_memory()
        spec, _ = describe(config.env)
        torch.set_num_threads(threads)
        self._threads = threads
        self._sampler = Sampler(
            shards,
            spec,
            config.make_limiter(),
            config.beta,
            config.replay.batches_ahead,
            config.replay.give_up_after,
            seed=config.seed + (int(resumed.state["updates"]) if resumed else 0),
            access=access,
        )
        self._metrics = RayMetrics("learner", run)
        sink = RayWeightSink(_weight_store())
        self._learner = make_learner(config, spec, self._sampler, sink, self._metrics, threaded=True)
        if resumed is not None:
            self._learner.set_checkpoint(resumed)
        self._wanted: dict[str, Any] | None = None  # extra data of a checkpoint that was asked for
        self._taken: Checkpoint | None = None
        self._done = threading.Event()
        self._loop = _Loop(self._learn, "learner")

    def start(self) -> str:
        """Begin to learn; returns the device and the precision in words."""
        self._loop.start()
        updater = self._learner.updater
        return f"{updater.device} in {str(updater.dtype).removeprefix('torch.')}"

    def _learn(self) -> None:
        torch.set_num_threads(self._threads)  # OpenMP counts threads by thread
        self._learner.run(self._loop.stopping, self._tick)

    def _tick(self) -> None:
        if self._wanted is not None:
            extra, self._wanted = self._wanted, None
            self._taken = self._learner.get_checkpoint(extra)
            self._done.set()

    def poll(self) -> dict[str, Any]:
        """`failure`, or None; the newest figures of the learner, and of replay as `replay_...`; `updates`."""
        updates = self._learner.updater.updates
        stats = {f"replay_{k}": v for k, v in self._sampler.stats().items()}
        return {"failure": self._loop.failure, **self._metrics.values, **stats, "updates": updates}

    def set_shards(self, addresses: list[str]) -> None:
        """Sample from these shards (host:port). Raises BadInput where the limiter's slack is too small for so many."""
        self._sampler.set_shards(addresses)

    def checkpoint(self, extra: dict[str, Any]) -> Checkpoint:
        """A checkpoint, with ``extra`` in its state, taken between two updates. Raises TimeoutError after 60 s."""
        if self._loop.stopping.is_set():
            return self._learner.get_checkpoint(extra)
        self._done.clear()
        self._wanted = extra
        if not self._done.wait(timeout=60.0):
            raise TimeoutError("the learner did not reach the end of an update within 60 s")
        assert self._taken is not None
        return self._taken

    def stop(self) -> bool:
        """Stop learning; returns whether the last update ended within 20 s. `checkpoint` still answers."""
        ended = self._loop.stop(timeout=20.0)
        self._learner.close()
        self._sampler.close()
        return ended


class EvaluatorWorker:
    """The evaluator. It runs at the learner's priority, above the actors', as the run waits for its last result."""

    def __init__(self, config: TrainConfig, base_steps: int, run: str) -> None:
        torch.set_num_threads(1)
        self._evaluator = make_evaluator(config, base_steps)
        self._source = RayWeightSource(_weight_store())
        self._weights: Weights | None = None
        self._meta = (0, 0)  # version, updates
        self._metrics = RayMetrics("evaluator", run)

    def take_weights(self) -> tuple[int, int, dict[str, Any]]:
        """Keep the newest publication; returns (version, updates, weights). Raises RunFault where there is none yet."""
        publication = self._source.wait(timeout=30.0)
        if publication is not None:
            self._weights = {k: v.copy() for k, v in publication.weights.items()}
            self._meta = publication.version, publication.updates
        if self._weights is None:
            raise RunFault("the learner has published no weights yet")
        return *self._meta, dict(self._weights)

    def evaluate(self, episodes: int) -> EvaluationResult:
        """Play ``episodes`` episodes with the weights that `take_weights` kept; returns the result."""
        assert self._weights is not None
        result = self._evaluator.evaluate(self._weights, episodes)
        self._metrics.report({"mean_return": result.mean_return, "episodes": len(result.episodes)})
        return result
