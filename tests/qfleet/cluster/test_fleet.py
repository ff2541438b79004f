"""Which actors of a fleet are living, and their places; tests/integration has fleets of real actors."""

from __future__ import annotations

import time
from types import SimpleNamespace

import numpy as np
import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st

from qfleet.cluster.fleet import ActorFleet
from qfleet.cluster.restarts import MAX_FAILURES, NOTE_PERIOD, STEADY, WAIT, Restarts
from qfleet.cluster.roster import LOST_AFTER, Roster
from qfleet.config import with_actors
from qfleet.presets import cartpole
from replay.security import UNPROTECTED
from rl.errors import RunFault
from rl.exploration import Exploration, ExplorationConfig, ladder


def roster_of(*indices, environments=2, ladder=True, now=0.0):
    made = Roster(environments, ladder)
    for index in indices:
        made.answer(index, now)
    return made


def epsilons(roster, index, environments, total_steps=0):
    """The epsilons of actor ``index`` of a fleet that explores by a ladder from 0.4 with alpha 7."""
    offset, total = roster.place(index)
    return Exploration(ExplorationConfig(), offset, environments, total).epsilons(total_steps)


def test_places_of_the_living_actors_have_no_gaps():
    roster = roster_of(0, 2, 3, 7)
    assert [roster.place(i) for i in (0, 2, 3, 7)] == [(0, 8), (2, 8), (4, 8), (6, 8)]
    roster.remove(2)
    assert [roster.place(i) for i in (0, 3, 7)] == [(0, 6), (2, 6), (4, 6)]
    assert roster.place(5) == (4, 8)  # a place for one that joins now, between 3 and 7


def test_the_ladder_is_spread_anew_when_an_actor_leaves():
    """Three actors of two environments, then two: the last one is the greediest, whatever its index."""
    roster = roster_of(0, 1, 5)
    assert epsilons(roster, 5, 2) == pytest.approx([0.4 ** (1 + 7 * 4 / 5), 0.4 ** (1 + 7 * 5 / 5)])
    roster.remove(5)
    assert epsilons(roster, 0, 2) == pytest.approx([0.4 ** (1 + 7 * 0 / 3), 0.4 ** (1 + 7 * 1 / 3)])
    assert epsilons(roster, 1, 2) == pytest.approx([0.4 ** (1 + 7 * 2 / 3), 0.4 ** (1 + 7 * 3 / 3)])


@given(st.sets(st.integers(0, 60), min_size=1), st.integers(1, 5), st.data())
def test_the_epsilons_of_any_living_set_are_the_whole_ladder(indices, environments, data):
    roster = roster_of(*indices, environments=environments)
    for index in data.draw(st.sets(st.sampled_from(sorted(indices)), max_size=len(indices) - 1)):
        roster.remove(index)
    total = len(roster.living) * environments
    union = np.concatenate([epsilons(roster, i, environments) for i in roster.living])
    if total > 1:
        np.testing.assert_array_equal(union, ladder(0.4, 7.0, total))
        assert union[0] == 0.4
        assert union[-1] == pytest.approx(0.4 ** (1 + 7))
    else:
        assert union == [1.0]  # a single environment follows the linear schedule


def test_an_actor_that_does_not_answer_leaves_and_returns_when_it_does():
    roster = roster_of(0, 1, 2)
    assert roster.update(0.0) == "actor-0, actor-1, actor-2 join: the ladder is spread over 3 actors"
    roster.answer(0, 9.0)
    roster.answer(2, 9.0)
    assert roster.update(LOST_AFTER) == ""  # exactly as long is not too long
    line = "warning: actor-1 does not answer: the ladder is spread over 2 actors"
    assert roster.update(NOTE_PERIOD + 1.0) == line
    assert (roster.living, roster.place(2)) == ([0, 2], (2, 4))
    assert roster.place(1) == (2, 6)  # what it is told, should it answer
    roster.answer(1, 18.0)
    assert (roster.living, roster.place(2)) == ([0, 1, 2], (4, 6))
    for index in (0, 2):
        roster.answer(index, 18.0)
    assert roster.update(22.0) == "actor-1 answers again: the ladder is spread over 3 actors"
    assert roster.update(23.0) == ""


