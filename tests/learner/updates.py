"""Batches, updaters and learners for several tests."""

from __future__ import annotations

import numpy as np
import torch

from learner.learner import Learner, LearnerConfig
from learner.update import UpdateConfig, Updater
from rl.networks import NetworkConfig, make_network
from rl.types import SampledBatch, TransitionBatch
from tests.conftest import SMALL

CPU = torch.device("cpu")
MLP = NetworkConfig(kind="mlp", hidden=(16,), dueling=False)


def batch_of(rng, spec=SMALL, size=8, weights=None):
    def observations():
        return rng.integers(0, 255, (size, *spec.shape)).astype(spec.dtype)

    transition = TransitionBatch(
        observations(),
        rng.integers(0, 3, size),
        rng.normal(size=size).astype(np.float32),
        np.full(size, 0.9, np.float32),
        observations(),
    )
    ones = np.ones(size, np.float32) if weights is None else np.asarray(weights, np.float32)
    return SampledBatch(transition, np.arange(size, dtype=np.uint64), np.zeros(size, np.int64), ones)


def updater(config=None, network=MLP, spec=SMALL, seed=1):
    config = config or UpdateConfig(learning_rate=1e-2, target_update_period=5)
    return Updater(config, *(make_network(network, spec, 3, seed) for _ in range(2)), CPU)


class Source:
    """A `BatchSource` of given batches. ``drawn`` counts all calls of `sample`."""

    def __init__(self, batches):
        self.batches, self.reported, self.drawn = list(batches), [], 0

    def sample(self, timeout):
        self.drawn += 1
        return self.batches.pop(0) if self.batches else None

    def update_priorities(self, batch, td_abs):
        self.reported.append((batch.keys, td_abs))

    def stats(self):
        return {}

    def get_state(self):
        return {"drawn": self.drawn}

    def set_state(self, state):
        self.drawn = state["drawn"]

    def close(self):
        pass


class Sink:
    """A `WeightSink` and `MetricSink` that keeps everything in ``got``."""

    def __init__(self):
        self.got = []

    def publish(self, publication):
        self.got.append(publication)

    def report(self, metrics):
        self.got.append(dict(metrics))


def learner_over(batches, threaded=False, **changes):
    config = LearnerConfig(device="cpu", publish_period=4, target_update_period=6, **changes)
    return Learner(config, MLP, SMALL, 3, Source(batches), Sink(), Sink(), seed=1, threaded=threaded)
