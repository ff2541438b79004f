"""Plots of values: heat maps with the actions of the policy, values over two variables, and pictures of states."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from report.learning import save
from rl.types import Array


class Panel(NamedTuple):
    """One heat map of R x C cells."""

    title: str
    values: Array  # [R, C], NaN if unknown
    symbols: Array  # [R, C] str, the greedy action as an arrow or a word
    labels: Array  # [R, C] str, the letter of the cell
    row_names: Sequence[str] = ()
    column_names: Sequence[str] = ()


def plot_values(panels: Sequence[Panel], title: str, to: Path) -> Path:
    """Draw the panels side by side with one colour scale: values as colours and numbers, actions as symbols.

    Returns ``to``. Raises OSError or ValueError if it cannot be written.
    """
    rows, columns = panels[0].values.shape
    size = (max(4.5, columns * 0.8 * len(panels) + 1.4), max(3.0, rows * 0.8 + 1.0))
    figure, axes = plt.subplots(1, len(panels), figsize=size, squeeze=False, layout="constrained")
    known = np.concatenate([panel.values[np.isfinite(panel.values)] for panel in panels] + [np.zeros(1)])
    low, high = float(known[:-1].min(initial=known[-1])), float(known[:-1].max(initial=known[-1]))
    colours = matplotlib.colormaps["viridis"].with_extremes(bad="0.8")
    for axis, panel in zip(axes[0], panels, strict=True):
        image = axis.imshow(panel.values, cmap=colours, vmin=low, vmax=high)
        for (r, c), value in np.ndenumerate(panel.values):
            ink = "white" if value <= low + 0.6 * (high - low) else "black"
            symbol = str(panel.symbols[r, c])
            axis.text(c, r, symbol, ha="center", va="center", color=ink, fontsize=13 if len(symbol) == 1 else 7)
            axis.text(
                c,
                r + 0.36,
                f"{value:.2f}" if np.isfinite(value) else "",
                ha="center",
                va="center",
                color=ink,
                fontsize=6.5,
            )
            axis.text(c - 0.42, r - 0.32, str(panel.labels[r, c]), ha="left", va="center", color=ink, fontsize=7)
        axis.set_xticks(range(len(panel.column_names)), panel.column_names)
        axis.set_yticks(range(len(panel.row_names)), panel.row_names)
        axis.set_title(panel.title, fontsize=9)
    figure.colorbar(image, ax=axes[0].tolist(), shrink=0.8, label="value of the state")
    figure.suptitle(title, fontsize=10)
    return save(figure, to)


def plot_surface(
    x: Array, y: Array, layers: Sequence[tuple[str, Array]], labels: tuple[str, str], title: str, to: Path
) -> Path:
    """Draw each layer (name, values [Y, X]) as colours over ``x`` [X] and ``y`` [Y]; ``labels`` are those of x and y.

    Integer values are actions; each action gets its own colour. Returns ``to``. Raises OSError or ValueError if it
    cannot be written.
    """
    figure, axes = plt.subplots(1, len(layers), figsize=(5.2 * len(layers), 4.0), squeeze=False)
    for axis, (name, values) in zip(axes[0], layers, strict=True):
        actions = int(values.max()) + 1 if np.issubdtype(values.dtype, np.integer) else None  # None: not actions
        colours = matplotlib.colormaps["viridis"].resampled(actions) if actions else "viridis"
        mesh = axis.pcolormesh(x, y, values, cmap=colours, shading="auto")
        figure.colorbar(mesh, ax=axis, ticks=range(actions) if actions else None)
        axis.set_xlabel(labels[0])
        axis.set_ylabel(labels[1])
        axis.set_title(name, fontsize=9)
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    return save(figure, to)


def plot_states(rows: Sequence[tuple[str, Sequence[Array], Sequence[str]]], title: str, to: Path) -> Path:
    """Draw rows of pictures of states. Each row is (name, images [H, W, 3], captions of the images).

    Returns ``to``. Raises OSError or ValueError if it cannot be written.
    """
    columns = max(len(images) for _, images, _ in rows)
    size = (3.0 * columns, 3.6 * len(rows) + 0.4)
    figure, axes = plt.subplots(len(rows), columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.ravel():
        axis.axis("off")
    for row_axes, (name, images, captions) in zip(axes, rows, strict=True):
        for axis, image, caption in zip(row_axes, images, captions, strict=False):
            axis.imshow(image)
            axis.set_title(f"{name}\n{caption}", fontsize=8)
    figure.suptitle(title, fontsize=10)
    return save(figure, to)
