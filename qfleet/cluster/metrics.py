"""A component's metrics: kept for the driver, and exported on Ray's metrics endpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qfleet.run.latest_metrics import LatestMetrics


class RayMetrics(LatestMetrics):
    """`LatestMetrics` that also exports each metric as the gauge `qfleet_<component>_<name>` of Ray's metrics."""

    def __init__(self, component: str, run: str) -> None:
        super().__init__()
        self._component, self._run = component, run
        self._gauges: dict[str, Any] = {}

    def report(self, metrics: Mapping[str, Any]) -> None:
        """Keep the newest value of each metric, a number, and set its gauge."""
        from ray.util.metrics import Gauge

        super().report(metrics)
        for name, value in metrics.items():
            if name not in self._gauges:
                gauge = Gauge(f"qfleet_{self._component}_{name}", f"{self._component}: {name}", ("run",))
                gauge.set_default_tags({"run": self._run})
                self._gauges[name] = gauge
            self._gauges[name].set(float(value))
