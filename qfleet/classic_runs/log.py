"""The log of one seed of a classic method: two CSV files, TensorBoard, and a line on the screen."""

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
ROWS = 2_000  # of episodes.csv at most; a row is the mean of several episodes where there are more
RECENT = 100  # episodes whose mean return is shown
SCREEN_EVERY = 0.25  # seconds


class ClassicLog:
    """The `Monitor` of one seed, which writes into ``folder``; ``total`` episodes are expected (0: unknown)."""

    def __init__(self, folder: Path, title: str, total: int = 0) -> None:
        self.folder: Path | None = folder
        self._title, self._total = title, total
        self._board = SummaryWriter(str(folder / "tensorboard"))
        self._files = {name: (folder / name).open("w", newline="") for name in (EPISODES, PROGRESS)}
        self._episodes = csv.writer(self._files[EPISODES])
        self._episodes.writerow(("episode", "agent_steps", "return", "length", "epsilon"))
        self._progress = csv.writer(self._files[PROGRESS])
        self._progress.writerow(("at", "name", "value"))
        self._every = max(1, total // ROWS)
        self._waiting: list[EpisodeResult] = []
        self._recent: deque[float] = deque(maxlen=RECENT)
        self.episodes = self.agent_steps = 0
        self._last = ""
        self._began = self._said = time.monotonic()
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
        self._waiting.append(result)
        if len(self._waiting) >= self._every:
            self._write()
        self._show()

    def _write(self) -> None:
        """Write one row: the mean of the episodes since the last row."""
        means = [float(np.mean(x)) for x in zip(*(e[:3] for e in self._waiting), strict=True)]
        self._episodes.writerow((self.episodes, self.agent_steps, *(f"{x:.6g}" for x in means)))
        for name, value in zip(("return", "length", "epsilon"), means, strict=True):
            self._board.add_scalar(f"train/{name}", value, self.episodes)
        self._waiting.clear()

    def report(self, at: int, figures: Mapping[str, float]) -> None:
        """Log figures after ``at`` iterations, episodes or steps, whichever the method counts."""
        for name, value in figures.items():
            self._progress.writerow((at, name, f"{value:.6g}"))
            self._board.add_scalar(f"progress/{name}", value, at)
        self._last = f"at {at:,}: " + ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
        self._show()

    def note(self, text: str) -> None:
        """Print a line that stays on the screen."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def hand_over(self) -> None:
        """Stop the status line, so that another display can have the screen."""
        if self._status is not None:
            self._status.stop()

    def evaluation(self, mean_return: float) -> None:
        """Log the mean return of the final evaluation."""
        self._board.add_scalar("evaluation/mean_return", mean_return, self.agent_steps)

    def _show(self) -> None:
        now = time.monotonic()
        if now - self._said < (SCREEN_EVERY if self._status is not None else PLAIN_EVERY):
            return
        self._said = now
        if self._status is not None:
            self._status.update(self.line())
        else:
            self.note(self.line())

    def line(self) -> str:
        """The status line: time, episodes, agent steps, mean return of recent episodes, and the last report."""
        parts = [f"{self._title}  {duration(time.monotonic() - self._began)}"]
        if self.episodes:
            of = f" of {self._total:,}" if self._total else ""
            mean = float(np.mean(self._recent))
            parts.append(
                f"episode {self.episodes:,}{of}, {self.agent_steps:,} steps, return {mean:.4g} (last {len(self._recent)})"
            )
        return "  ".join([*parts, self._last]).rstrip()

    def close(self) -> None:
        """Write the episodes that have no row yet and close the files."""
        if self._waiting:
            self._write()
        if self._status is not None:
            self._status.stop()
        self._board.close()
        for file in self._files.values():
            file.close()


def series(file: Path) -> dict[str, tuple[Array, Array]]:
    """The figures of a progress.csv that were reported more than once: {name: (at [T], values [T])}, float64."""
    found: dict[str, tuple[list[float], list[float]]] = {}
    with file.open(newline="") as opened:
        for row in csv.DictReader(opened):
            at, values = found.setdefault(row["name"], ([], []))
            at.append(float(row["at"]))
            values.append(float(row["value"]))
    return {name: (np.array(at), np.array(values)) for name, (at, values) in found.items() if len(at) > 1}


def table(file: Path) -> dict[str, Array]:
    """The columns of an episodes.csv by name, each float64 [rows]."""
    with file.open(newline="") as opened:
        header, *rows = list(csv.reader(opened))
    columns = np.array(rows, dtype=np.float64).reshape(len(rows), len(header)).T
    return dict(zip(header, columns, strict=True))
