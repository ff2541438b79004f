"""What Ray's autoscaler says of the nodes that are not in the cluster."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import ray
from ray.experimental.internal_kv import _internal_kv_get

REPORT = "__autoscaling_status"  # where Ray keeps the last report of its autoscaler, as JSON


def nodes_outside() -> str:
    """One sentence about nodes that Ray's autoscaler sets up, could not set up, or has lost; "" if there are none.

    Version 2 of the autoscaler keeps no such report; version 1 is that of machines of one's own (`type: local`).
    """
    try:
        return describe_report(json.loads(_internal_kv_get(REPORT) or "{}"))
    except (ray.exceptions.RayError, ValueError, TypeError):  # only a warning is the poorer
        return ""


def describe_report(report: Mapping[str, Any]) -> str:
    """The sentence of `nodes_outside` for the content of REPORT. Raises ValueError, TypeError."""
    nodes = report.get("autoscaler_report") or {}
    states = {address: "failed" for address, _ in nodes.get("failed_nodes") or ()}
    states |= {address: state for address, _, state in nodes.get("pending_nodes") or ()}
    if not states:
        return ""
    named = ", ".join(f"{address} ({state})" for address, state in sorted(states.items()))
    return f"not in the cluster: {named}; `ray monitor deploy/FILE` says why"
