"""`qfleet train`: starts a run, resumes one, or trains on a dataset."""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass

from qfleet.api import train
from qfleet.cli.flags import errors_name_flags, flag_value, parse
from qfleet.cli.runs import print_summary
from qfleet.cli.train_help import help_text, take_help_request
from qfleet.config import TrainConfig
from qfleet.presets import PRESETS, preset
from qfleet.run.directory import RunDir
from qfleet.run.offline import offline_preset
from qfleet.run.resume import rules_table
from rl.envs.atari import atari_game
from rl.errors import BadInput, suggestion


@dataclass(frozen=True)
class TrainCommand(TrainConfig):
    """Train a DQN agent with many actors, a replay service and one learner."""

    run_dir: str | None = None
    """Directory of the new run, or its URL, such as s3://bucket/pong; by default a directory under runs/, named after
    environment, date and seed."""
    resume: str | None = None
    """Continue the run in this directory, or at this URL, from its newest checkpoint."""
    serial: bool = False
    """Train in one process, without Ray; the same seed then gives the same numbers."""
    address: str | None = None
    """Join a running Ray cluster: auto, or host:port of its head node. By default a local Ray is started."""
    json: bool = False
    """The last line of output is a JSON object with the figures."""


def take_preset(args: list[str]) -> str | None:
    """Remove the preset at the front of ``args``, if there is one, and return it. Raises BadInput."""
    name = args.pop(0) if args and not args[0].startswith("-") else None
    if name is not None and name not in PRESETS:
        raise BadInput(f"unknown preset {name!r}: {suggestion(name, PRESETS)} (for another environment write --env.id)")
    if name is not None and flag_value(args, "--resume") is not None:
        raise BadInput(f"--resume takes the settings of the run, not of a preset: leave out {name!r}")
    return name


def default_preset(env_id: str | None) -> str:
    """The preset of a command that names none, by its --env.id."""
    return "pong" if env_id is None else "atari" if atari_game(env_id) else "generic"


def parse_flags(flags: list[str], base: TrainConfig) -> TrainCommand:
    """The command with these flags; what they leave out is as in ``base``. Raises BadInput."""
    defaults = TrainCommand(**{f.name: getattr(base, f.name) for f in dataclasses.fields(TrainConfig)})
    command: TrainCommand = parse(TrainCommand, flags, defaults, "qfleet train")
    return command


def config_of(command: TrainConfig) -> TrainConfig:
    """The settings of the run that ``command`` starts."""
    return TrainConfig(**{f.name: getattr(command, f.name) for f in dataclasses.fields(TrainConfig)})


def train_command(args: list[str]) -> int:
    """Run `qfleet train`; returns 0, or 128 + the number of the signal that ended it. Raises BadInput, RunFault."""
    name = take_preset(args)
    group, env_id = take_help_request(args), flag_value(args, "--env.id")
    resume, offline = flag_value(args, "--resume"), flag_value(args, "--offline")
    source = resume or offline or name or default_preset(env_id)
    if resume is not None:
        base = RunDir.open(resume).config()
    elif offline is not None:
        with errors_name_flags(TrainCommand):
            base = offline_preset(offline, name, env_id)
    else:
        base = preset(source)
    command = parse_flags(args, base)
    if group is not None:
        print(help_text(command, group, source))
        if resume is not None:
            print(f"\nSettings of a resumed run:\n\n{rules_table()}")
        return 0
    config = config_of(command)
    if command.serial and command.address:
        raise BadInput("--serial and --address cannot be combined: leave one out")
    if command.resume and command.run_dir:
        raise BadInput("--resume continues in the directory of the run: leave out --run-dir")
    if command.resume and config.offline and command.address == "auto":
        # `qfleet submit` adds the address to every resume, because the run's configuration is on the cluster.
        print(f"qfleet: {resume} trains on a dataset, without Ray: --address auto is left out", file=sys.stderr)
        command = dataclasses.replace(command, address=None)
    with errors_name_flags(TrainCommand):
        summary = train(
            config, run_dir=command.run_dir, resume=command.resume, serial=command.serial, address=command.address
        )
    interrupted = summary.pop("interrupted_by")
    print_summary(summary)
    if command.json:
        print(json.dumps(summary))
    return 128 + interrupted if interrupted else 0
