"""The benchmarks that start processes run at tiny sizes and return the expected figures."""

from __future__ import annotations

import json
import subprocess

import pytest

from benchmarks import actors, memory, shards, soak
from qfleet.cli import main as cli
from rl.errors import RunFault


def is_png(path):
    return path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_shards_measures_inserting_and_sampling_alone_and_together(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "PLAYED", 200)
    to = tmp_path / "shards.png"
    c = shards.Command(shards=(1, 2), writers=(2,), seconds=0.2, windows=1, items=300, to=str(to))
    figures = shards.run(c, lambda line: None)
    rows = [json.loads(line) for line in to.with_suffix(".jsonl").read_text().splitlines()]
    assert [(r["shards"], r["writers"]) for r in rows] == [(1, 2), (2, 2)]
    for row, also in zip(rows, figures["rows"], strict=True):
        assert row.items() >= also.items()
        for name in ("inserted_per_s", "sampled_per_s_alone", "inserted_per_s_both", "sampled_per_s_both"):
            assert row[name] > 0
        assert all(0 <= row[name] <= 1 for name in ("idle", "idle_alone", "idle_both"))
        assert row["cores"] >= 1
        assert row["limit_store_per_s"] > 0
    assert is_png(to)


def test_actors_measures_each_number_of_actor_processes():
    figures = actors.run(actors.Command(counts=(1, 2), environments=2, seconds=0.5), lambda line: None)
    assert [figures["agent_steps_per_s"][count] > 0 for count in ("1", "2")] == [True, True]


def test_a_writer_that_does_not_start_is_an_error():
    with (
        subprocess.Popen(["true"], stdout=subprocess.PIPE, text=True) as process,
        pytest.raises(RunFault, match="a writer ended unexpectedly"),
    ):
        shards.read_line(process, 10.0, "a writer")
    with subprocess.Popen(["sleep", "10"], stdout=subprocess.PIPE, text=True) as process:
        with pytest.raises(RunFault, match="printed nothing for 0.1 s"):
            shards.read_line(process, 0.1, "a writer")
        process.kill()


def test_soak_wraps_around_updates_priorities_and_checks_the_shard(tmp_path, monkeypatch):
    monkeypatch.setattr(soak, "PLAYED", 200)
    to, lines = tmp_path / "soak.png", []
    figures = soak.run(soak.Command(minutes=0.04, capacity=400, wraps=1, every=0.2, to=str(to)), lines.append)
    assert figures["inserted"] > 800
    assert figures["wraps"] == figures["inserted"] / 400 - 1
    assert figures["sampled"] > 32
    assert 0 < figures["dropped_updates"] < figures["sampled"]
    assert (figures["checks"], figures["checks_failed"], figures["lost_updates"]) == (1, [], 0)
    assert figures["passed"] == figures["flat"]
    assert "valid" in lines[-1]
    assert is_png(to)


def test_memory_fills_a_shard_and_measures_it():
    figures = memory.run(memory.Command(items=2_000, seconds=0.2), lambda line: None)
    assert 1_900 < figures["stored"] <= 2_000
    assert figures["mib_after"] > figures["mib_before"]
    assert 200 < figures["compressed_bytes_per_transition"] < figures["counted_bytes_per_transition"] < 500
    assert figures["sampled_per_s"] > 0


@pytest.mark.slow
def test_solve_skips_finished_runs_and_reports_median_and_worst(tmp_path, capfd):
    flags = "--train=--serial --learner.device cpu --replay.limiter.min-size 200 --evaluation.period 300 --max-steps"
    args = ["bench", "solve", "--preset", "cartpole", "--episodes", "3", "--to", str(tmp_path), "--json"]
    assert cli.main([*args, "--seeds", "5", f"{flags} 400"]) == 1  # not solved
    done = (tmp_path / "cartpole-seed5" / "summary.json").read_bytes()
    assert cli.main([*args, "--seeds", "5", "6", f"{flags} 700"]) == 1
    out = capfd.readouterr().out
    assert "2 runs of cartpole, 1 of them already finished" in out
    figures = json.loads(out.splitlines()[-1])
    assert (tmp_path / "cartpole-seed5" / "summary.json").read_bytes() == done
    first, second = figures["rows"]
    assert first["agent_steps"] < 500 < 700 <= second["agent_steps"] == figures["worst_agent_steps"]
    assert figures["median_agent_steps"] == (first["agent_steps"] + second["agent_steps"]) / 2
    assert first["quick_evaluations"] >= 1
    assert first["full_evaluations"] == 0
    assert all(row["fresh_mean_greedy"] > 0 and row["fresh_interval"] >= 0 for row in figures["rows"])
    assert (tmp_path / "curves.png").is_file()
    (tmp_path / "cartpole-seed7").mkdir()
    assert cli.main([*args, "--seeds", "7"]) == 2
    assert "unfinished run, whose training time cannot be measured: remove" in capfd.readouterr().err
