"""`qfleet submit`: starts a run on a cluster from a laptop, as a Ray job."""

from __future__ import annotations

import dataclasses
import re
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from learner.learner import pick_device
from qfleet.cli.flags import errors_name_flags, flag_value, parse
from qfleet.cli.jobs import (
    PlaceOrHere,
    directory_on_head,
    ended_by_signals,
    follow,
    last_steps,
    next_steps,
    note,
    without_flag,
)
from qfleet.cli.train import TrainCommand, config_of, default_preset, parse_flags, take_preset
from qfleet.config import check_config
from qfleet.presets import PRESETS, preset
from qfleet.run.remote import last_part
from replay.security import SecurityConfig
from rl.errors import BadInput, RunFault

RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class SubmitCommand(PlaceOrHere):
    """Train on a cluster, as a job that goes on without this machine: qfleet submit [flags] -- train [flags of train]."""

    name: str | None = None
    """The run's name, and that of its directory under runs/; by default preset or environment, date and time."""
    run_dir: str | None = None
    """The run's directory: a path on the head node, or a URL. Its last part is the run's name."""
    upload: bool = False
    """Run the code of this checkout, the current directory, instead of the one that `ray up` copied."""
    detach: bool = False
    """Return at once instead of showing what the run prints."""


@dataclass(frozen=True)
class Training:
    """What to run: the flags of `qfleet train`, checked."""

    words: list[str]
    """Without --resume."""
    resume: str | None
    name: str
    """A name for a new run."""
    on_ray: bool


def submit_command(args: list[str]) -> int:
    """Run `qfleet submit`; returns the run's exit status, 0 with --detach, and 130 after Ctrl-C.

    Raises BadInput before anything is submitted; RunFault.
    """
    end = args.index("--") if "--" in args else len(args)
    c = parse(SubmitCommand, args[:end], prog="qfleet submit")
    training = check_training(args[end + 1 :])
    _check_name(c, training)
    c.check()
    from qfleet.cluster.job_client import NoJobServer  # imports Ray
    from qfleet.cluster.jobs import DIRECTORY, RUN, free_id
    from qfleet.cluster.upload import upload_of

    upload = upload_of(Path.cwd()) if c.upload else {}
    with ended_by_signals(), c.connect() as server:
        if training.resume is not None:
            directory = directory_on_head(server, training.resume)
        else:
            directory = c.run_dir or f"runs/{c.name or training.name}"
        name = last_part(directory)
        for job in server.runs():
            if name == job.run and not job.has_ended:
                stop = f"stop it first with `{c.typed(f'qfleet stop {shlex.quote(name)}')}`"
                raise BadInput(
                    f"{name} is running as job {job.id}: {stop if training.resume else 'write another --name'}"
                )
        job_id = free_id(name, server.ids())
        try:
            server.submit(job_id, entrypoint(c, training, directory), {RUN: name, DIRECTORY: directory}, upload, note)
        except NoJobServer as error:
            shows = f"`{c.typed(f'qfleet logs {shlex.quote(name)}')}` then shows it"
            raise RunFault(f"{error}; {name} may have been submitted all the same: {shows}") from error
        note(f"{name} is submitted as job {job_id}")
        print(next_steps(name, c), file=sys.stderr)
        if c.detach:
            print(last_steps(name, directory, c), file=sys.stderr)
            return 0
        return follow(server, job_id, name, c)


def check_training(words: list[str]) -> Training:
    """The words after `--`, checked without the cluster, its devices and its files. Raises BadInput."""
    if not words or words[0] != "train":
        given = f", not {words[0]}" if words else ""
        raise BadInput(f"submit runs `train`{given}: write qfleet submit [flags] -- train [PRESET] [flags]")
    words = words[1:]
    if any(w in ("-h", "--help") or w.startswith("--help=") for w in words):
        raise BadInput("--help of train is not submitted: write qfleet train --help")
    flags = list(words)
    preset_name, resume = take_preset(flags), flag_value(words, "--resume")
    command = _parse_resumed(flags) if resume is not None else _parse_new(flags, preset_name)
    if command.run_dir is not None:
        raise BadInput("--run-dir after the --: write it before the --")
    if command.address is not None:
        raise BadInput("--address after the --: a job joins its own cluster; leave it out")
    name = preset_name or command.env.id.split("/")[-1].lower().replace(":", "-")
    return Training(
        without_flag(words, "--resume"),
        resume,
        f"{name}-{time.strftime('%Y%m%d-%H%M%S')}",
        on_ray=not (command.serial or command.offline),
    )


def _parse_new(flags: list[str], preset_name: str | None) -> TrainCommand:
    """The parsed flags of a new run. Raises BadInput, also if a setting does not fit the environment."""
    command = parse_flags(flags, preset(preset_name or default_preset(flag_value(flags, "--env.id"))))
    if command.offline:
        return command  # the dataset is on the cluster
    if command.learner.device != "auto":
        try:
            torch.device(command.learner.device)
        except RuntimeError:
            with errors_name_flags(TrainCommand):
                pick_device(command.learner.device)
    learner = dataclasses.replace(command.learner, device="cpu")  # the cluster decides which devices there are,
    replay = dataclasses.replace(command.replay, security=SecurityConfig())  # and has the files of keys and tokens
    with errors_name_flags(TrainCommand):
        check_config(dataclasses.replace(config_of(command), learner=learner, replay=replay))
    return command


def _parse_resumed(flags: list[str]) -> TrainCommand:
    """The parsed flags of a resumed run, whose other settings are on the cluster: some preset must accept them."""
    first: BadInput | None = None
    for base in PRESETS:
        try:
            return parse_flags(list(flags), preset(base))
        except BadInput as error:
            first = first or error
    assert first is not None
    raise first


def _check_name(c: SubmitCommand, training: Training) -> None:
    """Raise BadInput for a name or a directory that cannot be used."""
    if training.resume is not None and (c.name or c.run_dir):
        raise BadInput("--resume continues under the name of the run: leave out --name and --run-dir")
    if c.name and c.run_dir:
        raise BadInput("--name and --run-dir cannot be combined: the last part of --run-dir is the name")
    source, given = next(((f, v) for f, v in (("--name", c.name), ("--run-dir", c.run_dir)) if v is not None), ("", ""))
    name = last_part(given) if source == "--run-dir" else given
    if source and not RUN_NAME.fullmatch(name):
        raise BadInput(f"{source} is {given!r}: write a name of letters, digits and, after the first, . _ -")


def entrypoint(place: SubmitCommand, training: Training, directory: str) -> str:
    """The shell command of the job: `qfleet train` as the job's own process, so that it gets the SIGTERM of a stop.

    A job with an upload starts in the uploaded folder, which is first on Python's path; others start in the checkout.
    """
    if place.upload:
        directory = place.on_head(directory)
    words = ["train", *training.words, *(["--address", "auto"] if training.on_ray else [])]
    words += ["--resume" if training.resume is not None else "--run-dir", directory]
    return place.command(words, change_folder=not place.upload)
