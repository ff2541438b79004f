"""Prepares a run to be resumed: locks it, loads its newest checkpoint, and checks which settings have changed."""

from __future__ import annotations

import dataclasses
import json
import textwrap
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from learner.checkpoint import Checkpoint
from learner.optimizers import check_optimizer
from qfleet.config import TrainConfig, to_yaml
from qfleet.run.directory import CONFIG, HISTORY, SUMMARY, RunDir, checkpoint_config
from rl.bounds import as_written
from rl.envs.make import spec_and_actions
from rl.errors import BadInput, BadSetting
from rl.networks import make_network
from rl.parameters import load_weights
from rl.resuming import MAY, STAYS


class Change(NamedTuple):
    """A setting whose value in a resumed run differs from the value in its checkpoint."""

    name: str  # its path, such as replay.selector.alpha
    old: Any
    new: Any
    rule: str  # MAY, STAYS, or the consequence of the change (rl/resuming.py)

    def __str__(self) -> str:
        consequence = "" if self.rule == MAY else f": {self.rule}"
        return f"{self.name} changes from {as_written(self.old)} to {as_written(self.new)}{consequence}"


def resume_run(config: TrainConfig, place: str | Path) -> tuple[RunDir, Checkpoint, list[Change]]:
    """Prepare the run in the directory, or at the URL, ``place`` to continue with ``config``.

    Returns the run's locked directory, its newest complete checkpoint, and the settings that differ from the
    checkpoint's. Raises BadInput if the run cannot continue with ``config``; then nothing is written and the lock is
    released.
    """
    directory = RunDir.open(place, config.learner.keep_checkpoints)
    directory.lock()
    try:
        checkpoint = directory.newest_checkpoint()
        changes = changed_settings(checkpoint_config(checkpoint) or directory.config(), config)
        _check_changes(changes, directory.where)
        _check_checkpoint_fits(config, checkpoint, directory.where)
        directory.write(CONFIG, to_yaml(config))
        _append_history(directory, checkpoint, changes)
        directory.remove(SUMMARY)
        directory.send()
    except OSError as error:
        directory.unlock()
        raise BadInput(
            f"{place} cannot be written ({error}): make it writable, or remove what is in the way"
        ) from error
    except BaseException:
        directory.unlock()  # the error's traceback refers to `directory` and would keep the lock
        raise
    return directory, checkpoint, changes


def changed_settings(old: TrainConfig, new: TrainConfig) -> list[Change]:
    """Every setting whose value differs between ``old`` and ``new``."""
    return [
        Change(name, was, now, rule)
        for (name, was, rule), (_, now, _) in zip(settings(old), settings(new), strict=True)
        if was != now
    ]


def settings(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """Yield (path, value, rule) of every setting; the rule (rl/resuming.py) says whether a resume may change it."""
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            yield from settings(value, f"{prefix}{f.name}.")
        else:
            yield prefix + f.name, value, config.on_resume[f.name]


def rules_table() -> str:
    """The rule of every setting as text, for `qfleet train --resume RUN --help` and docs/resume.md."""
    rules = {name: rule for name, _, rule in settings(TrainConfig())}
    return "\n".join(
        [
            "Cannot be changed:",
            *_wrapped(name for name, rule in rules.items() if rule == STAYS),
            "",
            "Can be changed, with a consequence:",
            *(f"  {name}: {rule}" for name, rule in rules.items() if rule not in (MAY, STAYS)),
            "",
            "Can be changed:",
            *_wrapped(name for name, rule in rules.items() if rule == MAY),
        ]
    )


def _wrapped(names: Iterable[str]) -> list[str]:
    return textwrap.wrap(", ".join(names), 80, initial_indent="  ", subsequent_indent="  ")


def _append_history(directory: RunDir, checkpoint: Checkpoint, changes: list[Change]) -> None:
    """Append one line to config.history: the time, the checkpoint's counters, and the changed settings."""
    counters = {name: checkpoint.state[name] for name in ("agent_steps", "updates") if name in checkpoint.state}
    changed = json.loads(json.dumps({c.name: [c.old, c.new] for c in changes}), parse_constant=str)  # inf is not JSON
    entry = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **counters, "changed": changed}
    with (directory.path / HISTORY).open("a") as file:
        file.write(json.dumps(entry) + "\n")


def _check_changes(changes: list[Change], where: str) -> None:
    """Raise BadSetting if a setting has changed that a resume must not change."""
    for change in changes:
        if change.rule == STAYS:
            new, old = as_written(change.new), as_written(change.old)
            message = f"is {new}, but {where} was trained with {old}: leave it out, or start a new run"
            raise BadSetting(TrainConfig, change.name, message)


def _check_checkpoint_fits(config: TrainConfig, checkpoint: Checkpoint, where: str) -> None:
    """Raise BadInput if the checkpoint's network or optimizer is not the one in ``config``."""
    if lacking := {"online", "target", "optimizer"} - set(checkpoint.arrays):
        raise BadInput(
            f"the newest checkpoint in {where} has no {', '.join(sorted(lacking))}: it was not saved for a resume; "
            "remove it"
        )
    spec, actions = spec_and_actions(config.env)
    try:
        load_weights(make_network(config.network, spec, actions, 0), checkpoint.arrays["online"])
    except ValueError as error:
        raise BadInput(f"{where} has {error}: leave the network settings as they were") from error
    try:
        check_optimizer(config.learner.optimizer, checkpoint.arrays["optimizer"])
    except ValueError as error:
        message = f"is {config.learner.optimizer}, but in {where} {error}: leave it as it was"
        raise BadSetting(TrainConfig, "learner.optimizer", message) from error
