"""A metric sink that keeps the newest value of each figure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class LatestMetrics:
    """`MetricSink` that keeps the newest value of each figure in `values`."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def report(self, metrics: Mapping[str, Any]) -> None:
        """Keep the newest value of each figure."""
        self.values.update(metrics)
