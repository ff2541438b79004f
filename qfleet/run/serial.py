"""Serial mode: every part in one process, in a fixed order; same seed, same numbers. No Ray, no socket.

An offline run is a serial run without actors, whose replay is filled from a dataset first.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from qfleet.config import TrainConfig
from qfleet.run.latest_metrics import LatestMetrics
from qfleet.run.offline import fill, offline_spec
from qfleet.run.parts import make_actor, make_evaluator, make_learner
from qfleet.run.run import Run
from qfleet.run.scheduler import Candidate, Kind
from replay.config import make_shard
from replay.local import LocalReplay
from rl.envs.make import describe
from rl.ports import Publication
from rl.types import Array


class LocalWeights:
    """`WeightSink` that keeps the newest publication and the newest target weights."""

    def __init__(self) -> None:
        self.latest: Publication | None = None
        self.target: dict[str, Array] | None = None

    def publish(self, publication: Publication) -> None:
        """Keep a publication, and its target weights where it has any."""
        self.latest = publication
        if publication.target_weights is not None:
            self.target = dict(publication.target_weights)

    def reader(self) -> LocalReader:
        """A `WeightSource` with a place of its own in the publications: one for each actor."""
        return LocalReader(self)


class LocalReader:
    """`WeightSource` for one reader of `LocalWeights`; target weights come only when newer than those it has read."""

    def __init__(self, weights: LocalWeights) -> None:
        self._weights = weights
        self._read, self._target_read = 0, -1

    def poll(self) -> Publication | None:
        """The newest publication, or None where it was read before."""
        latest = self._weights.latest
        if latest is None or latest.version <= self._read:
            return None
        target = self._weights.target if latest.target_version > self._target_read else None
        self._read, self._target_read = latest.version, latest.target_version
        return Publication(latest.version, latest.updates, latest.weights, latest.target_version, target)


class SerialParts:
    """The components of a serial run; ``base``: agent steps (offline: learner updates) made before a resume."""

    def __init__(self, config: TrainConfig, base: int = 0) -> None:
        spec = offline_spec(config) if config.offline else describe(config.env)[0]
        shard = make_shard(replace(config.replay, shards=1), spec, config.seed + base, limited=False)
        self.replay = LocalReplay(shard, config.limiter(), config.beta)
        self.weights, self.metrics = LocalWeights(), LatestMetrics()
        self.learner = make_learner(config, spec, self.replay, self.weights, self.metrics, threaded=False)
        self.actors = [
            make_actor(config, i, base, self.replay, self.weights.reader())
            for i in range(0 if config.offline else config.actors.count)
        ]
        self.evaluator = make_evaluator(config, base)


def run_serial(run: Run) -> None:
    """Train until the run is finished: act while replay has room, update while the limiter allows.

    Raises RunFault, BadInput.
    """
    config = run.config
    torch.set_num_threads(config.learner.threads or torch.get_num_threads())
    parts = SerialParts(config, run.stats.base_updates if config.offline else run.stats.base_steps)
    learner = parts.learner
    if config.offline:
        fill(run, parts.replay)
    if run.resumed is not None:
        learner.set_checkpoint(run.resumed)
    learner.publisher.publish()
    run.stats.start_clock()
    while not run.finished():
        for index, actor in enumerate(parts.actors):
            if parts.replay.may_insert():
                actor.step()
                run.stats.actor(index, actor.agent_steps, actor.take_episodes())
        while learner.step(timeout=0.0) and not parts.replay.may_insert():
            pass
        run.stats.learned({**parts.metrics.values, "updates": learner.updater.updates})
        if (kind := run.scheduler.due(run.stats)) is not None:
            _evaluate(run, parts, kind)
        if run.save_due():
            run.save(learner.get_checkpoint(run.checkpoint_extra()))
        run.tick()
    learner.report()
    run.stats.learned(parts.metrics.values)
    run.save(learner.get_checkpoint(run.checkpoint_extra()))
    for actor in parts.actors:
        actor.close()


def _evaluate(run: Run, parts: SerialParts, kind: Kind) -> None:
    latest = parts.weights.latest
    assert latest is not None
    candidate = Candidate(latest.weights, latest.version, run.stats.agent_steps, latest.updates)
    following: Kind | None = kind
    while following is not None and run.interrupted_by is None:
        result = parts.evaluator.evaluate(
            candidate.weights, run.scheduler.episodes(following), should_stop=lambda: run.interrupted_by is not None
        )
        if run.interrupted_by is None:
            following = run.evaluated(following, candidate, result)
