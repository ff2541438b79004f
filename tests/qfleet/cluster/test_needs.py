"""The CPUs and GPUs that a run requests from Ray."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from qfleet.cluster.needs import Needs
from qfleet.presets import cartpole


def config(threads=1, actors=1, shards=1):
    base = cartpole()
    learner = replace(base.learner, device="cpu", threads=threads)
    return replace(
        base,
        learner=learner,
        actors=replace(base.actors, count=actors),
        replay=replace(base.replay, shards=shards),
    )


@pytest.mark.parametrize(
    ("threads", "actors", "shards", "cpus"),
    [(1, 1, 1, 2 + 1 + 1 + 1), (1, 5, 2, 2 + 5 + 2 + 1), (4, 2, 1, 8 + 2 + 1 + 1)],
)
def test_the_learner_needs_twice_its_threads_and_other_processes_one_cpu(threads, actors, shards, cpus):
    own = config(threads, actors, shards)
    assert Needs.here(own).total_cpus(own) == cpus


def test_a_learner_on_cuda_needs_a_gpu(monkeypatch):
    monkeypatch.setattr("qfleet.cluster.needs.pick_device", lambda name: torch.device("cuda"))
    assert (Needs.here(config()).learner_gpus, Needs.here(config()).learner_cpus) == (1, 2)
    monkeypatch.undo()
    assert Needs.here(config()).learner_gpus == 0
