"""The learner: prefetch thread, publications, checkpoints and errors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from learner.checkpoint import CheckpointStore
from learner.learner import pick_device
from rl.errors import BadInput, RunFault
from rl.networks import make_network
from rl.parameters import load_weights, weights_of
from tests.conftest import SMALL
from tests.learner.updates import MLP, batch_of, learner_over


def test_a_threaded_learner_fits_fixed_targets(rng):
    """With terminal transitions the targets are the rewards, so the TD error must shrink."""
    sampled = batch_of(rng)
    sampled = replace(sampled, transitions=sampled.transitions._replace(discount_t=np.zeros(8, np.float32)))
    learner = learner_over([sampled] * 400, threaded=True, learning_rate=3e-3)
    reported = learner._source.reported
    while len(reported) < 400:
        assert learner.step(10.0)
    learner.close()
    assert reported[-1][1].mean() < 0.2 * reported[0][1].mean()


def test_a_diverged_learner_raises_a_run_fault(rng):
    sampled = batch_of(rng)
    sampled.transitions.r_t[0] = np.nan
    learner = learner_over([sampled])
    with pytest.raises(RunFault, match="diverged"):
        learner.step()


def test_the_learner_publishes_by_period_and_the_target_only_if_it_changed(rng):
    learner = learner_over([batch_of(rng) for _ in range(13)])
    while learner.step():
        pass
    got = learner._weights.got
    assert [p.updates for p in got] == [4, 8, 12]
    assert [p.version for p in got] == [1, 2, 3]
    assert [p.target_weights is not None for p in got] == [True, True, True]  # first publication, sync at 6, sync at 12
    assert [p.target_version for p in got] == [1, 2, 3]
    assert len(learner._source.reported) == 13


def test_the_learner_publishes_the_average_if_there_is_one(rng):
    learner = learner_over([batch_of(rng) for _ in range(4)], average_tau=0.1)
    while learner.step():
        pass
    (got,) = learner._weights.got
    policy, online = (weights_of(n) for n in (learner.updater.acting_network, learner.updater.online))
    for name, x in got.weights.items():
        np.testing.assert_array_equal(x, policy[name])
        assert (x != online[name]).any()


def test_a_learner_resumes_from_its_checkpoint(rng, tmp_path):
    learner = learner_over([batch_of(rng) for _ in range(7)])
    while learner.step():
        pass
    store = CheckpointStore(str(tmp_path / "c"))
    store.save(7, learner.get_checkpoint({"agent_steps": 123}))
    again = learner_over([])
    loaded = store.load_newest()
    again.set_checkpoint(loaded)
    assert loaded.state["agent_steps"] == 123
    assert loaded.state["replay"]["drawn"] == 8  # 7 batches, and the last call, which found none
    assert again.updater.updates == 7
    assert again.updater.target_syncs == 1
    assert again.publisher.version == learner.publisher.version
    assert again._source.get_state() == learner._source.get_state() == {"drawn": 8}


def test_weights_of_another_network_are_rejected():
    small, large = make_network(MLP, SMALL, 3, 1), make_network(replace(MLP, hidden=(32,)), SMALL, 3, 1)
    with pytest.raises(ValueError, match="another network"):
        load_weights(small, weights_of(large))


@pytest.mark.parametrize("name", ["cuda:9", "quantum", "mps"])
def test_an_unavailable_device_is_rejected(name):
    with pytest.raises(BadInput, match="LearnerConfig.device"):
        pick_device(name)
