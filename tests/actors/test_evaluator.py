"""The evaluator: new episodes in each call, played with the given weights."""

from __future__ import annotations

import numpy as np
import pytest

from actors.evaluator import Evaluator
from rl.envs.config import EnvConfig
from rl.envs.make import spec_and_actions
from rl.errors import RunFault
from rl.evaluation import EvaluationConfig
from rl.networks import make_network
from rl.parameters import weights_of
from tests.actors.players import MLP
from tests.rl.envs.faulty import FAULTY, RAISED_AT, world

ENV = EnvConfig(id="CartPole-v1")


def evaluator(seed=1, start=0, env=ENV):
    network = make_network(MLP, *spec_and_actions(env), seed=1)
    config = EvaluationConfig(environments=2, epsilon=0.5, max_episode_steps=100)
    return Evaluator(config, env, network, "float32", seed, start), weights_of(network)


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


@pytest.mark.parametrize("call", ["make", "reset", "step"])
def test_an_error_of_the_environment_is_one_line_and_the_next_evaluation_is_played(call):
    player, weights = evaluator(env=EnvConfig(id=FAULTY))
    world.reset(faults={(call, 2): ValueError("bad\n action"), ("close", 1): OSError("still open")})
    with pytest.raises(RunFault) as fault:
        player.evaluate(weights, 4)
    expected = f"the environment {FAULTY} raised ValueError: bad action (faulty.py:{RAISED_AT}) in an evaluation"
    assert str(fault.value) == expected
    assert world.open == (set() if call != "make" else {1})
    world.reset(faults={("close", 1): OSError("still open")})
    assert [e.length for e in player.evaluate(weights, 4).episodes] == [3] * 4
    assert not world.open
