"""What the benchmarks make of their measurements: verdicts that can fail, formulas, and what they say meanwhile."""

from __future__ import annotations

import io
import json
import sys
from types import SimpleNamespace

import pytest
import torch

from benchmarks import measure, pipeline, sizing, soak
from benchmarks.processes import shard as shard_process
from protos.codec import pack_segment
from qfleet.cli import main as cli
from replay.store.selectors import SelectorConfig
from replay.store.shard import Shard
from rl.errors import RunFault
from tests.conftest import SMALL, make_segment


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
def test_memory_is_flat_or_not(shard, client, flat):
    readings = [
        soak.Reading(t, 5_000.0 * t, t, shard(t), 14, 8, client(t), 12, 15) for t in [10.0 * i for i in range(181)]
    ]
    figures = soak.judged(readings, capacity=200_000, seconds=1800)
    assert figures["flat"] is flat
    assert (figures["full_seconds"], figures["judged_from_seconds"], figures["wraps"]) == (40, 160, 44)
    assert figures["shard_mib_last"] == shard(1800)


def test_slope_and_growth_of_a_line():
    slope, growth = soak.grown([0, 1800, 3600], [100, 101, 102])
    assert (slope, growth) == (pytest.approx(2), pytest.approx(0.02))


def test_a_soak_too_short_to_fill_the_shard_says_so():
    readings = [soak.Reading(t, 10.0 * t, t, 1, 1, 1, 1, 1, 1) for t in range(100)]
    with pytest.raises(RunFault, match="990 of 1,000 transitions"):
        soak.judged(readings, capacity=1_000, seconds=100)


def test_a_shard_that_contradicts_itself_says_what(rng):
    shard = Shard(100, SMALL, SelectorConfig(), limited=False)
    shard.insert("w", 1, pack_segment(make_segment(rng)))
    assert shard_process.verdict(shard) == shard_process.VALID
    shard.storage.bytes += 1
    assert shard_process.verdict(shard) == "invalid: bytes do not add up"


def test_a_benchmark_that_is_not_passed_ends_with_status_1(monkeypatch, capsys):
    for passed in (True, False):
        monkeypatch.setattr(soak, "run", lambda c, say, passed=passed: {"passed": passed})
        assert cli.main(["bench", "soak", "--json"]) == (not passed)
        assert json.loads(capsys.readouterr().out) == {"passed": passed}


def test_sizing_goes_by_its_formulas():
    sizes = {"insert_bytes": 350.0, "resident_bytes": 400.0, "weights_bytes": 7e6}
    c = sizing.Command(steps=1_000, inserts=60_000, samples=50_000, batch_size=500, updates=20, actors_per_node=16)
    found = sizing.fleet(c, sizes, 1_000)
    assert found["into the shards, MB/s"] == 350
    assert (found["shards by inserts alone"], found["shards, samples included"]) == (17, 17)
    assert found["samples an insert"] == 0.01
    assert found["the last hour, GB"] == 1_440
    assert (found["nodes of actors"], found["weights to nodes, MB/s"]) == (63, 441)
    measured = sizing.measured(500)
    assert 200 < measured["payload_bytes"] < measured["insert_bytes"] < measured["resident_bytes"] < 500
    assert 8 * 200 < measured["sample_bytes"] < 10 * 300
    assert measured["weights_bytes"] == 4 * 1_687_206  # as Mnih et al. 2015 for 6 actions


def test_lines_come_when_they_are_said(monkeypatch):
    out, seen = io.BytesIO(), []
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out))
    monkeypatch.setattr(soak, "run", lambda c, say: (say("a line"), seen.append(out.getvalue()), {})[-1])
    assert cli.main(["bench", "soak"]) == 0
    assert seen == [b"a line\n"]


@pytest.fixture
def cases(monkeypatch):
    """Cases that take so many seconds of a clock of their own."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(measure, "time", SimpleNamespace(monotonic=lambda: clock.now))

    def take(seconds):
        clock.now += seconds
        return {"per_s": seconds}

    return lambda **seconds: {name: (lambda s=s: take(s)) for name, s in seconds.items()}


def test_windows_say_what_is_to_come_and_what_is_left(cases):
    said = []
    found = measure.alternating(cases(short=30.0, long=150.0), 2, said.append, after=20.0)
    assert found == {"short": {"per_s": 30.0}, "long": {"per_s": 150.0}}
    assert said == [
        "4 windows to come, 2 each of short, long",
        "window 1 of 4, short: per_s 30.00; about 2 min left",  # 30 + 2 * 30, the only length seen so far, + 20 s
        "window 2 of 4, long: per_s 150.00; about 3 min left",  # 30 + 150 + 20 s
        "window 3 of 4, short: per_s 30.00; about 3 min left",  # 150 + 20 s
        "window 4 of 4, long: per_s 150.00; about 20 s left",
    ]


def test_windows_of_known_length_say_how_long_all_will_take(cases):
    said = []
    measure.alternating(cases(short=30.0, long=150.0), 1, said.append, {"short": 60.0, "long": 3600.0})
    assert said == [
        "2 windows to come, 1 each of short, long; about 61 min in all",
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
def test_the_pipeline_says_how_long_it_takes(flags, minutes, precisions, monkeypatch):
    said = []
    monkeypatch.setattr(pipeline, "importlib", SimpleNamespace(util=SimpleNamespace(find_spec=lambda name: name)))
    for name, figures in {
        "_loop": {"steps_per_s": 80.0, "updates_per_s": 20.0},
        "_limits": {"float32": 25.0, "bfloat16": 30.0},
        "_sb3": {"sb3_steps_per_s": 80.0},
        "_efficiency": 0.9,
    }.items():
        monkeypatch.setattr(pipeline, name, lambda *_, figures=figures, **__: figures)
    native = torch.bfloat16 if precisions == 2 else torch.float32
    monkeypatch.setattr(pipeline, "pick_dtype", lambda precision, device: native)
    figures = pipeline.run(pipeline.Command(**flags), said.append)
    assert figures["learner_efficiency"] == 0.9
    assert ("updates_per_s_bf16" in figures) == (precisions == 2)
    if precisions == 1:
        assert said.pop(0) == "bfloat16 is left out: this processor has none"
    assert said[0].startswith(f"about {minutes} in all: ")
    assert f"about {minutes} in all" in said[1]
    assert len(said) == 2 + flags.get("windows", 3) * (1 + precisions + flags.get("sb3", True)) + precisions + 1
