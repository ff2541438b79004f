"""The Ray actors of actor and evaluator: each wraps its component, the actor runs its loop in a thread.

If a loop fails, the next `poll` reports the reason. The driver polls every worker and never waits for one without a
timeout.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from typing import Any

import ray
import torch

from actors.actor import FleetView
from qfleet.cluster.acknowledged import log_here
from qfleet.cluster.board import RemoteBoard, ShardsView
from qfleet.cluster.metrics import RayMetrics
from qfleet.cluster.process import RunProcess, ThreadedLoop
from qfleet.cluster.versions import check_versions, versions_here
from qfleet.cluster.weights import RayWeightSource
from qfleet.config import TrainConfig
from qfleet.run.parts import make_actor, make_evaluator
from replay.security import Access
from replay.wire.writer import Writer
from rl.errors import RunFault
from rl.evaluation import EvaluationResult
from rl.ports import Weights

FIRST_WEIGHTS_TIMEOUT = 60.0  # seconds that a starting actor waits for the first weights of the learner
SHARD_SILENT_AFTER = 10.0  # seconds without an answer after which an actor reports a shard
STUCK_AFTER = 300.0  # seconds of one batched step after which an actor reports that its environments hang


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
        self._progress = 0.0, time.monotonic()  # agent steps, and when they last became more
        self._shards_version = -1  # of the last `ShardsView`
        self._actor = make_actor(config, index, base_steps, self._writer, self._weights)
        self._metrics = RayMetrics("actor", f"{run}/{index}")
        self._loop = ThreadedLoop(self._act, "actor")

    def _act(self) -> None:
        torch.set_num_threads(1)  # OpenMP keeps this number for each thread
        self._actor.run(self._loop.stopping.is_set)

    def report(self, view: FleetView, shards: ShardsView) -> dict[str, Any]:
        """`agent_steps` since the process started, and `episodes` finished since the last poll.

        `news` is a line about a failure of the environments since the last poll, or "".
        ``view`` and ``shards`` are the fleet and the shards as the driver sees them now. The answer has the version of
        ``shards`` in `shards_version`, the addresses that may have segments in flight in `shards_in_use`, and in
        `shards_silent` those that have not answered for SHARD_SILENT_AFTER seconds, with their last errors.
        """
        self._actor.set_view(view)
        if shards.version != self._shards_version:
            self._writer.set_shards(shards.addresses)
            self._shards_version = shards.version
        if not self._loop.is_started:
            self._loop.start()
        silent = self._writer.silent_shards(SHARD_SILENT_AFTER)
        own = {"shards_version": self._shards_version, "shards_in_use": self._writer.in_use, "shards_silent": silent}
        return {**self._stats(), **own, "news": self._actor.take_news(), **self._stuck()}

    def _stuck(self) -> dict[str, Any]:
        """A failure if the environments hang: no step has ended for STUCK_AFTER seconds, not for want of credit."""
        steps, now = self._actor.agent_steps, time.monotonic()
        if steps != self._progress[0] or self._actor.unwritten or not self._loop.is_alive:
            self._progress = steps, now
        if now - self._progress[1] <= STUCK_AFTER:
            return {}
        return {"failure": f"its environments have made no step for {STUCK_AFTER:g} s", "restart": True}

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