def test_actors_that_are_lost_together_are_one_line_and_lines_are_rare():
    roster = roster_of(*range(12), ladder=False)
    roster.forget_news()
    roster.answer(11, 15.0)
    assert roster.update(15.0) == (
        "warning: actor-0, actor-1, actor-2, actor-3, 7 more do not answer: the run has 1 actor"
    )
    lines = []
    for second in range(16, 16 + 100):  # actor 0 answers every 12 seconds
        roster.answer(11, float(second))
        if second % 12 == 0:
            roster.answer(0, float(second))
        lines += [line for line in [roster.update(float(second))] if line]
    assert 1 <= len(lines) <= 100 / NOTE_PERIOD + 1, lines


def test_a_fleet_without_actors_says_so_and_keeps_a_place_for_each():
    roster = roster_of(4)
    roster.forget_news()
    assert roster.update(60.0) == "warning: actor-4 does not answer: no actor is left, the run waits for one"
    assert roster.living == []
    assert roster.place(4) == (0, 2)


def test_an_index_that_is_used_again_joins_as_a_new_actor():
    roster = roster_of(0, 1)
    roster.forget_news()
    roster.remove(1)
    assert roster.update(1.0) == ""  # it was asked for
    roster.answer(1, 2.0)
    assert roster.update(2.0) == "actor-1 joins: the ladder is spread over 2 actors"


def test_what_the_driver_does_between_two_rounds_of_polls_is_not_the_actors_silence():
    """The driver polls, and awaits answers for half a second; then it may write a checkpoint for long."""
    roster = roster_of(0, 1)
    roster.forget_news()
    for index in (0, 1):
        roster.asked(index, 1.0)
        roster.answer(index, 1.2)
    assert roster.update(1.5) == ""  # at 41.5, after the checkpoint
    for index in (0, 1):
        roster.asked(index, 42.0)
    roster.answer(0, 42.3)
    assert roster.update(42.5) == ""  # actor 1 has had half a second
    assert roster.living == [0, 1]
    roster.asked(0, 43.0)
    roster.answer(0, 43.2)
    assert roster.update(43.5) == ""
    roster.asked(0, 52.0)
    roster.answer(0, 52.1)
    assert roster.update(52.5) == "warning: actor-1 does not answer: the ladder is spread over 1 actor"


class Requested:
    """Stands for Ray's class of an actor: a fleet requests more of them here than a machine can start."""

    def options(self, name, **_):
        self.name = name
        return self

    def remote(self, _config, index, *_):
        assert self.name == f"actor-{index}"
        return SimpleNamespace(__ray_ready__=SimpleNamespace(remote=lambda: None))


def test_a_thousand_actors_are_requested_in_a_moment_those_of_the_lowest_free_indices():
    fleet = ActorFleet(with_actors(cartpole(), 1000), "run", UNPROTECTED, 0, 0, dict, Restarts())
    fleet._class = Requested()
    began = time.thread_time()
    fleet.start()
    assert time.thread_time() - began < 0.3
    assert list(fleet.handles) == list(range(1000))
    for index in (3, 998, 5):
        fleet.handles.pop(index)
    fleet._finishing[5] = (None, None, 0.0)  # still ends
    fleet.start()
    assert list(fleet.handles)[-3:] == [3, 998, 1000]


ERROR = RuntimeError("(pid=7, ip=10.0.0.7, repr=...)\n\nrl.errors.RunFault: no ROM\n")


def test_the_next_start_of_a_process_that_fails_in_a_row_is_later_each_time_until_it_is_given_up():
    restarts, now, delays, given_up = Restarts(), 0.0, [], []
    for _ in range(11):
        restarts.failed("actor-3", ERROR, now)
        delays.append(next(s for s in range(400) if not restarts.waiting(now + s)))
        given_up.append(restarts.given_up("actor-3"))
        now += delays[-1]
    assert delays == [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 300]
    assert given_up == [False] * (MAX_FAILURES - 1) + [True] * (11 - MAX_FAILURES + 1)
    assert restarts.describe_last("actor-3") == (
        "actor-3 has failed 11 times in a row, last on the node 10.0.0.7 (no ROM)"
    )
    assert restarts.news(now) == (
        "warning: actor-3 has failed on the node 10.0.0.7 (no ROM): it is started again after 300 s"
    )
    assert restarts.describe_last("actor-3").endswith("last on the node 10.0.0.7 (no ROM)")  # also after the news
    status = restarts.status()
    assert (status["restarts"], status["restarts_by_kind"]) == (11, {"actor": 11})
    assert status["last_fault"] == "actor-3 has failed on the node 10.0.0.7 (no ROM)"
    assert abs(time.time() - status["last_fault_time"]) < 60


