"""The newest of each figure, for who polls it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class LatestMetrics:
    """`MetricSink` that keeps the newest value of each figure."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def report(self, metrics: Mapping[str, Any]) -> None:
        self.values.update(metrics)
