"""What a run logs: names that stay apart, columns that are filled, speeds that are speeds."""

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
from qfleet.run.log import RunLog
from qfleet.run.stats import RunStats
from rl.exploration import ladder
from rl.types import EpisodeResult
from tests.qfleet.configs import short


def events(folder):
    """A run's TensorBoard events. A record: length (8 bytes), its checksum (4), the event, its checksum (4)."""
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
    """It is a schedule (rl/exploration.py): each episode ends at an epsilon of its own."""
    config = cartpole()
    alone = replace(config, actors=replace(config.actors, environments=1))
    for c, series in ((alone, 0), (config, 2)):
        stats = RunStats(replace(c, exploration=replace(c.exploration, kind="ladder")))
        stats.actor(0, 10, [EpisodeResult(1.0, 5, 0.5, False), EpisodeResult(1.0, 5, 0.4, False)])
        assert len(stats.returns_by_epsilon()) == series


def test_metrics_name_the_weights_version(tmp_path):
    train(short(max_steps=1200), run_dir=tmp_path / "run", serial=True)
    last = rows(tmp_path / "run" / "metrics.csv")[-1]
    assert int(last["weights_version"]) == int(last["updates"]) // 20 + 1  # one before the first update


def test_no_speed_is_told_before_a_second_has_passed(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("qfleet.run.stats.time.monotonic", lambda: now[0])
    stats = RunStats(cartpole(), {"agent_steps": 400_000, "updates": 50_000})
    now[0] += 30.0  # processes start, and the actors begin before the clock does
    stats.start_clock()
    now[0] += 0.02
    stats.actor(0, 17_000, [])
    stats.learned({"updates": 52_700})
    assert all(math.isnan(rate) for rate in stats.rates())
    now[0] += 2.0
    stats.actor(0, 17_500, [])
    stats.learned({"updates": 52_760})
    assert stats.rates() == pytest.approx((250.0, 30.0))


def test_what_a_part_had_made_when_it_was_first_heard_of_is_no_speed(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("qfleet.run.stats.time.monotonic", lambda: now[0])
    stats = RunStats(cartpole(), {"agent_steps": 400_000, "updates": 50_000})
    stats.start_clock()
    stats.rates()
    now[0] += 5.0
    stats.actor(0, 17_000, [])
    stats.learned({"updates": 52_700})
    assert stats.rates() == (0.0, 0.0)
    stats.actor(1, 9_000, [])
    now[0] += 5.0
    stats.actor(0, 18_000, [])
    stats.actor(1, 10_000, [])
    stats.learned({"updates": 53_700})
    assert stats.rates() == pytest.approx((200.0, 100.0))
    stats.actor(1, 100, [])  # restarted
    assert stats.agent_steps == 400_000 + 18_000 + 10_000 + 100
    assert stats.rates() == pytest.approx((210.0, 100.0))


def test_what_was_logged_beyond_the_checkpoint_is_cut(tmp_path):
    """Twice, the second time at an earlier checkpoint than the first, with a last row that was written by half."""

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
    # TensorBoard drops what stands before the start of a session and is of its step or beyond
    starts = [
        e.step for e in events(tmp_path) if e.HasField("session_log") and e.session_log.status == SessionLog.START
    ]
    assert starts == [611, 401]


def test_the_updates_of_a_row_count_as_its_steps_do(tmp_path):
    """Serial runs may learn on without acting."""
    log = RunLog(tmp_path)
    for updates in (10, 20, 30):
        log.metrics({"agent_steps": 100, "updates": updates})
    log.close()
    RunLog(tmp_path, resumed={"agent_steps": 100, "updates": 20}).close()
    assert [row["updates"] for row in rows(tmp_path / "metrics.csv")] == ["10", "20"]


def test_a_log_of_other_columns_is_kept_under_todays(tmp_path):
    (tmp_path / "metrics.csv").write_text("updates,agent_steps,gone\n3,12,7\n9,99,7\n")
    log = RunLog(tmp_path, resumed={"agent_steps": 50, "updates": 5})
    log.metrics({"agent_steps": 60, "updates": 6})
    log.close()
    assert [(row["agent_steps"], row["updates"]) for row in rows(tmp_path / "metrics.csv")] == [
        ("12", "3"),
        ("60", "6"),
    ]
