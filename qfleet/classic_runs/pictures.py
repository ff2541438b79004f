"""Pictures of a classic method: the values learned with one seed, and the learning curves over all seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from classic.interface import Learned
from classic.maps import panels
from qfleet.classic_runs.log import EPISODES, PROGRESS, read_episodes, read_progress
from report.grids import Panel, plot_states, plot_surface, plot_values
from report.learning import plot_compared, plot_learning, plot_progress
from rl.envs.config import EnvConfig
from rl.envs.spaces import SpaceKind
from rl.policies import greedy

SURFACE = ("surface_angle", "surface_velocity", "surface_value", "surface_action")
CORRECTIONS = ("ignored", "cut", "weighted")  # of n-step: their errors are drawn into one picture


def draw_pictures(learned: Learned, env: EnvConfig, space_kind: SpaceKind, folder: Path, title: str) -> None:
    """Write the pictures for which there is data into ``folder``: values.png, surface.png, states.png, or none."""
    if space_kind != "continuous" and (learned.values is not None or "v" in learned.arrays):
        drawn = [_fill_panel(learned, panel) for panel in panels(env, space_kind)]
        if drawn:
            plot_values(drawn, title, folder / "values.png")
    if all(name in learned.arrays for name in SURFACE):
        angle, velocity, value, action = (learned.arrays[name] for name in SURFACE)
        layers = [("greatest action value", value), ("greedy action", action)]
        labels = ("angle (rad)", "angular velocity (rad/s)")
        plot_surface(angle, velocity, layers, labels, title, folder / "surface.png")
    if "highest" in learned.arrays:
        found = {name: [_caption(at) for at in learned.metrics[name]] for name in ("highest", "lowest")}
        rows = [(name, list(learned.arrays[name]), captions) for name, captions in found.items()]
        plot_states(rows, f"{title}: states of the highest and the lowest value", folder / "states.png")


def _fill_panel(learned: Learned, panel: Any) -> Panel:
    """Return a map with the values of its states and, if there are action values, with greedy actions."""
    if learned.values is None:
        values, arrows = learned.arrays["v"][panel.observations], np.full(len(panel.observations), "")
    else:
        q = learned.values(panel.observations)
        has_preference = q.min(axis=1) < q.max(axis=1)  # False at terminal states and where nothing was learned
        values, arrows = (
            np.where(has_preference, q.max(axis=1), np.nan),
            np.where(has_preference, np.array(panel.actions)[greedy(q)], ""),
        )
    values, arrows, labels = (np.asarray(x).reshape(panel.shape) for x in (values, arrows, panel.labels))
    return Panel(panel.title, values, arrows, labels, panel.row_names, panel.column_names)


def _caption(at: dict[str, Any]) -> str:
    """Return the mission of a state, its value, and where it first occurs."""
    return f"{at['mission']}\nvalue {at['value']:.3f}, episode {at['episode']}, step {at['step']}"


def draw_learning_curves(folders: Sequence[Path], title: str, to: Path) -> None:
    """Write the pictures over all seeds into ``to``; each of ``folders`` is the directory of one seed.

    They are curves.png (training episodes, if there are several) and progress.png (the reported metrics; for n-step
    compared.png instead). Raises OSError or ValueError if a CSV file is missing or damaged.
    """
    episodes = [read_episodes(folder / EPISODES) for folder in folders]
    if all(len(columns["episode"]) > 1 for columns in episodes):
        plot_learning(episodes, title, to / "curves.png")
    progress = [read_progress(folder / PROGRESS) for folder in folders]
    if all(all(f"{correction}_error" in seed for correction in CORRECTIONS) for seed in progress):
        groups = {correction: [seed[f"{correction}_error"] for seed in progress] for correction in CORRECTIONS}
        labels = ("episode", "error of the values (root mean square)")
        plot_compared(groups, labels, f"{title}: three off-policy corrections", to / "compared.png")
    elif all(progress):
        plot_progress(progress, title, to / "progress.png")
