"""Logs the metrics of a run to TensorBoard, metrics.csv and eval.csv."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

# fmt: off
METRIC_COLUMNS = (
    "wall_seconds", "agent_steps", "frames", "updates", "steps_per_s", "updates_per_s", "samples_per_insert",
    "replay_stored", "replay_bytes", "epsilon_min", "train_return", "greedy_return", "episodes", "loss", "grad_norm",
    "q_mean", "target_syncs", "learner_busy", "weights_version", "evaluation_seconds", "actors",
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
    deleted, because the run repeats that part.
    """

    def __init__(self, folder: Path, over: str = "agent_steps", resumed: Mapping[str, float] | None = None) -> None:
        self._over = over
        # TensorBoard hides points of earlier files from this step on
        purge = None if resumed is None else resumed[over] + 1
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=purge)
        self._metrics = _Csv(folder / "metrics.csv", METRIC_COLUMNS, resumed)
        self._evals = _Csv(folder / "eval.csv", EVAL_COLUMNS, resumed)

    def metrics(self, row: Mapping[str, Any]) -> None:
        """Log a row of training metrics (METRIC_COLUMNS) to metrics.csv, and the finite ones to TensorBoard."""
        self._metrics.write(row)
        for name, value in row.items():
            if name in METRIC_COLUMNS and name != "agent_steps" and _is_finite(value):
                self._board.add_scalar(f"train/{name}", value, int(row[self._over]))

    def returns_by_epsilon(self, agent_steps: int, rows: Mapping[float, float]) -> None:
        """Log the mean training return at each epsilon of the ladder, to TensorBoard only."""
        for epsilon, mean in rows.items():
            self._board.add_scalar(f"return_by_epsilon/{epsilon:.6g}", mean, agent_steps)

    def evaluation(self, row: Mapping[str, Any]) -> None:
        """Log a row of an evaluation (EVAL_COLUMNS). Raises KeyError if one of its returns is missing."""
        self._evals.write(row)
        for name in ("mean_return", "std_return", "worst_return"):
            self._board.add_scalar(f"evaluation/{name}", row[name], int(row[self._over]))

    def close(self) -> None:
        """Flush and close the files."""
        self._board.close()
        self._metrics.close()
        self._evals.close()


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
        self._file = file.open("a", newline="")
        self._writer = csv.DictWriter(self._file, columns, restval="", extrasaction="ignore")

    def write(self, row: Mapping[str, Any]) -> None:
        self._writer.writerow({k: f"{v:.6g}" if isinstance(v, float) and abs(v) < 1e5 else v for k, v in row.items()})
        self._file.flush()

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
