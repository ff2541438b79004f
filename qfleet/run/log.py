"""Logs the metrics of a run to TensorBoard, metrics.csv and eval.csv."""

from __future__ import annotations

import contextlib
import csv
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qfleet.run.board_file import BoardFile

# fmt: off
METRIC_COLUMNS = (
    "wall_seconds", "agent_steps", "frames", "updates", "steps_per_s", "updates_per_s", "samples_per_insert",
    "replay_stored", "replay_bytes", "epsilon_min", "train_return", "greedy_return", "episodes", "loss", "grad_norm",
    "q_mean", "target_syncs", "learner_busy", "weights_version", "evaluation_seconds", "actors",
    "restarts", "checkpoint_age",
)
EVAL_COLUMNS = (
    "wall_seconds", "agent_steps", "updates", "episodes", "mean_return", "std_return", "worst_return", "epsilon", "kind",
    "weights_version", "seconds",
)
# fmt: on


class RunLog:
    """Writer of a run's metrics.csv, eval.csv and TensorBoard files.

        log = RunLog(folder)
        log.metrics(stats.row(epsilon_min))  # repeatedly; log.evaluation(row) after each evaluation
        log.close()

    ``over`` is the x-axis in TensorBoard: "agent_steps", or "updates" of an offline run. ``resumed`` holds the
    agent_steps, updates and wall_seconds of the checkpoint that a resumed run starts from; rows beyond them are
    deleted, because the run repeats that part. A method that raises OSError has kept its row of a CSV file: the next call
    writes it, too. Points for TensorBoard are not kept.
    """

    def __init__(self, folder: Path, over: str = "agent_steps", resumed: Mapping[str, float] | None = None) -> None:
        self._over = over
        # TensorBoard hides points of earlier files from this step on
        purge = None if resumed is None else int(resumed[over]) + 1
        self._board = BoardFile(folder / "tensorboard", purge)
        self._metrics = _Csv(folder / "metrics.csv", METRIC_COLUMNS, resumed)
        self._evals = _Csv(folder / "eval.csv", EVAL_COLUMNS, resumed)

    def metrics(self, row: Mapping[str, Any]) -> None:
        """Log a row of training metrics (METRIC_COLUMNS) to metrics.csv, and the finite ones to TensorBoard.

        Rows of eval.csv that still wait are written, too. Raises OSError.
        """
        self._metrics.write(row)
        self._evals.send()
        points = {n: v for n, v in row.items() if n in METRIC_COLUMNS and n != "agent_steps" and _is_finite(v)}
        self._board.add({f"train/{name}": value for name, value in points.items()}, int(row[self._over]))

    def returns_by_epsilon(self, agent_steps: int, rows: Mapping[float, float]) -> None:
        """Log the mean training return at each epsilon of the ladder, to TensorBoard only. Raises OSError."""
        self._board.add({f"return_by_epsilon/{epsilon:.6g}": mean for epsilon, mean in rows.items()}, agent_steps)

    def evaluation(self, row: Mapping[str, Any]) -> None:
        """Log a row of an evaluation (EVAL_COLUMNS). Raises OSError; KeyError if one of its returns is missing."""
        names = ("mean_return", "std_return", "worst_return")
        points = {f"evaluation/{name}": row[name] for name in names}
        self._evals.write(row)
        self._board.add(points, int(row[self._over]))

    def close(self) -> None:
        """Write what is waiting, and close the files. Raises OSError if that fails."""
        self._board.close()
        with contextlib.ExitStack() as files:  # does all four, even if one fails
            for file in (self._metrics, self._evals):
                files.callback(file.close)
                files.callback(file.send)


class _Csv:
    """A CSV file to which rows are appended. A new run creates it; a resume deletes the rows beyond its checkpoint."""

    def __init__(self, file: Path, columns: tuple[str, ...], resumed: Mapping[str, float] | None) -> None:
        kept = _rows_until(file, resumed) if resumed is not None else []
        if resumed is not None or not file.exists():
            temporary = file.with_name(f".{file.name}")
            with temporary.open("w", newline="") as rewritten:
                writer = csv.DictWriter(rewritten, columns, restval="", extrasaction="ignore")
                writer.writeheader()
                writer.writerows(kept)
            temporary.replace(file)
        self._file = file.open("ab", buffering=0)
        self._waiting = b""  # what is not in the file yet
        self._columns = columns

    def write(self, row: Mapping[str, Any]) -> None:
        """Append a row, after those that still wait. Raises OSError; the row then waits."""
        line = io.StringIO(newline="")
        writer = csv.DictWriter(line, self._columns, restval="", extrasaction="ignore")
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) and abs(v) < 1e5 else v for k, v in row.items()})
        self._waiting += line.getvalue().encode()
        self.send()

    def send(self) -> None:
        """Write the rows that wait. Raises OSError; a disk may then have taken a part of them, and the rest waits."""
        while self._waiting:
            self._waiting = self._waiting[self._file.write(self._waiting) :]

    def close(self) -> None:
        self._file.close()


def _rows_until(file: Path, resumed: Mapping[str, float]) -> list[dict[str, str]]:
    """The rows of a file up to the checkpoint, without a last row that a killed process wrote only in part."""
    if not file.exists():
        return []
    with file.open(newline="", errors="replace") as rows:  # a damaged row is then dropped
        return [row for row in csv.DictReader(rows) if None not in row.values() and not _is_beyond(row, resumed)]


def _is_beyond(row: Mapping[str, str], resumed: Mapping[str, float]) -> bool:
    try:
        return any(float(row[name]) > most for name, most in resumed.items())
    except (KeyError, ValueError):
        return True


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
