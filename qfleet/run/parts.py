"""Makes the components of a run from its configuration, for serial mode and for the processes of a cluster."""

from __future__ import annotations

from actors.actor import Actor
from actors.evaluator import Evaluator
from learner.learner import Learner
from qfleet.config import TrainConfig
from rl.envs.make import spec_and_actions
from rl.exploration import Exploration
from rl.networks import QNetwork, make_network
from rl.ports import BatchSource, MetricSink, SegmentSink, WeightSink, WeightSource
from rl.types import ObservationSpec


def make_q_network(config: TrainConfig) -> QNetwork:
    """A new Q-network; its initial weights depend on ``config.seed`` only."""
    spec, actions = spec_and_actions(config.env)
    return make_network(config.network, spec, actions, config.seed)


def make_actor(config: TrainConfig, index: int, base_steps: int, sink: SegmentSink, weights: WeightSource) -> Actor:
    """Actor number ``index``. ``base_steps``: agent steps that all actors together made before this process started."""
    count = config.actors.environments
    return Actor(
        config.actors,
        config.env,
        config.returns,
        config.learner.double,
        (make_q_network(config), make_q_network(config)),
        Exploration(config.exploration, index * count, count, config.total_environments),
        sink,
        weights,
        config.seed,
        index,
        base_steps,
    )


def make_learner(
    config: TrainConfig,
    spec: ObservationSpec,
    source: BatchSource,
    weights: WeightSink,
    metrics: MetricSink,
    threaded: bool,
) -> Learner:
    """The learner, for batches with observations of ``spec``; ``threaded``: another thread prepares the batches."""
    _, actions = spec_and_actions(config.env)
    return Learner(
        config.learner, config.network, spec, actions, source, weights, metrics, config.seed, threaded=threaded
    )


def make_evaluator(config: TrainConfig, base_steps: int) -> Evaluator:
    """The evaluator. ``base_steps`` (see `make_actor`) enters its seed, so that a resumed run plays other episodes."""
    return Evaluator(
        config.evaluation, config.env, make_q_network(config), config.actors.precision, config.seed, base_steps
    )
