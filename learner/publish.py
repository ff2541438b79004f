"""Publishing weights and target syncs."""

from __future__ import annotations

from learner.update import Updater
from rl.parameters import weights_of
from rl.ports import Publication, WeightSink


class Publisher:
    """Publishes the weights of the acting network every ``period`` updates.

    A publication includes the target network's weights if there was a target sync since the last publication, and when
    it is the first one. ``version`` is the version of the last publication. Versions never fall: a restored learner,
    whose target syncs may have been counted before, goes on from a version that no reader has seen.
    """

    def __init__(self, updater: Updater, sink: WeightSink, period: int, version: int = 0) -> None:
        self._updater, self._sink, self._period = updater, sink, period
        self.version = version
        self._target_sent = -1  # `target_syncs` when target weights were last published; -1: never
        self._target_version = -1  # version of that publication

    def maybe_publish(self) -> None:
        """Publish if the number of updates made is a multiple of the period."""
        if self._updater.updates % self._period == 0:
            self.publish()

    def publish(self) -> None:
        """Publish now, with the next version."""
        u = self._updater
        self.version += 1
        target = None
        if u.target_syncs != self._target_sent:
            target, self._target_sent, self._target_version = weights_of(u.target), u.target_syncs, self.version
        self._sink.publish(
            Publication(self.version, u.updates, weights_of(u.acting_network), self._target_version, target)
        )
