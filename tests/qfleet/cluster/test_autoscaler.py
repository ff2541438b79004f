"""The report of Ray's autoscaler; tests/cluster reads a real one."""

from __future__ import annotations

from qfleet.cluster.autoscaler import describe_report


def test_nodes_that_are_set_up_and_nodes_that_failed_are_named():
    nodes = {
        "active_nodes": {"local.cluster.node": 1},
        "pending_nodes": [["10.0.0.3", "local.cluster.node", "setting-up"], ["10.0.0.2", "x", "uninitialized"]],
        "failed_nodes": [["10.0.0.4", "x"], ["10.0.0.3", "x"]],
    }
    assert describe_report({"autoscaler_report": nodes}) == (
        "not in the cluster: 10.0.0.2 (uninitialized), 10.0.0.3 (setting-up), 10.0.0.4 (failed); "
        "`ray monitor deploy/FILE` says why"
    )


def test_no_sentence_without_an_autoscaler_or_without_such_nodes():
    assert describe_report({}) == ""
    assert describe_report({"autoscaler_report": None}) == ""
    assert describe_report({"autoscaler_report": {"pending_nodes": [], "failed_nodes": []}}) == ""
