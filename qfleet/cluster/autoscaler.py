"""What Ray's autoscaler says of the nodes that have not joined the cluster."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ray.experimental.internal_kv import _internal_kv_get

REPORT = "__autoscaling_status"  # where Ray keeps the last report of its autoscaler, as JSON


def nodes_that_have_not_joined() -> str:
    """One sentence about the nodes that Ray's autoscaler sets up, or has failed to set up; "" if there are none.

    Version 2 of the autoscaler keeps no such report; version 1 is that of machines of one's own (`type: local`).
    """
    return describe_report(json.loads(_internal_kv_get(REPORT) or "{}"))


def describe_report(report: Mapping[str, Any]) -> str:
    """The sentence of `nodes_that_have_not_joined` for the content of REPORT."""
    nodes = report.get("autoscaler_report") or {}
    states = {address: "failed" for address, _ in nodes.get("failed_nodes") or ()}
    states |= {address: state for address, _, state in nodes.get("pending_nodes") or ()}
    if not states:
        return ""
    named = ", ".join(f"{address} ({state})" for address, state in sorted(states.items()))
    return f"not joined yet: {named}; `ray monitor deploy/FILE` says why"
