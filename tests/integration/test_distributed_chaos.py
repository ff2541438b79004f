"""`qfleet bench chaos` with a real run, for a fault or two."""

from __future__ import annotations

import pytest

from benchmarks import chaos


@pytest.mark.slow
def test_a_run_loses_nothing_that_replay_has_acknowledged(tmp_path):
    lines = []
    c = chaos.Command(minutes=0.2, seed=2, warm_up=5.0, fault_free=5.0, to=str(tmp_path / "chaos"))
    figures = chaos.run(c, lines.append)
    assert figures["faults"] >= 1, lines
    assert figures["acknowledged"] > 0
    found = {name: figures[name] for name in ("lost", "duplicates", "regressions", "leftover_processes")}
    assert set(found.values()) == {0}, (found, lines)
    assert figures["stored"] >= figures["acknowledged"] - figures["lost_within_snapshot_bound"]
