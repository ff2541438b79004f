"""Environments that raise errors: the actor makes them anew, drops the episodes that this interrupts, and plays on."""

from __future__ import annotations

import itertools
import time

import pytest

from rl.envs.config import EnvConfig
from rl.envs.make import spec_and_actions
from rl.errors import RunFault
from tests.actors.players import make_actor
from tests.rl.envs.faulty import FAULTY, RAISED_AT, world

BAD = ValueError("bad\n action")


def actor_on(environments=1, segment_items=2, n_step=1, **changes):
    """(an actor on the environment Faulty, its sink); ``changes``: length and faults of the world."""
    spec_and_actions(EnvConfig(id=FAULTY))  # its result is cached, so later it makes no environment that counts
    world.reset(**changes)
    actor, sink, _ = make_actor(env_id=FAULTY, environments=environments, segment_items=segment_items, n_step=n_step)
    return actor, sink


def number(segment):
    """(environment, number of the episode) from the episode's id, for actor 0."""
    rest = segment.episode_id - (1 << 40)
    return rest >> 24, rest & (2**24 - 1)


def items_of(segments):
    """Rows (environment, number of the episode, observation [episode, t] before the item, the one after it)."""
    rows = []
    for s in segments:
        for start, length in zip(s.item_step.astype(int), s.item_length.astype(int), strict=True):
            rows.append((*number(s), s.frames[start].tolist(), s.frames[start + length].tolist()))
    return rows


def test_the_unfinished_segment_of_an_interrupted_episode_is_dropped_and_its_complete_one_is_stored():
    """Episodes of 4 steps; the third episode's first step fails, then the fourth one's fourth: items 0 and 1 are stored."""
    actor, sink = actor_on(length=4, faults={("step", 9): BAD, ("step", 13): OSError("gone")})
    made = [actor.step() for _ in range(4 + 4 + 1 + 3 + 1 + 4)]
    assert made == [1] * 8 + [0] + [1] * 3 + [0] + [1] * 4
    assert actor.agent_steps == 4 + 4 + 3 + 4
    assert items_of(sink.segments) == [
        (0, 0, [1, 0], [1, 1]),
        (0, 0, [1, 1], [1, 2]),
        (0, 0, [1, 2], [1, 3]),
        (0, 0, [1, 3], [1, 4]),
        (0, 1, [2, 0], [2, 1]),
        (0, 1, [2, 1], [2, 2]),
        (0, 1, [2, 2], [2, 3]),
        (0, 1, [2, 3], [2, 4]),
        # the third episode failed before its first step ended, so that the fourth is the first to use the id 2
        (0, 2, [4, 0], [4, 1]),
        (0, 2, [4, 1], [4, 2]),
        # [4, 2] -> [4, 3] was not in a complete segment
        (0, 3, [5, 0], [5, 1]),
        (0, 3, [5, 1], [5, 2]),
        (0, 3, [5, 2], [5, 3]),
        (0, 3, [5, 3], [5, 4]),
    ]
    assert [e.length for e in actor.take_episodes()] == [4, 4, 4]
    assert world.seeds[0] not in world.seeds[1:]
    assert len(set(world.seeds)) == 5
    actor.close()
    assert not world.open


def test_n_step_returns_do_not_span_a_failure():
    """Rewards 1, 2, 3 with n = 2: the second episode fails in its third step, after the segment of its first item."""
    actor, sink = actor_on(n_step=2, segment_items=1, faults={("step", 6): BAD})
    for _ in range(3 + 2 + 1 + 3):
        actor.step()
    assert items_of(sink.segments) == [
        (0, 0, [1, 0], [1, 2]),
        (0, 0, [1, 1], [1, 3]),
        (0, 0, [1, 2], [1, 3]),
        (0, 1, [2, 0], [2, 2]),
        (0, 2, [3, 0], [3, 2]),
        (0, 2, [3, 1], [3, 3]),
        (0, 2, [3, 2], [3, 3]),
    ]
    gamma = 0.99
    expected = [1 + gamma * 2, 2 + gamma * 3, 3]
    r_t = [float(r) for s in sink.segments for r in s.r_t]
    assert r_t == pytest.approx([*expected, 1 + gamma * 2, *expected])
    actor.close()


def test_one_environment_that_fails_ends_the_episodes_of_all_three():
    """The second of three raises in the third batched step: its call is 2 * 3 + 2. One raises when it is closed, too."""
    actor, sink = actor_on(environments=3, length=4, faults={("step", 8): BAD, ("close", 1): OSError("still open")})
    made = [actor.step() for _ in range(2 + 1 + 4)]
    assert made == [3, 3, 0, 3, 3, 3, 3]
    assert world.open == {4, 5, 6}
    assert actor.agent_steps == 6 * 3
    first = [(i, 0, [1 + i, t], [1 + i, t + 1]) for i in range(3) for t in (0, 1)]
    second = [(i, 1, [4 + i, t], [4 + i, t + 1]) for ts in ((0, 1), (2, 3)) for i in range(3) for t in ts]
    assert items_of(sink.segments) == first + second
    assert [e.length for e in actor.take_episodes()] == [4, 4, 4]
    assert len(set(world.seeds)) == 6
    actor.close()
    assert not world.open


