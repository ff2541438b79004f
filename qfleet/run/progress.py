"""The progress display of a run: a live table on a terminal, plain lines elsewhere."""

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
    """A rich console on standard error that survives a closed pipe (rich itself would end the process).

    When the pipe is closed, it calls ``on_closed`` and discards later output; without ``on_closed`` it raises
    BrokenPipeError. When its terminal is gone, it only discards later output: what that means for the run, SIGHUP says.
    When it writes to a file on a full disk, it discards what cannot be written.
    """

    def __init__(self, on_closed: Callable[[], None] | None = None) -> None:
        super().__init__(stderr=True)
        self._on_closed = on_closed

    def on_broken_pipe(self) -> None:
        """Called by rich when the pipe is closed. Raises BrokenPipeError if there is no ``on_closed``."""
        if self._on_closed is None:
            raise BrokenPipeError(errno.EPIPE, "standard error is closed")
        discard_output(self.file)
        self._on_closed()

    def _check_buffer(self) -> None:
        """Write what was printed (called by rich)."""
        try:
            super()._check_buffer()
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):  # it goes to a file, on a full disk
                del self._buffer[:]
            elif error.errno == errno.EIO:
                discard_output(self.file)
            else:
                raise


def discard_output(stream: TextIO | Any) -> None:
    """Redirect ``stream`` to the null device, with the text that is still in its buffer."""
    with contextlib.suppress(AttributeError, OSError, ValueError):  # no stream, or one without a file descriptor
        null = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(null, stream.fileno())
        finally:
            os.close(null)


class Progress:
    """Shows the newest metrics of a run on standard error.

        progress = Progress("Qfleet CartPole-v1", {"agent_steps": 300_000}, goal=475.0)
        progress.show(row, "-", seconds_left=60.0)  # repeatedly; progress.note("text") prints a permanent line
        progress.close()

    ``limits`` holds the run's limits by metric name, and ``goal`` its goal, for the live table. ``on_closed`` is called
    when standard error is a pipe that has been closed; after that nothing is shown.
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
        else:
            self.note(title)

    def note(self, text: str) -> None:
        """Print ``text`` as a permanent line, above the live table if there is one."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=not self.console.is_terminal)

    def show(self, row: Mapping[str, Any], last_eval: str, seconds_left: float) -> None:
        """Show ``row`` (from `RunStats.row`), the last evaluation's return and the seconds left (inf: unknown)."""
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
        acts = not _is_offline(row)
        if acts:
            table.add_row("agent steps", f"{row['agent_steps']:,}", "frames", f"{row['frames']:,}")
            if words := _actors(row):
                table.add_row("actors", words.removeprefix("actors "))
        most = " or ".join(f"{most:,} {name.replace('_', ' ')}" for name, most in self._limits.items())
        table.add_row("limit", most, "", bar)
        rate, updates_rate = number(row["steps_per_s"], ",.0f"), number(row["updates_per_s"], ",.1f")
        table.add_row(*(["steps/s", rate] if acts else []), "updates/s", updates_rate)
        ratio = ["samples per insert", f"{row['samples_per_insert']:.2f}"]
        table.add_row("updates", f"{row['updates']:,}", *(ratio if acts else []))
        epsilon = ["epsilon", f"{row['epsilon_min']:.4g}"]
        table.add_row(*(epsilon if acts else []), "learner busy", f"{row.get('learner_busy', 0.0):.0%}")
        stored, size = row.get("replay_stored", 0), row.get("replay_bytes", 0) / 2**20
        table.add_row("replay", f"{stored:,.0f} items", "compressed", f"{size:,.0f} MiB")
        if acts:
            table.add_row("training return", number(row["train_return"]), "greedy return", number(row["greedy_return"]))
        table.add_row("last evaluation", last_eval, "goal", number(self._goal))
        table.add_row("time", duration(row["wall_seconds"]), "time left, at most", duration(seconds_left))
        return table

    def close(self) -> None:
        """Stop updating the live table; the last one stays on the screen."""
        if self._live is not None:
            self._live.stop()


def plain_line(row: Mapping[str, Any], last_eval: str, seconds_left: float) -> str:
    """The metrics of the live table in one line, for output that is not a terminal; arguments as in `Progress.show`."""
    updates = f"updates {row['updates']:,} ({number(row['updates_per_s'])}/s)"
    words = [f"[{duration(row['wall_seconds'])}]"]
    if _is_offline(row):
        words += [updates]
    else:
        words += [
            f"steps {row['agent_steps']:,} ({number(row['steps_per_s'], '.0f')}/s) {updates}",
            f"samples/insert {row['samples_per_insert']:.2f} eps {row['epsilon_min']:.3g}",
            f"return {number(row['train_return'])} greedy {number(row['greedy_return'])}",
        ]
    if actors := _actors(row):
        words += [actors]
    words += [f"eval {last_eval}"]
    if math.isfinite(seconds_left):
        words += [f"at most {duration(seconds_left)} left"]
    return " ".join(words)


def _actors(row: Mapping[str, Any]) -> str:
    """The living and the wanted actors if their numbers differ, else ""."""
    living, wanted = row.get("actors"), row.get("actors_wanted")
    return "" if living == wanted or _is_offline(row) else f"actors {living} of {wanted}"


def _is_offline(row: Mapping[str, Any]) -> bool:
    """Whether the row is of a run without actors: there are updates, but no agent steps."""
    return bool(row["updates"] and not row["agent_steps"])


def duration(seconds: float) -> str:
    """Seconds as ``h:mm:ss``, or a dash if they are not finite."""
    if not math.isfinite(seconds):
        return "-"
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def number(value: float | None, digits: str = ".1f") -> str:
    """``value`` in the format ``digits``, or a dash if it is None or not finite."""
    return "-" if value is None or not math.isfinite(value) else f"{value:{digits}}"
