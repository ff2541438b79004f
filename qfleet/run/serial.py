"""Serial mode: all components run in one process in a fixed order, so that the same seed gives the same numbers.

It uses neither Ray nor sockets. An offline run is a serial run without actors whose replay is first filled from a
dataset.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from qfleet.config import TrainConfig
from qfleet.run.latest_metrics import LatestMetrics
from qfleet.run.offline import fill_replay, offline_spec
from qfleet.run.parts import make_actor, make_evaluator, make_learner
from qfleet.run.run import Run
from qfleet.run.scheduler import Candidate, Kind
from replay.config import make_shard
from replay.local import LocalReplay
from rl.envs.make import spec_and_actions
from rl.errors import RunFault
from rl.ports import Publication
from rl.types import Array


class LocalWeights:
    """`WeightSink` that keeps the newest publication and the newest target weights."""

    def __init__(self) -> None:
        self.latest: Publication | None = None
        self.target: dict[str, Array] | None = None

    def publish(self, publication: Publication) -> None:
        """Keep ``publication``, and its target weights if it has any."""
        self.latest = publication
        if publication.target_weights is not None:
            self.target = dict(publication.target_weights)

    def make_source(self) -> LocalWeightSource:
        """A new `WeightSource` of these publications; each actor needs its own."""
        return LocalWeightSource(self)


class LocalWeightSource:
    """`WeightSource` of one actor. A publication includes target weights only if they are newer than the last ones."""

    def __init__(self, weights: LocalWeights) -> None:
        self._weights = weights
        self._version, self._target_version = 0, -1  # of the last publication polled

    def poll(self) -> Publication | None:
        """The newest publication, or None if it was polled before."""
        latest = self._weights.latest
        if latest is None or latest.version <= self._version:
            return None
        target = self._weights.target if latest.target_version > self._target_version else None
        self._version, self._target_version = latest.version, latest.target_version
        return Publication(latest.version, latest.updates, latest.weights, latest.target_version, target)


class SerialComponents:
    """The components of a serial run. ``base``: agent steps (offline: learner updates) made before a resume."""

    def __init__(self, config: TrainConfig, base: int = 0) -> None:
        spec = offline_spec(config) if config.offline else spec_and_actions(config.env)[0]
        shard = make_shard(replace(config.replay, shards=1), spec, config.seed + base, limited=False)
        self.replay = LocalReplay(shard, config.make_limiter(), config.beta)
        self.weights, self.metrics = LocalWeights(), LatestMetrics()
        self.learner = make_learner(config, spec, self.replay, self.weights, self.metrics, threaded=False)
        self.actors = [
            make_actor(config, i, base, self.replay, self.weights.make_source())
            for i in range(0 if config.offline else config.actors.count)
        ]
        self.evaluator = make_evaluator(config, base)


def run_serial(run: Run) -> None:
    """Train until the run is finished: the actors step while the limiter allows inserts, then the learner updates.

    Raises RunFault; BadInput if the dataset of an offline run does not fit.
    """
    config = run.config
    torch.set_num_threads(config.learner.threads or torch.get_num_threads())
    parts = SerialComponents(config, run.stats.base_updates if config.offline else run.stats.base_steps)
    learner = parts.learner
    if config.offline:
        fill_replay(run, parts.replay)
    if run.resumed is not None:
        learner.set_checkpoint(run.resumed)
    learner.publisher.publish()
    run.start_clock()
    while not run.is_finished():
        for index, actor in enumerate(parts.actors):
            if parts.replay.may_insert():
                actor.step()
                run.stats.add_actor_report(index, actor.agent_steps, actor.take_episodes())
                if news := actor.take_news():
                    run.warn_of_actor(f"actor-{index}", news)
        while learner.step(timeout=0.0) and not parts.replay.may_insert():
            pass
        run.stats.add_learner_report({**parts.metrics.values, "updates": learner.updater.updates})
        if (kind := run.scheduler.due(run.stats)) is not None:
            try:
                _evaluate(run, parts, kind)
            except RunFault as fault:
                run.evaluation_failed(str(fault))
        if run.is_checkpoint_due():
            run.save_checkpoint(learner.get_checkpoint(run.checkpoint_extra()))
        run.tick()
    learner.report()
    run.stats.add_learner_report(parts.metrics.values)
    run.save_checkpoint(learner.get_checkpoint(run.checkpoint_extra()))
    for actor in parts.actors:
        actor.close()


def _evaluate(run: Run, parts: SerialComponents, kind: Kind) -> None:
    """Play an evaluation of ``kind`` of the newest weights, and those that must follow on the same weights."""
    latest = parts.weights.latest
    assert latest is not None
    candidate = Candidate(latest.weights, latest.version, run.stats.agent_steps, latest.updates)
    next_kind: Kind | None = kind
    while next_kind is not None and run.interrupted_by is None:
        result = parts.evaluator.evaluate(
            candidate.weights, run.scheduler.episodes(next_kind), should_stop=lambda: run.interrupted_by is not None
        )
        if run.interrupted_by is None:
            next_kind = run.record_evaluation(next_kind, candidate, result)