def test_a_failed_restart_drops_the_episodes_that_go_on():
    """Two environments; the first has restarted once before the second fails to: reset calls 1, 2, then 3 and 4."""
    actor, sink = actor_on(environments=2, length=2, segment_items=1, faults={("reset", 4): BAD})
    assert [actor.step() for _ in range(5)] == [2, 2, 0, 2, 2]
    assert actor.take_news() == (
        f"its environment raised ValueError: bad action (faulty.py:{RAISED_AT}) in reset and was made anew"
    )
    whole = [(0, 0), (1, 0)] * 2 + [(0, 1), (1, 1)] * 2  # two items each
    assert [(e, n) for e, n, _, _ in items_of(sink.segments)] == whole
    actor.close()


def test_the_last_failure_is_told_once_and_all_are_counted():
    actor, _ = actor_on(faults={("step", 1): BAD, ("step", 2): KeyError("x")})
    assert (actor.take_news(), actor.stats()["environment_failures"]) == ("", 0.0)
    for _ in range(2):
        actor.step()
    assert actor.stats()["environment_failures"] == 2.0
    actor.step()
    news = f"its environment raised KeyError: 'x' (faulty.py:{RAISED_AT}) in step and was made anew"
    assert actor.take_news() == news
    assert actor.take_news() == ""
    actor.close()


def test_five_failures_without_an_episode_in_between_end_the_run():
    """Episodes of 1 step. Four failures, an episode, four failures, an episode, then five."""
    faulty = [*range(1, 5), *range(6, 10), *range(11, 16)]
    actor, _ = actor_on(length=1, faults={("step", k): BAD for k in faulty})
    for _ in range(14):
        actor.step()
    assert len(actor.take_episodes()) == 2
    with pytest.raises(RunFault) as fault:
        actor.step()
    assert str(fault.value) == (
        f"the environment {FAULTY} has failed 5 times without finishing an episode, last in step: ValueError: bad action "
        f"(faulty.py:{RAISED_AT})"
    )
    assert actor.stats()["environment_failures"] == 13.0
    actor.close()


def test_steps_without_the_end_of_an_episode_do_not_reset_the_count():
    actor, _ = actor_on(length=9, faults={("step", k): BAD for k in (2, 4, 6, 8, 10)})
    with pytest.raises(RunFault, match="has failed 5 times"):
        actor.run(lambda: False)
    assert actor.agent_steps == 5
    actor.close()


@pytest.mark.parametrize("call", ["reset", "make"])
def test_an_environment_that_never_starts_again_ends_the_run_with_its_own_error(call):
    actor, _ = actor_on(faults={("step", 1): OSError("gone")})
    world.faults[(call, "all")] = BAD  # the environment of the actor's start is already made
    with pytest.raises(RunFault) as fault:
        actor.run(lambda: False)
    assert str(fault.value) == (
        f"the environment {FAULTY} has failed 5 times without finishing an episode, last in {call}: ValueError: "
        f"bad action (faulty.py:{RAISED_AT})"
    )
    actor.close()


def test_a_failed_make_is_tried_again_with_new_seeds():
    gone = OSError("no display")
    actor, sink = actor_on(faults={("step", 2): BAD, ("make", 2): gone, ("make", 3): gone})
    made = [actor.step() for _ in range(1 + 1 + 2 + 3)]
    assert made == [1, 0, 0, 0, 1, 1, 1]
    assert actor.take_news().startswith("its environment raised OSError: no display (faulty.py:")
    assert [(e, n) for e, n, _, _ in items_of(sink.segments)] == [(0, 1)] * 3
    assert len(set(world.seeds)) == 2
    actor.close()


def test_an_actor_whose_environment_fails_stops_soon():
    actor, _ = actor_on(faults={("step", 1): BAD})
    world.faults[("make", "all")] = OSError("no display")
    asked = []

    def stop_after_three():
        asked.append(time.monotonic())
        return len(asked) > 4

    actor.run(stop_after_three)
    assert actor.stats()["environment_failures"] == 4.0
    pauses = [b - a for a, b in itertools.pairwise(asked)]  # the failed step, then three failed attempts
    assert pauses[2] >= 0.1
    assert pauses[3] >= 0.2
    assert max(pauses) < 2.0
    actor.close()


def test_errors_of_the_network_and_the_sink_are_not_taken_for_the_environments():
    actor, sink = actor_on(segment_items=1)

    def broken(*_):
        raise ValueError("disk")

    sink.write = broken
    with pytest.raises(ValueError, match="disk"):
        actor.step()
    actor, _ = actor_on()
    actor.online = None
    with pytest.raises(TypeError, match="NoneType"):
        actor.step()
    assert actor.stats()["environment_failures"] == 0.0
    actor.close()
