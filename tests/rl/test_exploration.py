"""Schedules, the ladder and the policies."""

from __future__ import annotations

import numpy as np
import pytest

from rl.errors import BadInput
from rl.exploration import Exploration, ExplorationConfig, ladder
from rl.policies import epsilon_greedy, greedy, softmax, softmax_probabilities
from rl.schedules import linear, piecewise


def test_linear_reaches_its_end_and_stays():
    assert [linear(1.0, 0.1, 100, t) for t in (0, 50, 100, 1000)] == pytest.approx([1.0, 0.55, 0.1, 0.1])


def test_piecewise_goes_through_its_knots():
    knots = ((0, 1.0), (10, 0.5), (20, 0.0))
    assert [piecewise(knots, t) for t in (-5, 0, 5, 10, 15, 30)] == pytest.approx([1.0, 1.0, 0.75, 0.5, 0.25, 0.0])


def test_the_ladder_is_ape_x():
    got = ladder(0.4, 7.0, 8)
    assert got == pytest.approx([0.4 ** (1 + 7 * i / 7) for i in range(8)])


def test_actors_share_one_ladder():
    config = ExplorationConfig(kind="ladder")
    parts = [Exploration(config, i * 4, 4, 12).epsilons(0) for i in range(3)]
    np.testing.assert_allclose(np.concatenate(parts), ladder(0.4, 7.0, 12))


def test_a_ladder_of_one_is_the_schedule():
    one = Exploration(ExplorationConfig(kind="ladder", start=1.0, end=0.0, steps=10), 0, 1, 1)
    assert one.epsilons(5) == pytest.approx([0.5])


@pytest.mark.parametrize("bad", [{"start": 1.5}, {"end": -0.1}, {"steps": 0}, {"knots": ((5, 1.0), (5, 0.0))}])
def test_bad_settings_are_refused(bad):
    with pytest.raises(BadInput):
        ExplorationConfig(**bad)


def test_epsilon_greedy_explores_as_often_as_told():
    rng = np.random.default_rng(0)
    q = np.tile(np.array([[0.0, 1.0, 0.0, 0.0]]), (40_000, 1))
    share = (epsilon_greedy(q, 0.2, rng) == 1).mean()
    assert share == pytest.approx(0.8 + 0.2 / 4, abs=0.01)
    assert (epsilon_greedy(q, 0.0, rng) == greedy(q)).all()


def test_softmax_follows_its_probabilities():
    rng = np.random.default_rng(0)
    q = np.tile(np.array([[0.0, np.log(3.0)]]), (20_000, 1))
    np.testing.assert_allclose(softmax_probabilities(q[:1], 1.0), [[0.25, 0.75]])
    assert softmax(q, 1.0, rng).mean() == pytest.approx(0.75, abs=0.01)
    with pytest.raises(ValueError, match="positive"):
        softmax(q, 0.0, rng)
