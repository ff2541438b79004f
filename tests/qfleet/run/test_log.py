"""What a run logs: names that stay apart, columns that are filled, speeds that are speeds."""

from __future__ import annotations

import csv
import math
import struct
from dataclasses import replace

import pytest
from tensorboardX.proto.event_pb2 import Event

from qfleet.api import train
from qfleet.presets import cartpole
from qfleet.run.log import RunLog
from qfleet.run.stats import RunStats
from rl.exploration import ladder
from rl.types import EpisodeResult
from tests.qfleet.configs import short


def tags(folder):
    """Names of a run's TensorBoard series. A record: length (8 bytes), its checksum (4), the event, its checksum (4)."""
    found = set()
    for file in (folder / "tensorboard").iterdir():
        data, at = file.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + length])
            found |= {value.tag for value in event.summary.value}
            at += 16 + length
    return found


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
    with (tmp_path / "run" / "metrics.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
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
