"""Learning curves of the classic methods: smoothed, as the mean and the range over seeds."""

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

POINTS = 300  # of a drawn curve
Curve = tuple[Array, Array]  # (x, y) of one seed, both [T]


def smoothed(y: Array, window: int) -> Float64:
    """Moving average of ``y`` [T] over the last ``window`` values (fewer at the beginning), [T]."""
    total = np.cumsum(np.concatenate([[0.0], y]))
    end = np.arange(1, len(y) + 1)
    start = np.maximum(end - window, 0)
    return np.asarray((total[end] - total[start]) / (end - start))


def mean_and_range(curves: Sequence[Curve], points: int = POINTS) -> tuple[Float64, Float64, Float64, Float64]:
    """(x, mean, lowest, highest) over seeds, each [points]. Each curve is smoothed over a fortieth of its length first.

    x covers the range in which all seeds have values. If there is none, it is the largest first x, ``points`` times.
    """
    begin, end = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    at = np.linspace(begin, max(end, begin), points)
    rows = np.stack([np.interp(at, x, smoothed(y, max(1, len(y) // 40))) for x, y in curves])
    return at, rows.mean(axis=0), rows.min(axis=0), rows.max(axis=0)


def draw_band(axis: Axes, curves: Sequence[Curve], label: str | None = None) -> None:
    """Draw the mean over seeds as a line, and the range from lowest to highest as a band."""
    at, mean, low, high = mean_and_range(curves)
    (line,) = axis.plot(at, mean, lw=1.4, label=label)
    if len(curves) > 1:
        axis.fill_between(at, low, high, color=line.get_color(), alpha=0.2, lw=0)


def plot_learning(seeds: Sequence[Mapping[str, Array]], title: str, to: Path) -> Path:
    """Plot the return and the length (agent steps) of training episodes over the number of the episode.

    ``seeds`` has the columns of episodes.csv for each seed. Returns ``to``. Raises OSError or ValueError if it cannot
    be written.
    """
    figure, axes = plt.subplots(1, 2, figsize=(11, 3.8))
    for axis, name in zip(axes, ("return", "length"), strict=True):
        draw_band(axis, [(columns["episode"], columns[name]) for columns in seeds])
        axis.set_xlabel("episode")
        axis.set_ylabel(f"{name} of an episode" + (" (agent steps)" if name == "length" else ""))
    return _finish(figure, f"{title}: training, {_seeds_label(len(seeds))}", to)


def plot_progress(seeds: Sequence[Mapping[str, Curve]], title: str, to: Path) -> Path:
    """Plot every metric that all seeds reported, over iterations, sweeps, steps or episodes.

    ``seeds`` has the curves by metric for each seed. Returns ``to``. Raises OSError or ValueError if it cannot be
    written.
    """
    names = [name for name in seeds[0] if all(name in seed for seed in seeds)]
    figure, axes = plt.subplots(1, len(names), figsize=(max(5.5, 3.8 * len(names)), 3.6), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        draw_band(axis, [seed[name] for seed in seeds])
        axis.set_title(name.replace("_", " "), fontsize=10)
        axis.set_xlabel("iterations, sweeps, steps or episodes")
    return _finish(figure, f"{title}, {_seeds_label(len(seeds))}", to)


def plot_compared(groups: Mapping[str, Sequence[Curve]], labels: tuple[str, str], title: str, to: Path) -> Path:
    """Plot several methods in one picture, each as a line with a band over seeds; ``labels`` are those of x and y.

    ``groups`` has the curves of all seeds by method. Returns ``to``. Raises OSError or ValueError if it cannot be
    written.
    """
    figure, axis = plt.subplots(figsize=(7.5, 4.2))
    for name, curves in groups.items():
        draw_band(axis, curves, name)
    axis.set_xlabel(labels[0])
    axis.set_ylabel(labels[1])
    axis.legend(fontsize=8)
    return _finish(figure, title, to)


def _seeds_label(count: int) -> str:
    return "1 seed" if count == 1 else f"mean of {count} seeds, band from lowest to highest"


def _finish(figure: Figure, title: str, to: Path) -> Path:
    """Add title, grid and ticks, then `save`."""
    figure.suptitle(title, fontsize=10)
    for axis in figure.axes:
        axis.grid(alpha=0.3)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        axis.xaxis.set_major_formatter("{x:,.0f}")
    figure.tight_layout()
    return save(figure, to)


def save(figure: Figure, to: Path) -> Path:
    """Write a figure to ``to``, close it and return ``to``. Raises OSError or ValueError if it cannot be written."""
    to.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(to, dpi=120)
    plt.close(figure)
    return to
