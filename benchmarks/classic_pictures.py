"""Pictures of docs/classic.md: those that single rows drew, and those that lay several side by side."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.classic_rows import ROWS
from launch.classic_log import EPISODES, table
from report.learning import Curve, plot_compared

# picture of the page: where it lies under the folder of all rows
SINGLE = {
    "q-learning-taxi-curves.png": "q-learning-taxi/curves.png",
}


def draw_all(folder: Path, to: Path) -> list[str]:
    """Copy or draw every picture whose rows are there; returns those that are missing."""
    to.mkdir(parents=True, exist_ok=True)
    missing = []
    for name, source in SINGLE.items():
        if (folder / source).is_file():
            shutil.copyfile(folder / source, to / name)
        else:
            missing.append(name)
    for name, (rows, draw) in COMPARED.items():
        if all((folder / row / "summary.json").is_file() for row in rows):
            draw(folder, to / name)
        else:
            missing.append(name)
    return missing


def _curves(folder: Path, row: str, x: str, y: Callable[[dict], object]) -> list[Curve]:
    """One curve a seed of a row: ``y`` of the columns of episodes.csv over the column ``x``."""
    files = [folder / row / f"seed-{seed}" / EPISODES for seed in range(1, ROWS[row].seeds + 1)]
    return [(columns[x], y(columns)) for columns in map(table, files)]


def _bias(folder: Path, to: Path) -> None:
    groups = {
        method: _curves(folder, row, "episode", lambda c: c["length"] - 1.0)
        for method, row in (("Q-learning", "q-learning-bias"), ("double Q-learning", "double-q-bias"))
    }
    plot_compared(groups, ("episode", "share of episodes that go left"), "a maximum over noise", to)


COMPARED: dict[str, tuple[Sequence[str], Callable[[Path, Path], None]]] = {
    "bias.png": (("q-learning-bias", "double-q-bias"), _bias),
}
