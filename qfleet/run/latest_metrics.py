"""A metric sink that keeps the newest value of each metric."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class LatestMetrics:
    """`MetricSink` that keeps the newest value of each metric in `values`."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def report(self, metrics: Mapping[str, Any]) -> None:
        """Update `values` with ``metrics``."""
        self.values.update(metrics)
