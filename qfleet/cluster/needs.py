"""The CPUs and GPUs that each process of a run asks of Ray."""

from __future__ import annotations

from dataclasses import dataclass

from learner.learner import learner_threads, pick_device
from qfleet.config import TrainConfig


@dataclass(frozen=True)
class Needs:
    """CPUs and GPUs of each kind of process."""

    learner_cpus: int
    learner_gpus: int
    actor_cpus: int = 1
    shard_cpus: int = 1
    evaluator_cpus: int = 1

    @classmethod
    def of(cls, config: TrainConfig) -> Needs:
        """What the processes of ``config`` ask for. Raises BadInput where its device is not there."""
        cuda = pick_device(config.learner.device).type == "cuda"
        return cls(2 * learner_threads(config.learner), 1 if cuda else 0)

    def total_cpus(self, config: TrainConfig) -> int:
        """CPUs of all processes together."""
        actors = self.actor_cpus * config.actors.count
        return self.learner_cpus + actors + self.shard_cpus * config.replay.shards + self.evaluator_cpus
