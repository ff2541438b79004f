"""Learning curves of the classic methods: return and length of episodes, smoothed, with the band over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rl.types import Array, Float64

POINTS = 300  # of a curve that is drawn
Curve = tuple[Array, Array]  # x, y of one seed, both [T]


def smoothed(y: Array, window: int) -> Float64:
    """The mean of the last ``window`` values of ``y`` [T] at each of them (fewer at the beginning), [T]."""
    total = np.cumsum(np.concatenate([[0.0], y]))
    end = np.arange(1, len(y) + 1)
    start = np.maximum(end - window, 0)
    return np.asarray((total[end] - total[start]) / (end - start))


def mean_and_range(curves: Sequence[Curve], points: int = POINTS) -> tuple[Float64, Float64, Float64, Float64]:
    """(x, mean, lowest, highest) over seeds, each [points], where all seeds have values; seeds are smoothed first."""
    begin, end = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    at = np.linspace(begin, max(end, begin), points)
    rows = np.stack([np.interp(at, x, smoothed(y, max(1, len(y) // 40))) for x, y in curves])
    return at, rows.mean(axis=0), rows.min(axis=0), rows.max(axis=0)


def draw_band(axis: Axes, curves: Sequence[Curve], label: str | None = None) -> None:
    """Draw the mean over seeds as a line, and lowest to highest as the band around it."""
    at, mean, low, high = mean_and_range(curves)
    (line,) = axis.plot(at, mean, lw=1.4, label=label)
    if len(curves) > 1:
        axis.fill_between(at, low, high, color=line.get_color(), alpha=0.2, lw=0)


def plot_learning(seeds: Sequence[Mapping[str, Array]], title: str, to: Path) -> Path:
    """Draw return and length (agent steps) of the training episodes over episodes; returns ``to``.

    ``seeds`` hold the columns of their episodes.csv, [rows] each.
    """
    figure, axes = plt.subplots(1, 2, figsize=(11, 3.8))
    for axis, name in zip(axes, ("return", "length"), strict=True):
        draw_band(axis, [(columns["episode"], columns[name]) for columns in seeds])
        axis.set_xlabel("episode")
        axis.set_ylabel(f"{name} of an episode" + (" (agent steps)" if name == "length" else ""))
    return _save(figure, f"{title}: training, {_seeds(len(seeds))}", to)


def plot_progress(seeds: Sequence[Mapping[str, Curve]], title: str, to: Path) -> Path:
    """Draw every figure that all seeds reported, over iterations, sweeps, steps or episodes; returns ``to``."""
    names = [name for name in seeds[0] if all(name in seed for seed in seeds)]
    figure, axes = plt.subplots(1, len(names), figsize=(max(5.5, 3.8 * len(names)), 3.6), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        draw_band(axis, [seed[name] for seed in seeds])
        axis.set_title(name.replace("_", " "), fontsize=10)
        axis.set_xlabel("iterations, sweeps, steps or episodes")
    return _save(figure, f"{title}, {_seeds(len(seeds))}", to)


def plot_compared(groups: Mapping[str, Sequence[Curve]], labels: tuple[str, str], title: str, to: Path) -> Path:
    """Draw several methods in one picture, each with its band over seeds; ``labels`` of x and y. Returns ``to``."""
    figure, axis = plt.subplots(figsize=(7.5, 4.2))
    for name, curves in groups.items():
        draw_band(axis, curves, name)
    axis.set_xlabel(labels[0])
    axis.set_ylabel(labels[1])
    axis.legend(fontsize=8)
    return _save(figure, title, to)


def _seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"mean of {count} seeds, lowest to highest"


def _save(figure: Figure, title: str, to: Path) -> Path:
    figure.suptitle(title, fontsize=10)
    for axis in figure.axes:
        axis.grid(alpha=0.3)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        axis.xaxis.set_major_formatter("{x:,.0f}")
    figure.tight_layout()
    return save(figure, to)


def save(figure: Figure, to: Path) -> Path:
    """Write a figure to ``to``, close it and return ``to``. Raises OSError, ValueError."""
    to.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(to, dpi=120)
    plt.close(figure)
    return to
