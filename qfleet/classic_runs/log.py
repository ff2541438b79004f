"""The log of one seed of a classic method: two CSV files, TensorBoard and a status line on the terminal.

log = ClassicLog(folder, "sarsa on CliffWalking-v1, seed 1", total=500)
learned = method.learn(config, env, seed, log)
log.close()
"""

from __future__ import annotations

import csv
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from rich.status import Status
from tensorboardX import SummaryWriter

from qfleet.run.progress import PLAIN_EVERY, Screen, duration
from rl.types import Array, EpisodeResult

EPISODES, PROGRESS = "episodes.csv", "progress.csv"
MAX_ROWS = 2_000  # of episodes.csv at most: with more episodes, a row is the mean of several
RECENT_EPISODES = 100  # the status line shows their mean return
STATUS_PERIOD = 0.25  # seconds between updates of the status line


class ClassicLog:
    """A `Monitor` that writes into ``folder``. ``total`` is the expected number of episodes, 0 if it is unknown."""

    def __init__(self, folder: Path, title: str, total: int = 0) -> None:
        self.folder: Path | None = folder
        self._title, self._total = title, total
        self._tensorboard = SummaryWriter(str(folder / "tensorboard"))
        self._files = {name: (folder / name).open("w", newline="") for name in (EPISODES, PROGRESS)}
        self._episodes = csv.writer(self._files[EPISODES])
        self._episodes.writerow(("episode", "agent_steps", "return", "length", "epsilon"))
        self._progress = csv.writer(self._files[PROGRESS])
        self._progress.writerow(("at", "name", "value"))
        self._episodes_per_row = max(1, total // MAX_ROWS)
        self._pending: list[EpisodeResult] = []
        self._recent: deque[float] = deque(maxlen=RECENT_EPISODES)
        self.episodes = self.agent_steps = 0
        self._last_report = ""
        self._start_time = self._last_shown = time.monotonic()
        self.console = Screen()
        self._status: Status | None = None
        if self.console.is_terminal:
            self._status = self.console.status(title)
            self._status.start()
        else:
            self.note(f"{title}: {folder}")

    def episode(self, result: EpisodeResult) -> None:
        """Log a training episode that has ended."""
        self.episodes += 1
        self.agent_steps += result.length
        self._recent.append(result.episode_return)
        self._pending.append(result)
        if len(self._pending) >= self._episodes_per_row:
            self._write_row()
        self._show()

    def _write_row(self) -> None:
        """Write one row of episodes.csv: the mean of the episodes since the last row."""
        means = [float(np.mean(x)) for x in zip(*(e[:3] for e in self._pending), strict=True)]
        self._episodes.writerow((self.episodes, self.agent_steps, *(f"{x:.6g}" for x in means)))
        for name, value in zip(("return", "length", "epsilon"), means, strict=True):
            self._tensorboard.add_scalar(f"train/{name}", value, self.episodes)
        self._pending.clear()

    def report(self, at: int, metrics: Mapping[str, float]) -> None:
        """Log metrics after ``at`` iterations, episodes or steps, whichever the method counts."""
        for name, value in metrics.items():
            self._progress.writerow((at, name, f"{value:.6g}"))
            self._tensorboard.add_scalar(f"progress/{name}", value, at)
        self._last_report = f"at {at:,}: " + ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        self._show()

    def note(self, text: str) -> None:
        """Print a line above the status line."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def release_display(self) -> None:
        """Stop the status line, because the method has a display of its own."""
        if self._status is not None:
            self._status.stop()

    def evaluation(self, mean_return: float) -> None:
        """Log the mean return of the final evaluation."""
        self._tensorboard.add_scalar("evaluation/mean_return", mean_return, self.agent_steps)

    def _show(self) -> None:
        now = time.monotonic()
        if now - self._last_shown < (STATUS_PERIOD if self._status is not None else PLAIN_EVERY):
            return
        self._last_shown = now
        if self._status is not None:
            self._status.update(self.line())
        else:
            self.note(self.line())

    def line(self) -> str:
        """Return the status line: time, episodes, agent steps, mean return of recent episodes, and the last report."""
        parts = [f"{self._title}  {duration(time.monotonic() - self._start_time)}"]
        if self.episodes:
            count = f"{self.episodes:,} of {self._total:,}" if self._total else f"{self.episodes:,}"
            mean = float(np.mean(self._recent))
            parts.append(f"episode {count}, {self.agent_steps:,} steps, return {mean:.4g} (last {len(self._recent)})")
        return "  ".join([*parts, self._last_report]).rstrip()

    def close(self) -> None:
        """Write the remaining episodes and close the files."""
        if self._pending:
            self._write_row()
        if self._status is not None:
            self._status.stop()
        self._tensorboard.close()
        for file in self._files.values():
            file.close()


def read_progress(file: Path) -> dict[str, tuple[Array, Array]]:
    """Return the metrics of a progress.csv that have at least two values: {name: (at [T], values [T])}, float64."""
    found: dict[str, tuple[list[float], list[float]]] = {}
    with file.open(newline="") as opened:
        for row in csv.DictReader(opened):
            at, values = found.setdefault(row["name"], ([], []))
            at.append(float(row["at"]))
            values.append(float(row["value"]))
    return {name: (np.array(at), np.array(values)) for name, (at, values) in found.items() if len(at) > 1}


def read_episodes(file: Path) -> dict[str, Array]:
    """Return the columns of an episodes.csv by name, each float64 [rows]."""
    with file.open(newline="") as opened:
        header, *rows = list(csv.reader(opened))
    columns = np.array(rows, dtype=np.float64).reshape(len(rows), len(header)).T
    return dict(zip(header, columns, strict=True))
