"""The logs of a run: series names, columns, rates, and the rows that a resume deletes."""

from __future__ import annotations

import csv
import math
import struct
import time
from dataclasses import replace

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from qfleet.api import train
from qfleet.presets import cartpole
from qfleet.run.log import METRIC_COLUMNS, RunLog
from qfleet.run.stats import RunStats
from rl.exploration import ladder
from rl.types import EpisodeResult
from tests.qfleet.configs import short


def events(folder):
    """Yield a run's TensorBoard events. A record is length (8 bytes), its checksum (4), event, its checksum (4)."""
    for file in sorted((folder / "tensorboard").iterdir()):
        data, at = file.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            yield Event.FromString(data[at + 12 : at + 12 + length])
            at += 16 + length


def tags(folder):
    """Names of a run's TensorBoard series."""
    return {value.tag for event in events(folder) for value in event.summary.value}


def rows(file):
    with file.open() as lines:
        return list(csv.DictReader(lines))


@pytest.mark.parametrize("environments", [16, 128, 360, 5_760])
def test_each_epsilon_of_a_ladder_has_a_series_of_its_own(tmp_path, environments):
    log = RunLog(tmp_path)
    log.returns_by_epsilon(1, dict.fromkeys(ladder(0.4, 7.0, environments), 1.0))
    log.close()
    assert len(tags(tmp_path)) == environments


def test_a_ladder_of_one_environment_has_no_series_by_epsilon():
    """Such a ladder falls back to a schedule (rl/exploration.py), where each episode ends at another epsilon."""
    config = cartpole()
    alone = replace(config, actors=replace(config.actors, environments=1))
    for c, series in ((alone, 0), (config, 2)):
        stats = RunStats(replace(c, exploration=replace(c.exploration, kind="ladder")))
        end = 0.4 ** (1 + c.exploration.ladder_alpha)
        stats.add_actor_report(0, 10, [EpisodeResult(1.0, 5, end, False), EpisodeResult(1.0, 5, 0.4, False)])
        assert len(stats.returns_by_epsilon()) == series


def test_metrics_include_the_weights_version(tmp_path):
    train(short(max_steps=1200), run_dir=tmp_path / "run", serial=True)
    last = rows(tmp_path / "run" / "metrics.csv")[-1]
    assert int(last["weights_version"]) == int(last["updates"]) // 20 + 1  # one publication before the first update


def test_rates_are_nan_in_the_first_second(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("qfleet.run.stats.time.monotonic", lambda: now[0])
    stats = RunStats(cartpole(), {"agent_steps": 400_000, "updates": 50_000})
    now[0] += 30.0  # processes start, and the actors begin before start_clock
    stats.start_clock()
    now[0] += 0.02
    stats.add_actor_report(0, 17_000, [])
    stats.add_learner_report({"updates": 52_700})
    assert all(math.isnan(rate) for rate in stats.rates())
    now[0] += 2.0
    stats.add_actor_report(0, 17_500, [])
    stats.add_learner_report({"updates": 52_760})
    assert stats.rates() == pytest.approx((250.0, 30.0))


def test_rates_exclude_what_a_component_made_before_its_first_report(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("qfleet.run.stats.time.monotonic", lambda: now[0])
    stats = RunStats(cartpole(), {"agent_steps": 400_000, "updates": 50_000})
    stats.start_clock()
    stats.rates()
    now[0] += 5.0
    stats.add_actor_report(0, 17_000, [])
    stats.add_learner_report({"updates": 52_700})
    assert stats.rates() == (0.0, 0.0)
    stats.add_actor_report(1, 9_000, [])
    now[0] += 5.0
    stats.add_actor_report(0, 18_000, [])
    stats.add_actor_report(1, 10_000, [])
    stats.add_learner_report({"updates": 53_700})
    assert stats.rates() == pytest.approx((200.0, 100.0))
    stats.add_actor_report(1, 100, [])  # restarted
    assert stats.agent_steps == 400_000 + 18_000 + 10_000 + 100
    assert stats.rates() == pytest.approx((210.0, 100.0))


def test_a_file_without_the_column_of_actors_is_continued(tmp_path):
    """A run of an older version wrote it."""
    file = tmp_path / "metrics.csv"
    old = [c for c in METRIC_COLUMNS if c != "actors"]
    file.write_text(",".join(old) + "\n" + ",".join("7" for _ in old) + "\n")
    log = RunLog(tmp_path, resumed={"agent_steps": 7, "updates": 7, "wall_seconds": 7.0})
    log.metrics({**dict.fromkeys(METRIC_COLUMNS, 8), "actors": 3})
    log.close()
    assert [(row["agent_steps"], row["actors"]) for row in rows(file)] == [("7", ""), ("8", "3")]


def test_a_resume_deletes_rows_beyond_the_checkpoint(tmp_path):
    """Two resumes; the second from an earlier checkpoint, with a last row that was written only in part."""

    def logged(steps, resumed=None):
        time.sleep(1.01)  # TensorBoard's files are named by the second
        log = RunLog(tmp_path, resumed=resumed)
        for step in steps:
            log.metrics({"agent_steps": step, "updates": step // 4, "loss": 1.0, "wall_seconds": step / 10})
            if step % 200 == 0:
                row = {"mean_return": 2.0, "std_return": 0.0, "worst_return": 1.0}
                log.evaluation({"agent_steps": step, "updates": step // 4, **row})
        log.close()

    def steps(name):
        return [int(row["agent_steps"]) for row in rows(tmp_path / name)]

    logged(range(100, 1001, 100))
    logged(range(700, 901, 100), {"agent_steps": 610, "updates": 153})
    assert steps("metrics.csv") == [*range(100, 601, 100), 700, 800, 900]
    assert steps("eval.csv") == [200, 400, 600, 800]
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("100.0,100")
    logged([500], {"agent_steps": 400, "updates": 100})
    assert steps("metrics.csv") == [100, 200, 300, 400, 500]
    assert steps("eval.csv") == [200, 400]
    assert rows(tmp_path / "metrics.csv")[1]["loss"] == "1"
    # TensorBoard drops points that precede a session start in the file and whose step is at or beyond its step
    starts = [
        e.step for e in events(tmp_path) if e.HasField("session_log") and e.session_log.status == SessionLog.START
    ]
    assert starts == [611, 401]


def test_a_row_beyond_the_checkpoints_updates_is_deleted_too(tmp_path):
    """Serial runs may make several updates between agent steps."""
    log = RunLog(tmp_path)
    for updates in (10, 20, 30):
        log.metrics({"agent_steps": 100, "updates": updates})
    log.close()
    RunLog(tmp_path, resumed={"agent_steps": 100, "updates": 20}).close()
    assert [row["updates"] for row in rows(tmp_path / "metrics.csv")] == ["10", "20"]


def test_a_log_with_other_columns_is_rewritten_with_the_current_ones(tmp_path):
    (tmp_path / "metrics.csv").write_text("updates,agent_steps,gone\n3,12,7\n9,99,7\n")
    log = RunLog(tmp_path, resumed={"agent_steps": 50, "updates": 5})
    log.metrics({"agent_steps": 60, "updates": 6})
    log.close()
    assert [(row["agent_steps"], row["updates"]) for row in rows(tmp_path / "metrics.csv")] == [
        ("12", "3"),
        ("60", "6"),
    ]
