"""`qfleet plot`: plots learning curves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from qfleet.cli.flags import parse
from qfleet.run.directory import EVALS, METRICS, RunDir
from qfleet.run.remote import is_url, local_path
from rl.errors import BadInput


@dataclass(frozen=True)
class PlotCommand:
    """Plot the learning curves of runs into one image."""

    runs: tyro.conf.Positional[tuple[str, ...]]
    """Directories or URLs of the runs."""
    to: str = "curves.png"
    """Image file to write; its extension selects the format (png, pdf, svg)."""


def plot_command(args: list[str]) -> int:
    """Run `qfleet plot`; returns the exit status. Raises BadInput."""
    from report.curves import plot_runs  # imports matplotlib, which is slow

    c = parse(PlotCommand, args, prog="qfleet plot")
    if not c.runs:
        raise BadInput("missing RUN: write qfleet plot RUN [RUN ...]")
    fetched = {run: RunDir.open(run) for run in c.runs if is_url(run)}
    for run, directory in fetched.items():
        if not (directory.path / METRICS).is_file() or not (directory.path / EVALS).is_file():
            raise BadInput(f"{run} has no {METRICS} or no {EVALS} yet: let the run continue, or write another run")
    try:
        picture = plot_runs([fetched[r].path if r in fetched else local_path(r) for r in c.runs], Path(c.to))
    except (OSError, ValueError) as error:
        raise BadInput(f"--to {c.to} cannot be written: {' '.join(str(error).split())}") from error
    print(f"learning curves: {picture}")
    return 0
