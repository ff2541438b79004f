"""Where a run resumes: its directory, its newest checkpoint, and what may change of its configuration."""

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
from qfleet.run.directory import CONFIG, HISTORY, SUMMARY, RunDir, config_of
from rl.envs.make import describe
from rl.errors import BadInput, BadSetting
from rl.networks import make_network
from rl.parameters import load_weights
from rl.resuming import MAY, STAYS


class Change(NamedTuple):
    """A setting whose value in a resumed run differs from its checkpoint's."""

    name: str  # its path, such as replay.selector.alpha
    old: Any
    new: Any
    rule: str  # rl.resuming's

    def __str__(self) -> str:
        consequence = "" if self.rule == MAY else f": {self.rule}"
        return f"{self.name} is {self.new}, was {self.old}{consequence}"


def resume_run(config: TrainConfig, path: Path) -> tuple[RunDir, Checkpoint, list[Change]]:
    """Prepare the run at ``path`` to go on as ``config`` says.

    Returns its locked directory, its newest whole checkpoint, and the settings that differ from the checkpoint's.
    Raises BadInput where it cannot go on so; the lock is released then and nothing is written.
    """
    directory = RunDir.open(path, config.learner.keep_checkpoints)
    directory.lock()
    try:
        checkpoint = directory.newest_checkpoint()
        changes = changed(config_of(checkpoint) or directory.config(), config)
        _check_changes(changes, str(path))
        _check_fits(config, checkpoint, str(path))
    except BadInput:
        directory.unlock()  # a caller that keeps the error would keep the lock too
        raise
    directory.write(CONFIG, to_yaml(config))
    _note(directory, checkpoint, changes)
    (directory.path / SUMMARY).unlink(missing_ok=True)
    return directory, checkpoint, changes


def changed(old: TrainConfig, new: TrainConfig) -> list[Change]:
    """Every setting whose value differs between the two."""
    return [
        Change(name, was, now, rule)
        for (name, was, rule), (_, now, _) in zip(settings(old), settings(new), strict=True)
        if was != now
    ]


def settings(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """(path, value, rule) of every setting; the rule (rl/resuming.py) says whether a resume may change it."""
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            yield from settings(value, f"{prefix}{f.name}.")
        else:
            yield prefix + f.name, value, config.on_resume[f.name]


def table() -> str:
    """What a resumed run may change, as text for `qfleet train --resume RUN --help`."""
    rules = {name: rule for name, _, rule in settings(TrainConfig())}
    return "\n".join(
        [
            "Stays as the run has it:",
            *_listed(name for name, rule in rules.items() if rule == STAYS),
            "",
            "May change, but:",
            *(f"  {name}: {rule}" for name, rule in rules.items() if rule not in (MAY, STAYS)),
            "",
            "May change:",
            *_listed(name for name, rule in rules.items() if rule == MAY),
        ]
    )


def _listed(names: Iterable[str]) -> list[str]:
    return textwrap.wrap(", ".join(names), 120, initial_indent="  ", subsequent_indent="  ")


def _note(directory: RunDir, checkpoint: Checkpoint, changes: list[Change]) -> None:
    """Append what this resume changes, and where it goes on, to config.history."""
    at = {name: checkpoint.state[name] for name in ("agent_steps", "updates") if name in checkpoint.state}
    entry = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **at, "changed": {c.name: [c.old, c.new] for c in changes}}
    with (directory.path / HISTORY).open("a") as file:
        file.write(json.dumps(entry) + "\n")


def _check_changes(changes: list[Change], where: str) -> None:
    for change in changes:
        if change.rule == STAYS:
            said = f"is {change.new!r}, but {where} was trained with {change.old!r}: leave it out, or start a new run"
            raise BadSetting(TrainConfig, change.name, said)


def _check_fits(config: TrainConfig, checkpoint: Checkpoint, where: str) -> None:
    """Raise BadInput where the checkpoint's network or optimizer is not what ``config`` says."""
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
