"""What a person sees while a run goes on: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

PLAIN_EVERY = 30.0  # seconds between plain lines


class Screen(Console):
    """Standard error, where a pipe's reader may go away (rich itself would end the process then).

    Without ``on_closed`` BrokenPipeError is raised then; with it, it is called, and later output is dropped.
    """

    def __init__(self, on_closed: Callable[[], None] | None = None) -> None:
        super().__init__(stderr=True)
        self._on_closed = on_closed

    def on_broken_pipe(self) -> None:
        """What rich calls when the reader is gone: calls ``on_closed``, or raises BrokenPipeError without one."""
        if self._on_closed is None:
            raise BrokenPipeError(errno.EPIPE, "nobody reads standard error")
        silence(self.file)
        self._on_closed()


def silence(stream: TextIO | Any) -> None:
    """Drop what is written to ``stream`` from now on, and what its buffer holds."""
    with contextlib.suppress(AttributeError, OSError, ValueError):  # a stream without a file, or none at all
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, stream.fileno())
        finally:
            os.close(nowhere)


class Progress:
    """Shows the newest row; `note` prints a line that stays. All goes to standard error.

    Use:

        progress = Progress("Qfleet CartPole-v1", {"agent_steps": 300_000}, goal=475.0)
        progress.show(row, "-", seconds_left=60.0)  # again and again; progress.note("a line that stays")
        progress.close()

    ``on_closed`` is called when the reader of standard error is gone; from then on nothing is shown.
    """

    def __init__(
        self, title: str, limits: Mapping[str, int], goal: float, on_closed: Callable[[], None] = lambda: None
    ) -> None:
        self.console = Screen(on_closed)
        self._title, self._limits, self._goal = title, limits, goal
        self._live: Live | None = None
        self._last_plain = -math.inf
        if self.console.is_terminal:
            self._live = Live(console=self.console, refresh_per_second=4, transient=False)
            self._live.start()

    def note(self, text: str) -> None:
        """Print a line that stays on the screen."""
        self.console.print(text, highlight=False, markup=False)

    def show(self, row: Mapping[str, Any], last_eval: str, seconds_left: float) -> None:
        """Show ``row`` (of `RunStats.row`), the last evaluation's return and the seconds left (inf: unknown)."""
        if self._live is not None:
            self._live.update(self._table(row, last_eval, seconds_left))
        elif time.monotonic() - self._last_plain >= PLAIN_EVERY:
            self._last_plain = time.monotonic()
            line = plain_line(row, last_eval, seconds_left)
            self.console.print(line, highlight=False, markup=False, emoji=False, soft_wrap=True)

    def _table(self, row: Mapping[str, Any], last_eval: str, seconds_left: float) -> Table:
        table = Table(title=self._title, title_justify="left", show_header=False, box=None, padding=(0, 2))
        done = max([row[name] / most for name, most in self._limits.items()], default=0.0)
        bar = ProgressBar(total=1.0, completed=min(done, 1.0), width=30)
        table.add_row("agent steps", f"{row['agent_steps']:,}", "frames", f"{row['frames']:,}")
        most = " or ".join(f"{most:,} {name.replace('_', ' ')}" for name, most in self._limits.items())
        table.add_row("of at most", most, "", bar)
        table.add_row("steps/s", number(row["steps_per_s"], ",.0f"), "updates/s", number(row["updates_per_s"], ",.1f"))
        table.add_row("updates", f"{row['updates']:,}", "samples per insert", f"{row['samples_per_insert']:.2f}")
        table.add_row("epsilon", f"{row['epsilon_min']:.4g}", "learner busy", f"{row.get('learner_busy', 0.0):.0%}")
        stored, size = row.get("replay_stored", 0), row.get("replay_bytes", 0) / 2**20
        table.add_row("replay", f"{stored:,.0f} items", "compressed", f"{size:,.0f} MiB")
        table.add_row("training return", number(row["train_return"]), "greedy end", number(row["greedy_return"]))
        table.add_row("last evaluation", last_eval, "goal", number(self._goal))
        table.add_row("time", duration(row["wall_seconds"]), "at most left", duration(seconds_left))
        return table

    def close(self) -> None:
        """Stop updating; the last table stays on the screen."""
        if self._live is not None:
            self._live.stop()


def plain_line(row: Mapping[str, Any], last_eval: str, seconds_left: float) -> str:
    """The same figures in one line, for an output that is no terminal."""
    return (
        f"[{duration(row['wall_seconds'])}] steps {row['agent_steps']:,} ({number(row['steps_per_s'], '.0f')}/s) "
        f"updates {row['updates']:,} ({number(row['updates_per_s'])}/s) samples/insert {row['samples_per_insert']:.2f} "
        f"eps {row['epsilon_min']:.3g} return {number(row['train_return'])} greedy {number(row['greedy_return'])} "
        f"eval {last_eval} at most {duration(seconds_left)} left"
    )


def duration(seconds: float) -> str:
    """Seconds as ``h:mm:ss``, or a dash where they are not finite."""
    if not math.isfinite(seconds):
        return "-"
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def number(value: float | None, digits: str = ".1f") -> str:
    """A figure in the format ``digits``, or a dash where it is None or not finite."""
    return "-" if value is None or not math.isfinite(value) else f"{value:{digits}}"
