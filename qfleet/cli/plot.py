"""`qfleet plot`: learning curves as a picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from qfleet.cli.flags import parse
from rl.errors import BadInput


@dataclass(frozen=True)
class PlotCommand:
    """Draw the learning curves of runs."""

    runs: tyro.conf.Positional[tuple[str, ...]]
    """The runs' directories."""
    to: str = "curves.png"
    """File of the picture."""


def plot_command(args: list[str]) -> int:
    """Run `qfleet plot`; returns the exit status. Raises BadInput."""
    from report.curves import plot_runs  # imports matplotlib, which is slow

    c = parse(PlotCommand, args, prog="qfleet plot")
    if not c.runs:
        raise BadInput("qfleet plot needs a run's directory: qfleet plot RUN [RUN ...]")
    try:
        picture = plot_runs([Path(r) for r in c.runs], Path(c.to))
    except (OSError, ValueError) as error:
        raise BadInput(f"--to {c.to} cannot be written: {' '.join(str(error).split())}") from error
    print(f"learning curves: {picture}")
    return 0
