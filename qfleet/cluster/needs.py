"""The CPUs and GPUs that each process of a run requests from Ray."""

from __future__ import annotations

from dataclasses import dataclass

from learner.learner import learner_threads, pick_device
from qfleet.config import TrainConfig


@dataclass(frozen=True)
class Needs:
    """CPUs and GPUs of a process, by kind of process."""

    learner_cpus: int
    learner_gpus: int
    actor_cpus: int = 1
    shard_cpus: int = 1
    evaluator_cpus: int = 1

    @classmethod
    def of(cls, config: TrainConfig) -> Needs:
        """The CPUs and GPUs that the processes of ``config`` need. Raises BadInput if its device is not available."""
        cuda = pick_device(config.learner.device).type == "cuda"
        # The thread that makes updates and the prefetch thread each use this number of PyTorch threads.
        return cls(2 * learner_threads(config.learner), 1 if cuda else 0)

    def total_cpus(self, config: TrainConfig) -> int:
        """CPUs of all processes of the run together."""
        actors = self.actor_cpus * config.actors.count
        return self.learner_cpus + actors + self.shard_cpus * config.replay.shards + self.evaluator_cpus
