"""`qfleet train`: train, resume, or learn from a dataset."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from qfleet.api import train
from qfleet.cli.flags import as_flags, parse, value_of
from qfleet.cli.runs import say_summary
from qfleet.cli.train_help import asked, screen
from qfleet.config import TrainConfig
from qfleet.presets import PRESETS, preset
from qfleet.run.directory import RunDir
from qfleet.run.offline import offline_preset
from qfleet.run.resume import table
from rl.envs.atari import atari_game
from rl.errors import BadInput, nearest


@dataclass(frozen=True)
class TrainCommand(TrainConfig):
    """Train a DQN with many actors, a replay service and one learner."""

    run_dir: str | None = None
    """Directory of the run; a fresh dated one under runs/ by default."""
    resume: str | None = None
    """Go on with the run in this directory."""
    serial: bool = False
    """Everything in one process, without Ray: same seed, same numbers."""
    address: str | None = None
    """Join a running Ray: auto, or host:port of its head; without it a local one starts."""
    json: bool = False
    """The last line of output is a JSON object with the figures."""


def train_command(args: list[str]) -> int:
    """Run `qfleet train`; returns 0, or 128 + the number of the signal that ended it. Raises BadInput, RunFault."""
    name = args.pop(0) if args and not args[0].startswith("-") else None
    if name is not None and name not in PRESETS:
        raise BadInput(f"unknown preset {name!r}: {nearest(name, PRESETS)} (any other environment goes by --env.id)")
    env_id = value_of(args, "--env.id")
    resume, offline = value_of(args, "--resume"), value_of(args, "--offline")
    if offline is not None and resume is None:
        with as_flags(TrainCommand):
            base = offline_preset(offline, name, env_id)
    else:
        base = preset(name or ("pong" if env_id is None else "atari" if atari_game(env_id) else "generic"))
    if resume is not None:
        if name is not None:
            raise BadInput(f"--resume goes with no preset: leave {name!r} out")
        base = RunDir.open(Path(resume)).config()
    fields = {f.name: getattr(base, f.name) for f in dataclasses.fields(TrainConfig)}
    if (group := asked(args)) is not None:
        print(screen(TrainCommand(**fields), group))
        if resume is not None:
            print(f"\nWhat a resumed run may change:\n\n{table()}")
        return 0
    command = parse(TrainCommand, args, TrainCommand(**fields), "qfleet train")
    config = TrainConfig(**{f: getattr(command, f) for f in fields})
    if command.serial and command.address:
        raise BadInput("--serial and --address exclude each other: leave one out")
    if command.resume and command.run_dir:
        raise BadInput("--resume goes on in the run's own directory: leave --run-dir out")
    with as_flags(TrainCommand):
        summary = train(
            config, run_dir=command.run_dir, resume=command.resume, serial=command.serial, address=command.address
        )
    interrupted = summary.pop("interrupted_by")
    say_summary(summary)
    if command.json:
        print(json.dumps(summary))
    return 128 + interrupted if interrupted else 0
