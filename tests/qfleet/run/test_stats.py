"""Totals and rates of a run, over restarts of actors and resumes."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from qfleet.presets import cartpole, pong
from qfleet.run import stats
from qfleet.run.stats import RECENT, RunStats
from rl.exploration import ladder
from rl.types import EpisodeResult


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(stats, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    return now


def episode(value, epsilon=0.0):
    return EpisodeResult(value, 10, epsilon, False)


def test_a_resumed_run_continues_from_its_state(clock):
    first = RunStats(cartpole())
    first.add_actor_report(0, 500, [episode(1.0)] * 3)
    first.add_learner_report({"updates": 40})
    first.evaluation_seconds = 7.0
    clock.seconds += 60
    again = RunStats(cartpole(), {**first.state(), "updates": 40})
    clock.seconds += 30
    again.add_actor_report(0, 100, [episode(2.0)])  # an actor of the new processes
    assert (again.agent_steps, again.updates, again.episodes) == (500 + 100, 40, 3 + 1)
    assert (again.base_steps, again.base_updates) == (500, 40)
    assert again.wall_seconds == pytest.approx(60 + 30)
    assert again.evaluation_seconds == 7.0


def test_each_actor_is_counted_separately(clock):
    own = RunStats(cartpole())
    for index, steps in ((0, 100), (1, 30), (0, 150), (1, 30), (1, 20)):  # actor 1 was restarted
        own.add_actor_report(index, steps, [])
    assert own.agent_steps == 150 + 30 + 20


def test_greedy_return_averages_only_episodes_of_greedy_environments(clock):
    reported = []
    own = RunStats(cartpole(), on_episode=reported.append)  # greedy_below is 0.05
    assert own.train_return != own.train_return  # NaN
    own.add_actor_report(0, 10, [episode(10.0, 0.5), episode(30.0, 0.05), episode(50.0, 0.0)])
    assert (own.train_return, own.greedy_return, own.greedy_episodes) == (30.0, 40.0, 2)
    assert [e.episode_return for e in reported] == [10.0, 30.0, 50.0]
    own.add_actor_report(0, 20, [episode(8.0, 1.0)] * RECENT)
    assert (own.train_return, own.greedy_return) == (8.0, 40.0)


def test_returns_by_epsilon_are_those_of_the_living_environments(clock):
    """Over many changes of the fleet; the ends of the ladder, which every one has, keep their returns."""
    config = pong()
    own = RunStats(config)

    def play(total):
        epsilons = ladder(config.exploration.ladder_epsilon, config.exploration.ladder_alpha, total)
        own.add_actor_report(0, 10, [episode(float(total), e) for e in epsilons])
        return epsilons

    for total in (16, *range(2, 200, 3), 16):
        own.set_environments(total)
        own.add_actor_report(0, 10, [episode(0.0, 0.123)])  # played before its actor knew of the change
        epsilons = play(total)
        assert list(own.returns_by_epsilon()) == pytest.approx(sorted(epsilons), rel=1e-5)
    assert own.returns_by_epsilon()[0.4] == pytest.approx((sum(range(173, 200, 3)) + 16) / 10)
    own.set_environments(1)
    assert own.returns_by_epsilon() == {}


def test_rates_are_measured_over_half_a_minute(clock):
    own = RunStats(cartpole())
    own.add_actor_report(0, 0, [])
    own.add_learner_report({"updates": 0})
    own.start_clock()
    rates = []
    for second in range(60):
        clock.seconds += 1
        speed = 100 if second < 20 else 300
        own.add_actor_report(0, own.agent_steps + speed, [])
        own.add_learner_report({"updates": own.updates + speed // 10})
        rates.append(own.rates())
    assert rates[18] == pytest.approx((100, 10))
    assert rates[-1] == pytest.approx((300, 30))
    assert 100 < rates[30][0] < 300


def test_a_row_has_frames_and_samples_per_insert(clock):
    own = RunStats(pong())
    own.add_actor_report(0, 1_000, [])
    own.add_learner_report({"updates": 10, "replay_inserted": 500.0, "replay_sampled": 4_000.0})
    clock.seconds += 5
    row = own.row(epsilon_min=0.01)
    assert (row["agent_steps"], row["frames"]) == (1_000, 4_000)
    assert row["samples_per_insert"] == 4_000 / 500
    assert (row["epsilon_min"], row["wall_seconds"]) == (0.01, 5.0)
    assert RunStats(pong()).row(1.0)["samples_per_insert"] == 0.0  # nothing inserted yet


def test_an_offline_run_counts_updates(clock):
    own = RunStats(replace(cartpole(), offline="d-v0", max_updates=100))
    own.add_learner_report({"updates": 30})
    assert own.steps_or_updates == 30
    own = RunStats(cartpole())
    own.add_actor_report(0, 50, [])
    assert own.steps_or_updates == 50


def test_wall_seconds_exclude_startup_and_shutdown(clock):
    own = RunStats(cartpole())
    clock.seconds += 100
    own.start_clock()
    clock.seconds += 8
    own.stop_clock()
    clock.seconds += 50
    assert own.wall_seconds == 8.0


def test_updates_that_a_restarted_learner_repeats_are_no_negative_speed(clock):
    """It falls from 150 to 100 updates and goes on with 10 updates/s; likewise an actor counts its steps from 0 again."""
    stats = RunStats(cartpole())
    stats.start_clock()
    stats.add_actor_report(0, 500, [])
    for updates, steps in ((140, 510), (150, 520), (100, 530), (110, 540)):
        stats.add_learner_report({"updates": updates})
        stats.add_actor_report(0, steps, [])
        rates = stats.rates()
        clock.seconds += 1.0
    assert rates == pytest.approx((10.0, 20 / 3))  # 10 + 0 + 10 updates in 3 s
    assert (stats.updates, stats.agent_steps) == (110, 540)
    stats.forget_actor(0)
    stats.add_actor_report(0, 700, [])  # of its next process, after a long silence
    assert stats.agent_steps == 540 + 700
