"""The learning curves of several runs in one picture."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator

from rl.errors import BadInput


def _read_columns(path: Path) -> dict[str, list[float]]:
    """The columns of a CSV file by name; NaN for values that are not numbers. Raises BadInput if there is no file."""
    if not path.is_file():
        raise BadInput(f"{path.parent} is not a run's directory ({path.name} is missing): write the directory of a run")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(r[name]) if _is_number(r[name]) else float("nan") for r in rows] for name in (rows or [{}])[0]}


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def plot_runs(runs: Sequence[Path], to: Path) -> Path:
    """Plot returns over minutes of training and over agent steps (offline runs: learner updates). Returns ``to``.

    Lines are greedy returns: the mean training return of the greedy environments, whose epsilon is at most
    `exploration.greedy_below`. Points are evaluations. Raises BadInput if a directory is not that of a run, OSError or
    ValueError if ``to`` cannot be written.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True)
    names: list[str] = []
    for run in runs:
        train, evals = _read_columns(run / "metrics.csv"), _read_columns(run / "eval.csv")
        minutes = [s / 60 for s in train.get("wall_seconds", [])]
        unit = "agent_steps" if any(train.get("agent_steps", [])) else "updates"
        names.append(unit.replace("_", " "))
        for axis, train_x, eval_x in (
            (left, minutes, [s / 60 for s in evals.get("wall_seconds", [])]),
            (right, train.get(unit, []), evals.get(unit, [])),
        ):
            (line,) = axis.plot(train_x, train.get("greedy_return", []), lw=1.2, label=run.name)
            axis.plot(eval_x, evals.get("mean_return", []), "o", ms=5, color=line.get_color())
    left.set_xlabel("minutes of training")
    right.set_xlabel(" or ".join(sorted(set(names))))
    right.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    right.xaxis.set_major_formatter("{x:,.0f}")
    left.set_ylabel("return of an episode")
    figure.suptitle("lines: greedy return in training; points: mean return of evaluations", fontsize=10)
    for axis in (left, right):
        axis.grid(alpha=0.3)
    left.legend(fontsize=8)
    figure.tight_layout()
    to.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(to, dpi=120)
    plt.close(figure)
    return to
