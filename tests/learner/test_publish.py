"""When the learner publishes weights, and when these include the target network's."""

from __future__ import annotations

import numpy as np

from learner.publish import Publisher
from rl.parameters import weights_of
from tests.learner.updates import Sink, batch_of, updater


def test_a_publication_holds_copies_of_the_weights(rng):
    own, sink = updater(), Sink()
    publisher = Publisher(own, sink, period=2)
    before = weights_of(own.acting_network)
    publisher.publish()
    own.update(own.prepare(batch_of(rng)))
    (first,) = sink.got
    assert (first.version, first.updates, first.target_version) == (1, 0, 1)
    for name, x in before.items():
        np.testing.assert_array_equal(first.weights[name], x)
    assert any((x != before[name]).any() for name, x in weights_of(own.acting_network).items())


def test_the_target_is_published_if_it_changed_and_with_the_first_publication(rng):
    """The target is synced after every 5th update (tests/learner/updates.py); every 2nd update is published."""
    own, sink = updater(), Sink()
    publisher = Publisher(own, sink, period=2, version=30)
    for _ in range(12):
        own.update(own.prepare(batch_of(rng)))
        publisher.maybe_publish()
    assert [p.updates for p in sink.got] == [2, 4, 6, 8, 10, 12]
    assert [p.version for p in sink.got] == [31, 32, 33, 34, 35, 36]
    assert [p.target_version for p in sink.got] == [31, 31, 33, 33, 35, 35]
    assert [p.target_weights is not None for p in sink.got] == [True, False, True, False, True, False]


def test_target_weights_of_a_restored_learner_are_newer_than_all_that_readers_have(rng):
    """Its count of target syncs has fallen; the version from which it goes on has not."""
    own, sink = updater(), Sink()
    publisher = Publisher(own, sink, period=5)
    state = own.get_state()
    for _ in range(10):
        own.update(own.prepare(batch_of(rng)))
        publisher.maybe_publish()
    newest = sink.got[-1]
    own.set_state(state, updates=0, target_syncs=0)
    restored = Publisher(own, sink, period=5, version=newest.version)
    restored.publish()
    assert sink.got[-1].target_version > newest.target_version
    assert sink.got[-1].target_weights is not None
