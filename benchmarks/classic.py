"""`qfleet bench classic` (`make results`): every classic method over seeds, and the table of docs/classic.md.

Each (row, seed) is kept under runs/results/ROW/seed-S once it is done, and not done again; remove it to measure it
again.
"""

from __future__ import annotations

import concurrent.futures
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.classic_pictures import draw_all
from benchmarks.classic_rows import ROWS, Row
from rl.bounds import at_least
from rl.errors import BadInput, RunFault, nearest

ROOT = Path(__file__).parent.parent
TABLES = ("results", "regressors", "parts")  # of docs/classic.md, each between two marks


@dataclass(frozen=True)
class Command:
    """Every row of the ladder's table, over seeds; goes on where it stopped."""

    rows: tuple[str, ...] = ()
    """Rows to run; all by default."""
    jobs: int = 1
    """Rows that run side by side, each in a process of one thread."""
    folder: str = "runs/results"
    """Where each row is kept."""
    write: bool = True
    """Write the table and the pictures into docs/."""
    json: bool = False
    """The last line of output is a JSON object with the figures."""

    def __post_init__(self) -> None:
        at_least(self, 1, "jobs")
        for name in self.rows:
            if name not in ROWS:
                raise BadInput(f"--rows: unknown row {name!r}: {nearest(name, ROWS)}")
        if len(set(self.rows)) < len(self.rows):
            raise BadInput("--rows names a row twice: write each once")


def run(c: Command, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Run what is missing and write the table; returns the figures of every row. Raises BadInput, RunFault."""
    folder, names = Path(c.folder), list(c.rows or ROWS)
    began, failed = time.monotonic(), []
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"--folder {folder} cannot be written: {error.strerror}") from error
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with _Pool(c.jobs) as pool:
        waiting = {pool.submit(_run_row, ROWS[name], folder / name): name for name in names}
        for count, future in enumerate(concurrent.futures.as_completed(waiting), 1):
            name = waiting[future]
            try:
                say(f"[{time.monotonic() - began:,.0f} s] {count} of {len(names)}  {line(ROWS[name], future.result())}")
            except RunFault as fault:
                failed.append(name)
                say(f"[{time.monotonic() - began:,.0f} s] {count} of {len(names)}  {fault}")
    figures = {name: summary for name in ROWS if (summary := _summary(folder / name)) is not None}
    if c.write:
        write_tables(figures, ROOT / "docs" / "classic.md")
        write_figures(figures, ROOT / "docs" / "results" / "classic.jsonl")
        missing = draw_all(folder, ROOT / "docs" / "results" / "classic")
        if missing:
            say(f"pictures that wait for their rows: {', '.join(missing)}")
    if failed:
        raise RunFault(f"rows that failed: {', '.join(failed)}: their log.txt under {folder} says why")
    return {"passed": all(reached(ROWS[name], figures[name]) for name in names), "rows": figures}


class _Pool(concurrent.futures.ThreadPoolExecutor):
    """Threads that each wait for a command; whatever ends the wait early ends the commands and starts no other."""

    running: ClassVar[set[subprocess.Popen[str]]] = set()

    def __exit__(self, kind: Any, *rest: Any) -> None:
        if kind is not None:
            self.shutdown(wait=False, cancel_futures=True)
            for process in list(self.running):
                process.terminate()
        super().__exit__(kind, *rest)


def _run_row(row: Row, folder: Path) -> dict[str, Any]:
    """Run `qfleet classic` in a process of its own, for the seeds not done before. Raises RunFault."""
    folder.mkdir(parents=True, exist_ok=True)
    if row.needs is not None and not (ROOT / row.needs[0]).exists():
        _run(row.needs[1], folder)
    summary: dict[str, Any] = json.loads(
        _run([*row.words, "--run-dir", str(folder.resolve()), "--json"], folder).splitlines()[-1]
    )
    return summary


def _run(words: Sequence[str], folder: Path) -> str:
    """Run a command of qfleet, with its errors in the folder's log.txt; returns what it printed. Raises RunFault."""
    with (folder / "log.txt").open("a") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "qfleet", *words],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        _Pool.running.add(process)
        said, _ = process.communicate()
        _Pool.running.discard(process)
        log.write(said)
    if process.returncode != 0:
        raise RunFault(f"`qfleet {' '.join(words)}` ended with status {process.returncode}: see {folder}/log.txt")
    return said


def _summary(folder: Path) -> dict[str, Any] | None:
    file = folder / "summary.json"
    return json.loads(file.read_text()) if file.is_file() else None


def reached(row: Row, s: dict[str, Any]) -> bool:
    """Whether the mean over seeds meets the row's bar, if it has one."""
    if row.bar is None:
        return True
    return bool(s[row.figure] >= row.bar if row.at_least else s[row.figure] <= row.bar)


def bar(row: Row) -> str:
    """The figure that a row must reach, in words."""
    if row.bar is None:
        return "-"
    what = "" if row.figure == "mean_return" else f" {row.figure.replace('_', ' ')}"
    return f"{'at least' if row.at_least else 'at most'} {row.bar:g}{what}"


def line(row: Row, s: dict[str, Any]) -> str:
    """A row's outcome in words."""
    verdict = "" if row.bar is None else ", reached" if reached(row, s) else ", NOT reached"
    return f"{row.name}: {row.figure} {s[row.figure]:.4g}, bar {bar(row)}{verdict}, {s['wall_seconds']:.0f} s a seed"


def write_tables(figures: dict[str, dict[str, Any]], page: Path) -> None:
    """Put each table between its two marks on the page."""
    columns = (
        "command (and --seeds)",
        "must reach",
        "mean",
        "worst seed",
        "seeds 1, 2, ...",
        "wall (CPU) seconds a seed",
    )
    head = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    text = page.read_text()
    for name in TABLES:
        begin, end = f"<!-- {name}: written by `make results` -->", f"<!-- {name}: end -->"
        rows = [_table_row(ROWS[row], summary) for row, summary in figures.items() if ROWS[row].table == name]
        text = text.split(begin)[0] + "\n".join([begin, *head, *rows, end]) + text.split(end)[1]
    page.write_text(text)


def _table_row(row: Row, s: dict[str, Any]) -> str:
    each: Sequence[float] = s["each"][row.figure]
    worst = min(each) if row.at_least else max(each)
    listed = ", ".join(f"{value:.4g}" for value in each) if len(each) <= 5 else f"{len(each)} seeds"
    verdict = "" if reached(row, s) else " (missed)"
    command = " ".join(row.words[: row.words.index("--seeds")])
    return (
        f"| `qfleet {command}` | {bar(row)} | {s[row.figure]:.4g}{verdict} | {worst:.4g} | {listed} "
        f"| {s['wall_seconds']:,.0f} ({s['cpu_seconds']:,.0f}) |"
    )


def write_figures(figures: dict[str, dict[str, Any]], file: Path) -> None:
    """One JSON object a row, without the place where it was measured."""
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"row": name, **{k: v for k, v in s.items() if k != "run_dir"}} for name, s in figures.items()]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
