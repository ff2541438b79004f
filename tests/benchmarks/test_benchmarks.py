"""How the benchmarks evaluate measurements (pass or fail, formulas), and the progress lines that they print."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch

from benchmarks import measure, pipeline, sizing, soak
from benchmarks.processes import shard as shard_process
from benchmarks.processes.plain_stream import plain_stream
from protos.codec import pack_segment
from qfleet.cli import main as cli
from qfleet.cluster.weights import RayWeightSource
from replay.store.selectors import SelectorConfig
from replay.store.shard import Shard
from replay.wire.writer import Writer
from rl.errors import RunFault
from tests.conftest import SMALL, make_segment

NOWHERE = "127.0.0.1:1"  # no shard


@pytest.mark.parametrize(
    ("shard", "client", "flat"),
    [
        (lambda t: 180.0, lambda t: 500.0, True),
        (lambda t: 180.0 if t > 60 else 50 + 2 * t, lambda t: 500 + t % 7, True),  # filling, and noise
        (lambda t: 180 + 6 * t / 1800, lambda t: 500.0, False),  # 3.4%
        (lambda t: 180 + 3 * t / 1800, lambda t: 500.0, True),  # 1.6%
        (lambda t: 180.0, lambda t: 500 + 20 * t / 1800, False),
    ],
)
def test_flat_memory_passes_and_growing_memory_fails(shard, client, flat):
    readings = [
        soak.Reading(t, 5_000.0 * t, t, shard(t), 14, 8, client(t), 12, 15) for t in [10.0 * i for i in range(181)]
    ]
    figures = soak.judge_readings(readings, capacity=200_000, seconds=1800)
    assert figures["flat"] is flat
    assert (figures["full_seconds"], figures["judged_from_seconds"], figures["wraps"]) == (40, 160, 44)
    assert figures["shard_mib_last"] == shard(1800)


def test_fit_growth_returns_slope_and_relative_growth():
    slope, growth = soak.fit_growth([0, 1800, 3600], [100, 101, 102])
    assert (slope, growth) == (pytest.approx(2), pytest.approx(0.02))


def test_a_soak_that_is_too_short_to_fill_the_shard_raises():
    readings = [soak.Reading(t, 10.0 * t, t, 1, 1, 1, 1, 1, 1) for t in range(100)]
    with pytest.raises(RunFault, match="990 transitions were inserted into a shard of 1,000"):
        soak.judge_readings(readings, capacity=1_000, seconds=100)


def test_an_inconsistent_shard_reports_the_inconsistency(rng):
    shard = Shard(100, SMALL, SelectorConfig(), limited=False)
    shard.insert("w", 1, pack_segment(make_segment(rng)))
    assert shard_process.verdict(shard) == shard_process.VALID
    shard.storage.bytes += 1
    assert shard_process.verdict(shard) == "invalid: bytes do not add up"


def test_a_failed_benchmark_exits_with_status_1(monkeypatch, capsys):
    for passed in (True, False):
        monkeypatch.setattr(soak, "run", lambda c, log, passed=passed: {"passed": passed})
        assert cli.main(["bench", "soak", "--json"]) == (not passed)
        assert json.loads(capsys.readouterr().out) == {"passed": passed}


def test_sizing_follows_the_formulas_of_the_docs():
    sizes = {"insert_bytes": 350.0, "resident_bytes": 400.0, "weights_bytes": 7e6}
    c = sizing.Command(steps=1_000, inserts=60_000, samples=50_000, batch_size=500, updates=20, actors_per_node=16)
    needs = sizing.needs_of_actors(c, sizes, 1_000)
    assert needs["traffic into the shards, MB/s"] == 350
    assert (needs["shards for inserts alone"], needs["shards for inserts and samples"]) == (17, 17)
    assert needs["samples per insert"] == 0.01
    assert needs["memory for one hour of inserts, GB"] == 1_440
    assert (needs["actor nodes"], needs["weights to the actor nodes, MB/s"]) == (63, 441)
    measured = sizing.measure_bytes(500, c.network)
    assert 200 < measured["payload_bytes"] < measured["insert_bytes"] < measured["resident_bytes"] < 500
    assert 8 * 200 < measured["sample_bytes"] < 10 * 300
    assert measured["weights_bytes"] == 4 * 1_687_206  # as Mnih et al. 2015 for 6 actions


def test_sizing_names_the_counters_of_a_run():
    with (
        contextlib.closing(Writer([NOWHERE])) as w,
        contextlib.closing(measure.unlimited_sampler([NOWHERE], 32, 4)) as s,
    ):
        exported = {f"qfleet_actor_replay_{name}" for name in w.stats()}
        exported |= {f"qfleet_learner_replay_{name}" for name in s.stats()}
    exported |= {f"qfleet_actor_weights_{name}" for name in RayWeightSource(None).stats()}
    for counters in sizing.COUNTED.values():
        assert set(re.findall(r"\w+", counters)) <= exported


def test_a_child_that_fails_is_a_run_fault(monkeypatch, capfd):
    """Its error output is printed above, and the message is one line."""
    with pytest.raises(RunFault, match="^qfleet train ended with status 3: see its error output above$"):
        pipeline._run_child(
            [sys.executable, "-c", "import sys; print('why', file=sys.stderr); sys.exit(3)"], 60, "qfleet train"
        )
    assert capfd.readouterr().err == "why\n"
    with pytest.raises(RunFault, match="^x did not end within 0.1 s$"):
        pipeline._run_child(["sleep", "5"], 0.1, "x")
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(RunFault, match="the replay shard did not start"), measure.shard_process(10):
        pass
    with pytest.raises(RunFault, match="the plain gRPC server did not start"), plain_stream(b"x"):
        pass


def test_progress_lines_are_flushed_at_once(monkeypatch):
    out, seen = io.BytesIO(), []
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out))
    monkeypatch.setattr(soak, "run", lambda c, log: (log("a line"), seen.append(out.getvalue()), {})[-1])
    assert cli.main(["bench", "soak"]) == 0
    assert seen == [b"a line\n"]


@pytest.fixture
def cases(monkeypatch):
    """Make cases that take the given seconds of a fake clock."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(measure, "time", SimpleNamespace(monotonic=lambda: clock.now))

    def take(seconds):
        clock.now += seconds
        return {"per_s": seconds}

    return lambda **seconds: {name: (lambda s=s: take(s)) for name, s in seconds.items()}


