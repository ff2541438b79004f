"""The Python API: `train` runs a configuration, `load_policy` loads the policy of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from learner.checkpoint import Checkpoint
from qfleet.config import TrainConfig, check_config, message_with_paths
from qfleet.run.directory import CONFIG, RunDir
from qfleet.run.offline import fit_replay_to_dataset
from qfleet.run.remote import is_url
from qfleet.run.resume import Change, resume_run
from qfleet.run.run import Run
from qfleet.run.serial import run_serial
from qfleet.run.signals import Signals
from qfleet.run.stats import OnEpisode
from rl.envs.make import spec_and_actions
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
    """Train until the run is solved, reaches a limit, or is interrupted.

    ``run_dir`` is the directory of a new run, or its URL; by default it is created under runs/. ``resume`` is the
    directory or URL of a run to continue; ``config`` may then differ from the run's in the settings that docs/resume.md
    lists, and each difference is printed and appended to config.history. ``serial`` trains in this process, without
    Ray. ``address`` joins a running Ray ("auto", or host:port of its head) instead of starting a local one.
    ``on_episode`` is called with the `EpisodeResult` of each finished training episode.

    Returns the content of summary.json, and `interrupted_by`: the number of the signal that ended the run, or None.
    Raises BadInput before anything starts, and RunFault for an error at run time.
    """
    check_config(config, in_cluster=address is not None)
    if config.offline:
        config, serial = fit_replay_to_dataset(config), True
        if address is not None:
            raise BadSetting(TrainConfig, "offline", "trains in this process, without Ray: leave out the address")
    if serial and config.replay.snapshot_minutes > 0:
        message = "needs a run on Ray, but this run is serial or `offline`: write `replay.snapshot_minutes: 0`"
        raise BadSetting(TrainConfig, "replay.snapshot_minutes", message)
    if config.replay.snapshot_minutes > 0 and is_url(place := resume or run_dir or ""):
        message = f"writes files on the nodes of the shards, not to {place}: write `replay.snapshot_minutes: 0`"
        raise BadSetting(TrainConfig, "replay.snapshot_minutes", message)
    if address is not None:
        from qfleet.cluster.connect import resolve_address

        resolve_address(address)  # raises BadInput if no Ray answers there
    resumed: Checkpoint | None = None
    changes: list[Change] = []
    if resume is not None:
        directory, resumed, changes = resume_run(config, resume)
    else:
        directory = RunDir.create(run_dir, config)
    signals = Signals()
    try:
        try:
            run = Run(config, directory, resumed, on_episode)
        except OSError as error:
            raise BadInput(f"{directory.where} cannot be written ({error}): remove what is in the way") from error
        for change in changes:
            run.progress.note(str(change))
        summary = _train_and_close(run, signals, serial, address)
    finally:
        directory.unlock()
        signals.release()
    return {**summary, "interrupted_by": run.interrupted_by}


def _train_and_close(run: Run, signals: Signals, serial: bool, address: str | None) -> dict[str, Any]:
    """Train until the run is finished, and close it. Ctrl-C, SIGTERM and SIGHUP end it after a last checkpoint.

    Returns the summary. When training fails, a second fault, at the end of the run, becomes a warning.
    """
    signals.catch(run)
    try:
        if serial:
            run_serial(run)
        else:
            from qfleet.cluster.supervisor import run_distributed  # imports Ray, which serial mode does not need

            run_distributed(run, address, on_ready=lambda: signals.catch(run))
    except BaseException as error:
        try:
            run.close()
        except Exception as fault:
            if str(fault) != str(error):
                run.progress.note(f"warning: {fault}")
        raise
    return run.close()


class Policy:
    """A trained Q-network, greedy or epsilon-greedy. Its weights are ``which``: "best" or "last".

    policy = load_policy("runs/cartpole")
    q = policy.values(observations)  # [N, *observation] -> [N, A]
    actions = policy.act(observations)  # [N, *observation] -> [N]
    """

    def __init__(self, config: TrainConfig, checkpoint: Checkpoint, which: str) -> None:
        self.config, self.which = config, which
        self.spec, self.actions = spec_and_actions(config.env)
        self.state = checkpoint.state
        self.network = make_network(config.network, self.spec, self.actions, 0).eval().requires_grad_(False)
        load_weights(self.network, checkpoint.arrays.get("average", checkpoint.arrays["online"]))

    def values(self, observations: Array) -> Array:
        """Action values, float32 [N, A], of ``observations`` [N, *observation]."""
        batch = np.ascontiguousarray(observations, dtype=self.spec.dtype)
        return q_values(self.network, batch)

    def act(self, observations: Array, epsilon: float = 0.0, seed: int | None = None) -> Int64:
        """Actions, int64 [N], for ``observations`` [N, *observation]: random with probability ``epsilon``, else greedy.

        ``seed`` seeds the random actions; None: unpredictable ones.
        """
        return epsilon_greedy(self.values(observations), epsilon, np.random.default_rng(seed))


def load_policy(run: str | Path, which: str = "best") -> Policy:
    """Load the policy of the run in the directory, or at the URL, ``run``.

    ``which`` is "best" (the weights with the best evaluation) or "last" (those of the newest checkpoint). While a run
    has no best weights yet, "best" loads the last ones; `Policy.which` says which were loaded. Raises BadInput if the
    directory holds no run or no complete checkpoint, or if its config.yaml does not fit the weights.
    """
    directory = RunDir.open(run)
    stores = {"best": directory.best, "last": directory.checkpoints}
    if which not in stores:
        raise BadInput(f"unknown weights {which!r}: write best or last")
    try:
        checkpoint = stores[which].load_newest()
        if checkpoint is None and which == "best":
            which, checkpoint = "last", directory.checkpoints.load_newest()
    except OSError as error:
        raise BadInput(f"{run}: a checkpoint cannot be read ({error}): try again later") from error
    if checkpoint is None:
        raise BadInput(f"{run} holds no complete checkpoint yet: let the run continue, or write another run")
    try:
        return Policy(directory.config(), checkpoint, which)
    except BadSetting as error:
        raise BadInput(f"{directory.at(CONFIG)}: {message_with_paths(error)}") from error
    except ValueError as error:
        raise BadInput(
            f"{run}: its checkpoint has {error}: config.yaml was edited, or an older Qfleet wrote the run; write another "
            "run"
        ) from error
