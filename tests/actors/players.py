"""An actor for tests, with a sink that keeps its segments."""

from __future__ import annotations

from dataclasses import replace

from actors.actor import Actor
from qfleet.presets import cartpole
from qfleet.run.serial import LocalWeights
from rl.envs.config import EnvConfig
from rl.envs.make import spec_and_actions
from rl.exploration import Exploration
from rl.networks import NetworkConfig, make_network
from rl.returns import ReturnConfig

MLP = NetworkConfig(kind="mlp", hidden=(32,))


class RecordingSink:
    """A `SegmentSink` that keeps the segments in a list."""

    def __init__(self):
        self.segments = []

    def write(self, segment):
        self.segments.append(segment)

    def flush(self, timeout):
        pass

    def close(self):
        pass


def make_actor(double=True, environments=3, env_id="CartPole-v1", segment_items=12, n_step=3, exploration=None):
    """(actor whose online and target network differ, its sink, the source of its weights)."""
    config = replace(cartpole().actors, environments=environments, segment_items=segment_items)
    env = EnvConfig(id=env_id)
    spec, actions = spec_and_actions(env)
    networks = (make_network(MLP, spec, actions, seed=1), make_network(MLP, spec, actions, seed=2))
    sink, weights = RecordingSink(), LocalWeights()
    explore = Exploration(exploration or cartpole().exploration, 0, environments, environments)
    returns = ReturnConfig(n_step=n_step)
    actor = Actor(config, env, returns, double, networks, explore, sink, weights.make_source(), seed=1, index=0)
    return actor, sink, weights