def test_progress_lines_give_the_time_left(cases):
    lines = []
    medians = measure.run_alternating(cases(short=30.0, long=150.0), 2, lines.append, after=20.0)
    assert medians == {"short": {"per_s": 30.0}, "long": {"per_s": 150.0}}
    assert lines == [
        "measuring 4 windows: 2 for each of 2 cases (short; long)",
        "window 1 of 4, short: per_s 30.00; about 2 min left",  # 30 + 2 * 30, the only known duration so far, + 20 s
        "window 2 of 4, long: per_s 150.00; about 3 min left",  # 30 + 150 + 20 s
        "window 3 of 4, short: per_s 30.00; about 3 min left",  # 150 + 20 s
        "window 4 of 4, long: per_s 150.00; about 20 s left",
    ]


def test_with_expected_durations_the_first_line_gives_the_total(cases):
    lines = []
    measure.run_alternating(cases(short=30.0, long=150.0), 1, lines.append, {"short": 60.0, "long": 3600.0})
    assert lines == [
        "measuring 2 windows: 1 for each of 2 cases (short; long); about 61 min in total",
        "window 1 of 2, short: per_s 30.00; about 60 min left",
        "window 2 of 2, long: per_s 150.00",
    ]


@pytest.mark.parametrize(
    ("flags", "minutes", "precisions"),
    [
        ({}, "20 min", 2),
        ({"sb3": False}, "16 min", 2),
        ({"seconds": 5.0, "windows": 1}, "4 min", 2),
        ({}, "13 min", 1),
    ],
)
def test_the_pipeline_prints_its_estimated_duration(flags, minutes, precisions, monkeypatch):
    lines = []
    monkeypatch.setattr(pipeline, "importlib", SimpleNamespace(util=SimpleNamespace(find_spec=lambda name: name)))
    for name, figures in {
        "_measure_loop": {"steps_per_s": 80.0, "updates_per_s": 20.0},
        "_measure_limits": {"float32": 25.0, "bfloat16": 30.0},
        "_measure_sb3": {"sb3_steps_per_s": 80.0},
        "_measure_efficiency": 0.9,
    }.items():
        monkeypatch.setattr(pipeline, name, lambda *_, figures=figures, **__: figures)
    native = torch.bfloat16 if precisions == 2 else torch.float32
    monkeypatch.setattr(pipeline, "pick_dtype", lambda precision, device: native)
    figures = pipeline.run(pipeline.Command(**flags), lines.append)
    assert figures["learner_efficiency"] == 0.9
    assert ("updates_per_s_bf16" in figures) == (precisions == 2)
    if precisions == 1:
        assert lines.pop(0) == "bfloat16 is skipped: this processor does not support it"
    assert lines[0].startswith(f"about {minutes} in total; ")
    assert f"about {minutes} in total" in lines[1]
    assert len(lines) == 2 + flags.get("windows", 3) * (1 + precisions + flags.get("sb3", True)) + precisions + 1
