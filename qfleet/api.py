"""Qfleet from Python: `train` a configuration, `load_policy` of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from learner.checkpoint import Checkpoint
from qfleet.config import TrainConfig, check, dotted
from qfleet.run.directory import CONFIG, RunDir
from qfleet.run.offline import fit
from qfleet.run.resume import Change, resume_run
from qfleet.run.run import Run
from qfleet.run.serial import run_serial
from qfleet.run.signals import Signals
from qfleet.run.stats import OnEpisode
from rl.envs.make import describe
from rl.errors import BadInput, BadSetting
from rl.networks import make_network, q_values
from rl.parameters import load_weights
from rl.policies import epsilon_greedy
from rl.types import Array, Int64


def train(
    config: TrainConfig,
    *,
    run_dir: str | Path | None = None,
    resume: str | Path | None = None,
    serial: bool = False,
    address: str | None = None,
    on_episode: OnEpisode | None = None,
) -> dict[str, Any]:
    """Train; returns the content of summary.json, and `interrupted_by`: the number of the signal that ended it or None.

    ``on_episode`` is called with each training episode that ends. With ``resume``, ``config`` may differ from what the
    run was made with where docs/resume.md allows it; each difference is printed and kept. Raises BadInput before
    anything starts, RunFault for a fault at run time.
    """
    check(config)
    if config.offline:
        config, serial = fit(config), True
        if address is not None:
            raise BadSetting(TrainConfig, "offline", "trains in this process, without Ray: leave the address out")
    if serial and config.replay.snapshot_minutes > 0:
        said = "is for runs on Ray, neither serial nor `offline`: write `replay.snapshot_minutes: 0`"
        raise BadSetting(TrainConfig, "replay.snapshot_minutes", said)
    if address is not None:
        from qfleet.cluster.connect import resolve

        resolve(address)
    resumed: Checkpoint | None = None
    changes: list[Change] = []
    if resume is not None:
        directory, resumed, changes = resume_run(config, Path(resume))
    else:
        directory = RunDir.create(None if run_dir is None else Path(run_dir), config)
    run = Run(config, directory, resumed, on_episode)
    for change in changes:
        run.progress.note(str(change))
    try:
        _go(run, serial, address)
    finally:
        summary = run.close()
        directory.unlock()
    return {**summary, "interrupted_by": run.interrupted_by}


def _go(run: Run, serial: bool, address: str | None) -> None:
    """Train until the run is finished; Ctrl-C and SIGTERM end it in order."""
    signals = Signals(run)
    signals.catch()
    try:
        if serial:
            run_serial(run)
        else:
            from qfleet.cluster.supervisor import run_distributed  # imports Ray, which serial mode does not need

            run_distributed(run, address, on_ready=signals.catch)
    finally:
        signals.release()


class Policy:
    """A trained Q-network as a policy.

    Use:

        policy = load_policy("runs/cartpole")
        q = policy.values(observations)  # [N, *observation] -> [N, A]
        actions = policy.act(observations)  # [N, *observation] -> [N]
    """

    def __init__(self, config: TrainConfig, checkpoint: Checkpoint, which: str) -> None:
        self.config, self.which = config, which
        self.spec, self.actions = describe(config.env)
        self.state = checkpoint.state
        self.network = make_network(config.network, self.spec, self.actions, 0).eval().requires_grad_(False)
        load_weights(self.network, checkpoint.arrays.get("average", checkpoint.arrays["online"]))

    def values(self, observations: Array) -> Array:
        """Action values [N, A] of observations [N, *observation]."""
        batch = np.ascontiguousarray(observations, dtype=self.spec.dtype)
        return q_values(self.network, batch)

    def act(self, observations: Array, epsilon: float = 0.0, seed: int | None = None) -> Int64:
        """Actions [N], from 0, for observations [N, *observation]: greedy, or random with probability ``epsilon``."""
        return epsilon_greedy(self.values(observations), epsilon, np.random.default_rng(seed))


def load_policy(run: str | Path, which: str = "best") -> Policy:
    """The ``best`` (by evaluation) or ``last`` policy of the run in a directory.

    It is the last one where no evaluation has kept a best one yet. Raises BadInput where the directory holds no run or
    no whole checkpoint, or where config.yaml does not fit the weights.
    """
    directory = RunDir.open(Path(run))
    stores = {"best": directory.best, "last": directory.checkpoints}
    if which not in stores:
        raise BadInput(f"there are no weights {which!r}: write best or last")
    checkpoint = stores[which].load_newest()
    if checkpoint is None and which == "best":
        which, checkpoint = "last", directory.checkpoints.load_newest()
    if checkpoint is None:
        raise BadInput(f"{run} holds no whole checkpoint yet: let the run go on, or write another run")
    try:
        return Policy(directory.config(), checkpoint, which)
    except BadSetting as error:
        raise BadInput(f"{directory.path / CONFIG}: {dotted(error)}") from error
    except ValueError as error:
        raise BadInput(
            f"{run}: {error}: its config.yaml was changed, or an older Qfleet made it; write another run"
        ) from error
