"""The evaluator: new episodes in each call, played with the given weights."""

from __future__ import annotations

import numpy as np

from actors.evaluator import Evaluator
from rl.envs.config import EnvConfig
from rl.envs.make import spec_and_actions
from rl.evaluation import EvaluationConfig
from rl.networks import make_network
from rl.parameters import weights_of
from tests.actors.players import MLP

ENV = EnvConfig(id="CartPole-v1")


def evaluator(seed=1, start=0):
    network = make_network(MLP, *spec_and_actions(ENV), seed=1)
    config = EvaluationConfig(environments=2, epsilon=0.5, max_episode_steps=100)
    return Evaluator(config, ENV, network, "float32", seed, start), weights_of(network)


def test_each_call_plays_new_episodes_unless_the_seed_is_given():
    player, weights = evaluator()
    first, second = player.evaluate(weights, 6), player.evaluate(weights, 6)
    assert first.episodes != second.episodes
    assert player.evaluate(weights, 6, seed=5).episodes == player.evaluate(weights, 6, seed=5).episodes
    assert evaluator()[0].evaluate(weights, 6).episodes == first.episodes
    assert evaluator(start=100)[0].evaluate(weights, 6).episodes != first.episodes  # as in a resumed run
    assert first.seconds > 0.0


def test_the_given_weights_are_used():
    player, weights = evaluator()
    before = player.evaluate(weights, 4, seed=3)
    flat = {name: np.zeros_like(x) for name, x in weights.items()}
    assert player.evaluate(flat, 4, seed=3).episodes != before.episodes
    assert player.evaluate(weights, 4, seed=3).episodes == before.episodes
