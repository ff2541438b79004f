"""Where a run resumes: its directory, its newest checkpoint, and whether they suit the configuration."""

from __future__ import annotations

from pathlib import Path

from learner.checkpoint import Checkpoint
from learner.optimizers import check_optimizer
from qfleet.config import TrainConfig, to_yaml
from qfleet.run.directory import CONFIG, SUMMARY, RunDir
from rl.envs.make import describe
from rl.errors import BadInput, BadSetting
from rl.networks import make_network
from rl.parameters import load_weights


def resume_run(config: TrainConfig, path: Path) -> tuple[RunDir, Checkpoint]:
    """The locked directory of the run at ``path``, which goes on as ``config`` says, and its newest whole checkpoint.

    Raises BadInput, with the lock let go, when it cannot go on.
    """
    directory = RunDir.open(path, config.learner.keep_checkpoints)
    directory.lock()
    try:
        checkpoint = directory.newest_checkpoint()
        _check_resumed(config, checkpoint, str(path))
    except BadInput:
        directory.unlock()  # a caller in Python may hold on to the error, and through it to the lock
        raise
    directory.write(CONFIG, to_yaml(config))
    (directory.path / SUMMARY).unlink(missing_ok=True)
    return directory, checkpoint


def _check_resumed(config: TrainConfig, checkpoint: Checkpoint, where: str) -> None:
    """Raise BadInput when the checkpoint is of another environment, network or optimizer."""
    made_for = checkpoint.state.get("env")
    if made_for != config.env.id:
        raise BadSetting(
            TrainConfig, "env.id", f"is {config.env.id}, but {where} is a run of {made_for}: leave it as the run has it"
        )
    spec, actions = describe(config.env)
    try:
        load_weights(make_network(config.network, spec, actions, 0), checkpoint.arrays["online"])
    except ValueError as error:
        raise BadInput(f"{where}: {error}: leave the network's settings as the run has them") from error
    try:
        check_optimizer(config.learner.optimizer, checkpoint.arrays["optimizer"])
    except ValueError as error:
        said = f"is {config.learner.optimizer}, but in {where} {error}: leave it as the run has it"
        raise BadSetting(TrainConfig, "learner.optimizer", said) from error
