"""`qfleet fetch`: copies a run from a cluster or a URL to this machine."""

from __future__ import annotations

import json
import shlex
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path

import tyro

from qfleet.cli.flags import parse
from qfleet.cli.jobs import Place, directory_on_head, ended_by_signals, quoted, run_on_head
from qfleet.run.fetching import Copied, check_copy, check_place, copy_run, put_in_place
from qfleet.run.remote import last_part
from rl.errors import BadInput, RunFault

COPY_TIMEOUT = 3600.0  # seconds for rsync


@dataclass(frozen=True)
class FetchCommand(Place):
    """Copy a run here: configuration, curves, summary, best weights and newest checkpoint, also while it trains."""

    run: tyro.conf.Positional[str]
    """The run's name in the cluster (--cluster), or its URL, or its directory."""
    to: str = "runs"
    """The folder in which the copy is made, under the run's name."""
    json: bool = False
    """The last line of output is a JSON object with what was fetched."""


def fetch_command(args: list[str]) -> int:
    """Run `qfleet fetch`; returns 0. An earlier copy of the run is replaced. Raises BadInput, RunFault."""
    c = parse(FetchCommand, args, prog="qfleet fetch")
    name = last_part(c.run)
    if name in ("", ".", ".."):
        raise BadInput(f"{c.run} has no name: write the name, the URL or the directory of a run")
    target, copy = Path(c.to) / name, Path(c.to) / f".{name}.{uuid.uuid4().hex[:8]}"
    check_place(target)
    with ended_by_signals():
        try:
            source = _fetch(c, copy)
            copied = check_copy(copy)
            put_in_place(copy, target, source)
        except OSError as error:
            raise BadInput(f"{target} cannot be written ({error.strerror}): write another folder with --to") from error
        finally:
            shutil.rmtree(copy, ignore_errors=True)
    _print_next(target, source, copied)
    if c.json:
        print(json.dumps({"run_dir": str(target), "checkpoint": copied.checkpoint, "best": copied.best}))
    return 0


def _fetch(c: FetchCommand, copy: Path) -> str:
    """Copy the run into the new directory ``copy``; returns where it came from."""
    if c.cluster is None and c.jobs is None and ("/" in c.run or Path(c.run).is_dir()):
        copy_run(c.run, copy)
        return c.run
    if "://" in c.run:
        raise BadInput(f"{c.run} is a URL, which needs no cluster: leave out --cluster and --jobs")
    with c.connect() as server:
        directory = directory_on_head(server, c.run)
        if "://" in directory:
            copy_run(directory, copy)
            return directory
        if c.cluster is None:
            raise BadInput("--jobs gives no access to files: write --cluster with the file of `ray up`")
        from qfleet.cluster.head import copy_from_head

        # The head node makes a copy at one moment, with whole checkpoints, which then crosses the network.
        staging, name = f"runs/.fetch-{uuid.uuid4().hex[:8]}", last_part(directory)
        try:
            said: list[str] = []
            if status := run_on_head(server, c.command(["fetch", directory, "--to", staging]), said.append):
                line = "".join(said).strip().rpartition("\n")[2].removeprefix("qfleet: ")
                raise (BadInput if status == 2 else RunFault)(f"on the head node: {line}")
            copy.mkdir(parents=True)
            copy_from_head(c.cluster, f"{c.checkout}/{staging}/{name}", copy, COPY_TIMEOUT)
        finally:
            run_on_head(server, f"rm -rf {quoted(f'{c.checkout}/{staging}')}")
        return f"{directory} of {c.cluster}"


def _print_next(target: Path, source: str, copied: Copied) -> None:
    """Print what was fetched, and what to type next."""
    where, kinds = shlex.quote(str(target)), {"best weights": copied.best, "newest checkpoint": copied.checkpoint}
    missing = [kind for kind, name in kinds.items() if name is None]
    print(f"fetched {source} to {target}: {', '.join([*copied.names, *(k for k, name in kinds.items() if name)])}")
    if missing:
        print(f"  the run has no {' and no '.join(missing)} yet")
    if copied.best or copied.checkpoint:
        print(f"  evaluate it   qfleet eval {where}")
    print(f"  plot it       qfleet plot {where}")
    if copied.checkpoint:
        print(f"  continue it   qfleet train --resume {where}")
