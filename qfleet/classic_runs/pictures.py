"""Pictures of a classic method: the values that one seed learned, and the learning curves of all seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from classic.interface import Learned
from classic.maps import panels
from qfleet.classic_runs.log import EPISODES, PROGRESS, series, table
from report.grids import Panel, plot_states, plot_surface, plot_values
from report.learning import plot_compared, plot_learning, plot_progress
from rl.envs.config import EnvConfig
from rl.envs.spaces import SpaceKind
from rl.policies import greedy

SURFACE = ("surface_angle", "surface_velocity", "surface_value", "surface_action")
WAYS = ("ignored", "cut", "weighted")  # of n-step, on one picture


def draw(learned: Learned, env: EnvConfig, takes: SpaceKind, folder: Path, title: str) -> None:
    """Write the pictures that suit what was learned into ``folder``: values.png, surface.png, states.png, or none."""
    if takes != "continuous" and (learned.values is not None or "v" in learned.arrays):
        drawn = [_filled(learned, panel) for panel in panels(env, takes)]
        if drawn:
            plot_values(drawn, title, folder / "values.png")
    if all(name in learned.arrays for name in SURFACE):
        angle, velocity, value, action = (learned.arrays[name] for name in SURFACE)
        layers = [("greatest action value", value), ("greedy action", action)]
        labels = ("angle (rad)", "angular velocity (rad/s)")
        plot_surface(angle, velocity, layers, labels, title, folder / "surface.png")
    if "highest" in learned.arrays:
        found = {name: [_caption(at) for at in learned.figures[name]] for name in ("highest", "lowest")}
        rows = [(name, list(learned.arrays[name]), captions) for name, captions in found.items()]
        plot_states(rows, f"{title}: states of the highest and the lowest value", folder / "states.png")


def _filled(learned: Learned, panel: Any) -> Panel:
    """A map with the values of its states, and with the greedy actions where there are action values."""
    if learned.values is None:
        values, signs = learned.arrays["v"][panel.observations], np.full(len(panel.observations), "")
    else:
        q = learned.values(panel.observations)
        prefers = q.min(axis=1) < q.max(axis=1)  # not where an episode ends, nor where nothing was learned
        values, signs = (
            np.where(prefers, q.max(axis=1), np.nan),
            np.where(prefers, np.array(panel.actions)[greedy(q)], ""),
        )
    values, signs, labels = (np.asarray(x).reshape(panel.shape) for x in (values, signs, panel.labels))
    return Panel(panel.title, values, signs, labels, panel.row_names, panel.column_names)


def _caption(at: dict[str, Any]) -> str:
    """Where a state was first seen, and its value."""
    return f"{at['mission']}\nvalue {at['value']:.3f}, episode {at['episode']}, step {at['step']}"


def draw_seeds(folders: Sequence[Path], title: str, to: Path) -> None:
    """Write the learning curves over all seeds into ``to``; each of ``folders`` is the directory of one seed.

    Raises OSError or ValueError where a seed's CSV file is damaged.
    """
    episodes = [table(folder / EPISODES) for folder in folders]
    if all(len(columns["episode"]) > 1 for columns in episodes):
        plot_learning(episodes, title, to / "curves.png")
    progress = [series(folder / PROGRESS) for folder in folders]
    if all(all(f"{way}_error" in seed for way in WAYS) for seed in progress):
        groups = {way: [seed[f"{way}_error"] for seed in progress] for way in WAYS}
        labels = ("episode", "error of the values (root mean square)")
        plot_compared(groups, labels, f"{title}: the steps between, three ways", to / "compared.png")
    elif all(progress):
        plot_progress(progress, title, to / "progress.png")
