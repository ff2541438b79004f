"""What each process of a run requests from Ray: CPUs, GPUs and memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from learner.learner import learner_threads, pick_device
from qfleet.config import TrainConfig

Resources = Mapping[str, float]  # by Ray's name: CPU, GPU, memory (bytes)


@dataclass(frozen=True)
class Needs:
    """What a process requests, by kind of process; memory in bytes, 0: it requests none."""

    learner_cpus: int
    learner_gpus: int
    shard_memory: int = 0
    actor_cpus: int = 1
    shard_cpus: int = 1
    evaluator_cpus: int = 1

    @classmethod
    def of(cls, threads: int, gpus: int, shard_memory: int = 0) -> Needs:
        """The needs of a run whose learner has ``threads`` PyTorch threads and ``gpus`` GPUs."""
        # The thread that makes updates and the prefetch thread each use this number of PyTorch threads.
        return cls(2 * threads, gpus, shard_memory)

    @classmethod
    def here(cls, config: TrainConfig) -> Needs:
        """The needs of ``config`` on this machine. Raises BadInput if its device is not available here."""
        return cls.of(learner_threads(config.learner), int(pick_device(config.learner.device).type == "cuda"))

    @property
    def threads(self) -> int:
        """PyTorch threads of each of the learner's two threads."""
        return self.learner_cpus // 2

    def total_cpus(self, config: TrainConfig) -> int:
        """CPUs of all processes of the run together."""
        actors = self.actor_cpus * config.actors.count
        return self.learner_cpus + actors + self.shard_cpus * config.replay.shards + self.evaluator_cpus


def nonzero(resources: Resources) -> dict[str, float]:
    """``resources`` without those of which nothing is needed."""
    return {k: v for k, v in resources.items() if v}


def short(needed: Resources, there: Resources) -> dict[str, float]:
    """What of ``needed`` is not there, by resource."""
    return {k: v - there.get(k, 0) for k, v in needed.items() if v > there.get(k, 0)}


def amounts(resources: Resources) -> str:
    """Resources as text, such as "2 CPU, 1 GPU, 1.5 GB of memory"."""
    return ", ".join(f"{v / 1e9:,.1f} GB of memory" if k == "memory" else f"{v:g} {k}" for k, v in resources.items())


def and_shards(shards: int) -> str:
    """Words that follow "the learner" if so many shards are beside it."""
    return f" and {shards} replay shard(s) beside it" if shards else ""