def test_a_process_that_has_worked_for_a_while_is_started_again_at_once():
    """One that started, but died soon, is not."""
    restarts, now = Restarts(), 100.0
    for worked, in_a_row in ((STEADY, 1), (STEADY - 1, 2), (STEADY - 1, 3), (STEADY, 1), (0.0, 2)):
        restarts.started("learner", now)
        assert restarts.waiting(now) == set()
        now += worked
        restarts.failed("learner", ERROR, now)
        delay = [0.0, 1.0, 2.0][in_a_row - 1]
        assert restarts.waiting(now) == ({"learner"} if delay else set())
        assert restarts.waiting(now + delay) == set()


def test_waiting_for_a_suitable_node_is_no_failure():
    restarts, now = Restarts(), 0.0
    restarts.failed("learner", ERROR, now)
    for _ in range(MAX_FAILURES + 3):
        restarts.postpone("learner", now)
        assert restarts.waiting(now) == {"learner"}
        now += WAIT
        assert restarts.waiting(now) == set()
    assert not restarts.given_up("learner")


def test_failures_are_told_in_one_line_in_ten_seconds():
    restarts, now = Restarts(), 50.0
    restarts.failed("learner", ERROR, now)
    assert restarts.news(now) == ("warning: the learner has failed on the node 10.0.0.7 (no ROM): it is started again")
    for second in range(7):
        restarts.failed(f"actor-{second}", ERROR, now + second)
        restarts.failed(f"actor-{second}", ERROR, now + second)
        assert restarts.news(now + second) == ""
    assert restarts.waiting(now + 6) == {"actor-6"}
    assert restarts.news(now + NOTE_PERIOD) == (
        "warning: actor-0, actor-1, actor-2, actor-3, 3 more have failed, actor-6 on the node 10.0.0.7 (no ROM): they are "
        "started again after at most 1 s"
    )
    restarts.failed("actor-1", ERROR, now + 10)
    restarts.clear()
    assert restarts.waiting(now + 10) == set()
    assert restarts.news(now + 20) != ""


def test_a_run_whose_actors_are_all_given_up_ends_with_the_last_cause(monkeypatch):
    """As long as one of them lives, the run goes on."""
    monkeypatch.setattr(ray, "kill", lambda handle: None)
    made = ActorFleet(with_actors(cartpole(), 2), "run", UNPROTECTED, 0, 0, dict, Restarts())
    made._class = Requested()
    made._has_started = True
    made.start()
    made.roster.answer(1, 0.0)

    def fail(index):
        made.handles[index] = made.handles.get(index) or SimpleNamespace()
        made._starting[index] = "a call"
        made.failed(f"actor-{index}", ERROR)

    for _ in range(MAX_FAILURES + 3):
        fail(0)
    made.roster.remove(1)
    for _ in range(MAX_FAILURES - 1):
        fail(1)
    with pytest.raises(RunFault, match=r"^actor-1 has failed 8 times in a row, last on the node 10.0.0.7 \(no ROM\)$"):
        fail(1)


def test_a_fleet_leaves_out_what_has_just_failed():
    fleet = ActorFleet(with_actors(cartpole(), 4), "run", UNPROTECTED, 0, 0, dict, Restarts())
    fleet._class = Requested()
    for _ in range(3):
        fleet._restarts.failed("actor-1", RuntimeError("no ROM"), time.monotonic())
    fleet.start()
    assert list(fleet.handles) == [0, 2, 3]
    fleet._restarts.clear()
    fleet.start()
    assert list(fleet.handles) == [0, 2, 3, 1]
