"""Where a run's figures go: TensorBoard, metrics.csv and eval.csv."""

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
    "q_mean", "target_syncs", "learner_busy", "weights_version", "evaluation_seconds",
)
EVAL_COLUMNS = (
    "wall_seconds", "agent_steps", "updates", "episodes", "mean_return", "std_return", "worst_return", "epsilon", "kind",
    "weights_version", "seconds",
)
# fmt: on


class RunLog:
    """metrics.csv, eval.csv and TensorBoard of a run; a resumed run appends to them."""

    def __init__(self, folder: Path, over: str = "agent_steps") -> None:
        self._over = over
        self._board = SummaryWriter(str(folder / "tensorboard"))
        self._metrics = _Csv(folder / "metrics.csv", METRIC_COLUMNS)
        self._evals = _Csv(folder / "eval.csv", EVAL_COLUMNS)

    def metrics(self, row: Mapping[str, Any]) -> None:
        """A row of training figures; scalars also go to TensorBoard over agent steps (offline: learner updates)."""
        self._metrics.write(row)
        for name, value in row.items():
            if name in METRIC_COLUMNS and name != "agent_steps" and _finite(value):
                self._board.add_scalar(f"train/{name}", value, int(row[self._over]))

    def returns_by_epsilon(self, agent_steps: int, rows: Mapping[float, float]) -> None:
        """Mean training return of each epsilon of the fleet."""
        for epsilon, mean in rows.items():
            self._board.add_scalar(f"return_by_epsilon/{epsilon:.6g}", mean, agent_steps)

    def evaluation(self, row: Mapping[str, Any]) -> None:
        """A row of an evaluation."""
        self._evals.write(row)
        for name in ("mean_return", "std_return", "worst_return"):
            self._board.add_scalar(f"evaluation/{name}", row[name], int(row[self._over]))

    def close(self) -> None:
        """Flush and close."""
        self._board.close()
        self._metrics.close()
        self._evals.close()


class _Csv:
    def __init__(self, file: Path, columns: tuple[str, ...]) -> None:
        fresh = not file.exists()
        self._file = file.open("a", newline="")
        self._writer = csv.DictWriter(self._file, columns, restval="", extrasaction="ignore")
        if fresh:
            self._writer.writeheader()

    def write(self, row: Mapping[str, Any]) -> None:
        self._writer.writerow({k: f"{v:.6g}" if isinstance(v, float) and abs(v) < 1e5 else v for k, v in row.items()})
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
