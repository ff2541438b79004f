"""Learning curves of run directories as one picture."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from rl.errors import BadInput


def _columns(file: Path) -> dict[str, list[float]]:
    if not file.is_file():
        raise BadInput(f"{file.parent} holds no {file.name}: write a run's directory")
    with file.open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    return {name: [float(r[name]) if _number(r[name]) else float("nan") for r in rows] for name in (rows or [{}])[0]}


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def plot_runs(runs: Sequence[Path], to: Path) -> Path:
    """Draw the return over minutes of training and over agent steps (learner updates in offline runs); returns ``to``.

    Evaluations are points. Lines are the training returns of the greedy end: the environments whose epsilon is at most
    `exploration.greedy_below`. Raises BadInput where a directory holds no run, OSError and ValueError where ``to``
    cannot be written.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True)
    names: list[str] = []
    for run in runs:
        train, evals = _columns(run / "metrics.csv"), _columns(run / "eval.csv")
        minutes = [s / 60 for s in train.get("wall_seconds", [])]
        over = "agent_steps" if any(train.get("agent_steps", [])) else "updates"
        names.append(over.replace("_", " "))
        for axis, x, at in (
            (left, minutes, [s / 60 for s in evals.get("wall_seconds", [])]),
            (right, train.get(over, []), evals.get(over, [])),
        ):
            (line,) = axis.plot(x, train.get("greedy_return", []), lw=1.2, label=run.name)
            axis.plot(at, evals.get("mean_return", []), "o", ms=5, color=line.get_color())
    left.set_xlabel("minutes of training")
    right.set_xlabel(" or ".join(sorted(set(names))))
    right.xaxis.set_major_formatter("{x:,.0f}")
    left.set_ylabel("return of an episode")
    figure.suptitle("lines: training, greedy end; points: evaluations", fontsize=10)
    for axis in (left, right):
        axis.grid(alpha=0.3)
    left.legend(fontsize=8)
    figure.tight_layout()
    to.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(to, dpi=120)
    plt.close(figure)
    return to
