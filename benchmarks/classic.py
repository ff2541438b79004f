"""`qfleet bench classic` (`make results`): run every classic method and write the tables of docs/classic.md.

A finished (row, seed) is kept in runs/results/ROW/seed-S and not run again. Remove that directory to measure it again.
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
from rl.errors import BadInput, RunFault, suggestion

ROOT = Path(__file__).parent.parent
TABLES = ("results", "regressors", "parts")  # in docs/classic.md, each between two comments


@dataclass(frozen=True)
class Command:
    """Run the rows of the tables in docs/classic.md over several seeds; continues where it stopped."""

    rows: tuple[str, ...] = ()
    """Names of the rows to run; none: all of them."""
    jobs: int = 1
    """Number of rows to run in parallel, each in a single-threaded process."""
    folder: str = "runs/results"
    """Directory for the runs of all rows."""
    write: bool = True
    """Write the tables and the pictures into docs/."""
    json: bool = False
    """The last line of output is a JSON object with the figures."""

    def __post_init__(self) -> None:
        at_least(self, 1, "jobs")
        for name in self.rows:
            if name not in ROWS:
                raise BadInput(f"--rows: unknown row {name!r}: {suggestion(name, ROWS)}")
        if len(set(self.rows)) < len(self.rows):
            raise BadInput("--rows lists a row twice: write each row once")


def run(c: Command, log: Callable[[str], None] = print) -> dict[str, Any]:
    """Run the missing rows and write the tables and pictures.

    Returns ``rows``, the figures of each row, and ``passed``, whether all rows that ran reach their targets. Raises
    BadInput if the directory cannot be written, RunFault if a row failed (after all others have run).
    """
    folder, names = Path(c.folder), list(c.rows or ROWS)
    began, failed = time.monotonic(), []
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"--folder is {folder}, which cannot be written: {error.strerror}") from error
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with _CommandPool(c.jobs) as pool:
        pending = {pool.submit(_run_row, ROWS[name], folder / name): name for name in names}
        for count, future in enumerate(concurrent.futures.as_completed(pending), 1):
            name = pending[future]
            try:
                result = result_line(ROWS[name], future.result())
            except RunFault as fault:
                failed.append(name)
                result = str(fault)
            log(f"[{time.monotonic() - began:,.0f} s] {count} of {len(names)}  {result}")
    figures = {name: summary for name in ROWS if (summary := _summary(folder / name)) is not None}
    if c.write:
        write_tables(figures, ROOT / "docs" / "classic.md")
        write_figures(figures, ROOT / "docs" / "results" / "classic.jsonl")
        missing = draw_all(folder, ROOT / "docs" / "results" / "classic")
        if missing:
            log(f"pictures not drawn, because their rows have not been run: {', '.join(missing)}")
    if failed:
        raise RunFault(f"rows that failed: {', '.join(failed)}: see their log.txt in {folder}")
    return {"passed": all(reaches_target(ROWS[name], figures[name]) for name in names), "rows": figures}


class _CommandPool(concurrent.futures.ThreadPoolExecutor):
    """Threads that each run a command. An exception in the `with` block terminates all commands and starts no more."""

    running: ClassVar[set[subprocess.Popen[str]]] = set()

    def __exit__(self, kind: Any, *rest: Any) -> None:
        if kind is not None:
            self.shutdown(wait=False, cancel_futures=True)
            for process in list(self.running):
                process.terminate()
        super().__exit__(kind, *rest)


def _run_row(row: Row, folder: Path) -> dict[str, Any]:
    """Run `qfleet classic` for the missing seeds of a row; returns the row's summary. Raises RunFault if it fails."""
    folder.mkdir(parents=True, exist_ok=True)
    if row.needs is not None and not (ROOT / row.needs[0]).exists():
        _run_qfleet(row.needs[1], folder)
    summary: dict[str, Any] = json.loads(
        _run_qfleet([*row.arguments, "--run-dir", str(folder.resolve()), "--json"], folder).splitlines()[-1]
    )
    return summary


def _run_qfleet(arguments: Sequence[str], folder: Path) -> str:
    """Run a qfleet command and append its output to log.txt in ``folder``; returns its standard output.

    Raises RunFault if the command fails.
    """
    with (folder / "log.txt").open("a") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "qfleet", *arguments],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        _CommandPool.running.add(process)
        output, _ = process.communicate()
        _CommandPool.running.discard(process)
        log.write(output)
    if process.returncode != 0:
        raise RunFault(f"`qfleet {' '.join(arguments)}` ended with status {process.returncode}: see {folder}/log.txt")
    return output


def _summary(folder: Path) -> dict[str, Any] | None:
    file = folder / "summary.json"
    return json.loads(file.read_text()) if file.is_file() else None


def reaches_target(row: Row, s: dict[str, Any]) -> bool:
    """Whether the mean over seeds in the summary ``s`` reaches the row's target; true if it has none."""
    if row.target is None:
        return True
    return bool(s[row.figure] >= row.target if row.at_least else s[row.figure] <= row.target)


def target_text(row: Row) -> str:
    """The row's target as text, such as "at least 0.7"; "-" if it has none."""
    if row.target is None:
        return "-"
    what = "" if row.figure == "mean_return" else f" {row.figure.replace('_', ' ')}"
    return f"{'at least' if row.at_least else 'at most'} {row.target:g}{what}"


def result_line(row: Row, s: dict[str, Any]) -> str:
    """One line with the row's result, its target and whether it was reached."""
    verdict = "" if row.target is None else ", reached" if reaches_target(row, s) else ", NOT reached"
    result = f"{row.name}: {row.figure} {s[row.figure]:.4g}, target {target_text(row)}{verdict}"
    return f"{result}, {s['wall_seconds']:.0f} s per seed"


def write_tables(figures: dict[str, dict[str, Any]], page: Path) -> None:
    """Write each table between its two comments in the file ``page``; ``figures`` are the summaries by row."""
    columns = (
        "command (and --seeds)",
        "must reach",
        "mean",
        "worst seed",
        "seeds 1, 2, ...",
        "wall (CPU) seconds per seed",
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
    verdict = "" if reaches_target(row, s) else " (missed)"
    command = " ".join(row.arguments[: row.arguments.index("--seeds")])
    return (
        f"| `qfleet {command}` | {target_text(row)} | {s[row.figure]:.4g}{verdict} | {worst:.4g} | {listed} "
        f"| {s['wall_seconds']:,.0f} ({s['cpu_seconds']:,.0f}) |"
    )


def write_figures(figures: dict[str, dict[str, Any]], file: Path) -> None:
    """Write one JSON object per row to ``file``, without the path of the run."""
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"row": name, **{k: v for k, v in s.items() if k != "run_dir"}} for name, s in figures.items()]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
