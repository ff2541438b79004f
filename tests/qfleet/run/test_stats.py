"""A run's totals: counted on over restarts and resumes, by the clock of the run."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from qfleet.presets import cartpole, pong
from qfleet.run import stats
from qfleet.run.stats import RECENT, RunStats
from rl.types import EpisodeResult


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(stats, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    return now


def episode(value, epsilon=0.0):
    return EpisodeResult(value, 10, epsilon, False)


def test_a_resumed_run_goes_on_from_its_state(clock):
    first = RunStats(cartpole())
    first.actor(0, 500, [episode(1.0)] * 3)
    first.learned({"updates": 40})
    first.evaluation_seconds = 7.0
    clock.seconds += 60
    again = RunStats(cartpole(), {**first.state(), "updates": 40})
    clock.seconds += 30
    again.actor(0, 100, [episode(2.0)])  # an actor of the new processes
    assert (again.agent_steps, again.updates, again.episodes) == (500 + 100, 40, 3 + 1)
    assert (again.base_steps, again.base_updates) == (500, 40)
    assert again.wall_seconds == pytest.approx(60 + 30)
    assert again.evaluation_seconds == 7.0


def test_each_actor_is_counted_by_itself(clock):
    own = RunStats(cartpole())
    for index, steps in ((0, 100), (1, 30), (0, 150), (1, 30), (1, 20)):  # actor 1 was restarted
        own.actor(index, steps, [])
    assert own.agent_steps == 150 + 30 + 20


def test_returns_of_the_greedy_end_are_told_apart(clock):
    told = []
    own = RunStats(cartpole(), on_episode=told.append)  # greedy below 0.05
    assert own.train_return != own.train_return  # NaN
    own.actor(0, 10, [episode(10.0, 0.5), episode(30.0, 0.05), episode(50.0, 0.0)])
    assert (own.train_return, own.greedy_return, own.greedy_episodes) == (30.0, 40.0, 2)
    assert [e.episode_return for e in told] == [10.0, 30.0, 50.0]
    own.actor(0, 20, [episode(8.0, 1.0)] * RECENT)
    assert (own.train_return, own.greedy_return) == (8.0, 40.0)


def test_speeds_look_back_half_a_minute(clock):
    own = RunStats(cartpole())
    own.actor(0, 0, [])
    own.learned({"updates": 0})
    own.start_clock()
    rates = []
    for second in range(60):
        clock.seconds += 1
        speed = 100 if second < 20 else 300
        own.actor(0, own.agent_steps + speed, [])
        own.learned({"updates": own.updates + speed // 10})
        rates.append(own.rates())
    assert rates[18] == pytest.approx((100, 10))
    assert rates[-1] == pytest.approx((300, 30))
    assert 100 < rates[30][0] < 300


def test_a_row_has_frames_and_the_ratio_of_what_replay_saw(clock):
    own = RunStats(pong())
    own.actor(0, 1_000, [])
    own.learned({"updates": 10, "replay_inserted": 500.0, "replay_sampled": 4_000.0})
    clock.seconds += 5
    row = own.row(epsilon_min=0.01)
    assert (row["agent_steps"], row["frames"]) == (1_000, 4_000)
    assert row["samples_per_insert"] == 4_000 / 500
    assert (row["epsilon_min"], row["wall_seconds"]) == (0.01, 5.0)
    assert RunStats(pong()).row(1.0)["samples_per_insert"] == 0.0  # nothing was inserted yet


def test_a_run_without_actors_is_counted_by_updates(clock):
    own = RunStats(replace(cartpole(), offline="d-v0", max_updates=100))
    own.learned({"updates": 30})
    assert own.clock == 30
    own = RunStats(cartpole())
    own.actor(0, 50, [])
    assert own.clock == 50


def test_what_comes_before_and_after_training_takes_no_time(clock):
    own = RunStats(cartpole())
    clock.seconds += 100
    own.start_clock()
    clock.seconds += 8
    own.stop_clock()
    clock.seconds += 50
    assert own.wall_seconds == 8.0
