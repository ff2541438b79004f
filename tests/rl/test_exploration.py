"""The epsilons of an actor's environments: ladder or schedule."""

from __future__ import annotations

import numpy as np
import pytest

from rl.errors import BadInput
from rl.exploration import Exploration, ExplorationConfig, ladder


def test_the_ladder_is_that_of_ape_x():
    got = ladder(0.4, 7.0, 8)
    assert got == pytest.approx([0.4 ** (1 + 7 * i / 7) for i in range(8)])


def test_actors_share_one_ladder():
    config = ExplorationConfig(kind="ladder")
    parts = [Exploration(config, i * 4, 4, 12).epsilons(0) for i in range(3)]
    np.testing.assert_allclose(np.concatenate(parts), ladder(0.4, 7.0, 12))


def test_a_single_environment_uses_the_schedule_instead_of_the_ladder():
    one = Exploration(ExplorationConfig(kind="ladder", start=1.0, end=0.0, steps=10), 0, 1, 1)
    assert one.epsilons(5) == pytest.approx([0.5])


def test_a_move_changes_the_place_in_the_ladder_and_the_fallback():
    """Of 12 environments, of 4, alone, and of 12 again."""
    own = Exploration(ExplorationConfig(start=1.0, end=0.0, steps=10), 4, 1, 12)
    assert own.epsilons(5) == pytest.approx([0.4 ** (1 + 7 * 4 / 11)])
    own.move(3, 4)
    assert own.epsilons(5) == pytest.approx([0.4 ** (1 + 7)])
    own.move(0, 1)
    assert own.epsilons(5) == pytest.approx([0.5])
    own.move(0, 12)
    assert own.epsilons(5) == pytest.approx([0.4])


@pytest.mark.parametrize("bad", [{"start": 1.5}, {"end": -0.1}, {"steps": 0}, {"knots": ((5, 1.0), (5, 0.0))}])
def test_bad_settings_are_rejected(bad):
    with pytest.raises(BadInput):
        ExplorationConfig(**bad)
