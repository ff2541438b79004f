"""The pictures in docs/classic.md: copies of pictures that runs have drawn, and comparisons of several runs."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from benchmarks.classic_rows import ROWS
from qfleet.classic_runs.log import EPISODES, PROGRESS, read_episodes, read_progress
from report.learning import Curve, plot_compared, save
from rl.parameters import from_bytes
from rl.types import Array

# picture in docs/classic.md: its source in the directory of all rows
SINGLE = {
    "value-iteration-values.png": "value-iteration/seed-1/values.png",
    "monte-carlo-blackjack-values.png": "monte-carlo-blackjack/seed-1/values.png",
    "q-learning-taxi-curves.png": "q-learning-taxi/curves.png",
    "q-learning-taxi-values.png": "q-learning-taxi/seed-1/values.png",
    "n-step.png": "n-step/compared.png",
    "fitted-q-surface.png": "fitted-q/seed-1/surface.png",
    "offline-q-states.png": "offline-q/seed-1/states.png",
    "dqn-flappybird.gif": "dqn-flappybird/seed-1/videos/rl-video-episode-0.gif",
    "continuous-surface.png": "continuous-ddpg/seed-1/surface.png",
}


def draw_all(folder: Path, to: Path) -> list[str]:
    """Copy or draw every picture whose rows have been run in ``folder``; returns the names of the others."""
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


def _seed_dirs(folder: Path, row: str) -> list[Path]:
    return [folder / row / f"seed-{seed}" for seed in range(1, ROWS[row].seeds + 1)]


def _episode_curves(folder: Path, row: str, x: str, y: Callable[[Mapping[str, Array]], Array]) -> list[Curve]:
    """One curve per seed: ``y`` of the columns of episodes.csv over the column ``x``."""
    tables = [read_episodes(seed / EPISODES) for seed in _seed_dirs(folder, row)]
    return [(columns[x], y(columns)) for columns in tables]


def _draw_bias(folder: Path, to: Path) -> None:
    rows = {"Q-learning": "q-learning-bias", "double Q-learning": "double-q-bias"}
    groups = {name: _episode_curves(folder, row, "episode", lambda c: c["length"] - 1.0) for name, row in rows.items()}
    groups = {name: [_mean_curve(curves)] for name, curves in groups.items()}
    plot_compared(groups, ("episode", "share of 100 seeds that go left"), "maximization bias", to)


def _mean_curve(curves: Sequence[Curve]) -> Curve:
    """The mean of several curves, which share their x values."""
    return curves[0][0], np.mean([y for _, y in curves], axis=0)


def _draw_prediction(folder: Path, to: Path) -> None:
    rows = {"Monte-Carlo": "mc-prediction", "TD(0)": "td0"}
    groups = {
        f"{name}, {figure.replace('_', ' ')}": [
            read_progress(seed / PROGRESS)[figure] for seed in _seed_dirs(folder, row)
        ]
        for name, row in rows.items()
        for figure in ("max_error", "rms_error")
    }
    labels = ("episode", "distance from the exact values")
    plot_compared(groups, labels, "FrozenLake: values of the random policy", to)


def _draw_parts(folder: Path, to: Path) -> None:
    rows = {
        "neither": "online-q-cartpole",
        "target network": "online-q-target",
        "replay": "online-q-replay",
        "both": "online-q-both",
        "qfleet classic dqn (all parts)": "dqn-cartpole",
    }
    groups = {name: _episode_curves(folder, row, "agent_steps", lambda c: c["return"]) for name, row in rows.items()}
    plot_compared(groups, ("agent steps", "return of a training episode"), "CartPole-v1: what DQN adds to online-q", to)


def _draw_cliff(folder: Path, to: Path) -> None:
    """Draw the greedy paths of Q-learning and SARSA on the 4x12 cells of CliffWalking."""
    figure, axis = plt.subplots(figsize=(8, 2.6))
    for name, row, offset in (("Q-learning", "q-learning-cliff", 0.04), ("SARSA", "sarsa-cliff", -0.04)):
        q = from_bytes((_seed_dirs(folder, row)[0] / "values.safetensors").read_bytes())["q"]
        path = np.array(_greedy_path(q))
        axis.plot(path % 12, path // 12 + offset, "o-", ms=4, label=name)
    axis.fill_between([0.55, 10.45], 2.55, 3.45, color="0.7", lw=0)
    axis.text(5.5, 3, "the cliff", ha="center", va="center")
    axis.set(
        xlim=(-0.5, 11.5), ylim=(3.5, -0.5), xticks=range(12), yticks=range(4), title="greedy paths after learning"
    )
    axis.legend(fontsize=8, loc="upper left")
    figure.tight_layout()
    save(figure, to)


def _greedy_path(q: Array) -> list[int]:
    """The cells that the greedy policy of ``q`` [S, A] visits from the start to the goal; at most 40."""
    cell, path = 36, [36]
    while cell != 47 and len(path) < 40:
        down, right = ((-1, 0), (0, 1), (1, 0), (0, -1))[int(q[cell].argmax())]
        row, column = min(max(cell // 12 + down, 0), 3), min(max(cell % 12 + right, 0), 11)
        cell = 12 * row + column
        path.append(cell)
    return path


COMPARED: dict[str, tuple[Sequence[str], Callable[[Path, Path], None]]] = {
    "prediction.png": (("mc-prediction", "td0"), _draw_prediction),
    "cliff.png": (("q-learning-cliff", "sarsa-cliff"), _draw_cliff),
    "bias.png": (("q-learning-bias", "double-q-bias"), _draw_bias),
    "online-q-and-dqn.png": (
        ("online-q-cartpole", "online-q-target", "online-q-replay", "online-q-both", "dqn-cartpole"),
        _draw_parts,
    ),
}
