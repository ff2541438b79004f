"""Processes on Ray that hang are killed, and no others: while they work, and while they start."""

from __future__ import annotations

import os
import signal
import time

import pytest
import ray

from qfleet.cluster import watch as watch_module
from qfleet.cluster.process import RunProcess
from qfleet.cluster.watch import Watch, where_is
from tests.integration.test_ray_stores import local_ray  # noqa: F401


class Part(RunProcess):
    def __init__(self, seconds=0.0):
        time.sleep(seconds)

    def sleep(self, seconds):
        time.sleep(seconds)


def start(seconds=0.0, **options):
    return ray.remote(Part).options(**{"num_cpus": 0, **options}).remote(seconds)


def until(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def dies(handle):
    with pytest.raises(ray.exceptions.ActorDiedError):
        ray.get(handle.poll.remote(), timeout=30.0)
    return True


@pytest.fixture(params=["on the driver's node", "by a task"])
def watch(request):
    """A Watch; ``notes`` are its lines for the user."""
    notes = []
    made = Watch(notes.append)
    made.notes = notes
    if request.param == "by a task":
        made._node = "another"
    return made


@pytest.mark.timeout(120)
def test_a_frozen_process_is_killed(watch):
    part = start()
    ray.get(part.poll.remote(), timeout=60.0)
    os.kill(where_is(part).pid, signal.SIGSTOP)
    watch.look_at("learner", part)
    until(lambda: watch.advance() or watch.notes)
    assert watch.notes == ["warning: the learner does not answer, so its process was killed"]
    assert dies(part)
    watch.look_at("learner", part)  # it has no process any more
    assert (watch._calls, len(watch.notes)) == ({}, 1)


@pytest.mark.timeout(120)
def test_a_process_that_never_answers_is_killed_and_one_that_answers_late_is_not():
    watch = Watch(lambda line: None)
    stuck, late = start(), start()
    ray.get([stuck.poll.remote(), late.poll.remote()], timeout=60.0)
    stuck.sleep.remote(300.0)
    asleep = late.sleep.remote(2.0)
    watch.look_at("shard-0", stuck, patience=2.0)
    watch.look_at("shard-1", late, patience=30.0)
    until(lambda: watch.advance() or not watch._calls)
    assert dies(stuck)
    ray.get(asleep, timeout=30.0)
    assert ray.get(late.poll.remote(), timeout=30.0)["failure"] is None
    late.sleep.remote(1.0)
    watch.look_at("shard-1", late)
    watch.heard("shard-1")  # it has answered the driver: the task is not needed any more
    assert watch._calls == {}
    assert ray.get(late.poll.remote(), timeout=30.0)["failure"] is None
    ray.kill(late)


@pytest.mark.timeout(120)
def test_a_process_that_freezes_or_takes_too_long_while_it_starts_is_killed(watch, monkeypatch):
    """One that waits for room has no process, and is left alone; so is one that starts slowly."""
    monkeypatch.setattr(watch_module, "START_PERIOD", 0.2)
    frozen, slow, waiting = start(100.0), start(100.0), start(num_cpus=1000)
    starting = {"actor-0": frozen, "actor-1": slow, "actor-2": waiting}
    until(lambda: where_is(frozen) and where_is(slow))

    def look(seconds):
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            watch.look_at_starts(starting)
            watch.advance()
            time.sleep(0.1)
        return True

    assert look(2.0)
    assert (watch.notes, where_is(waiting)) == ([], None)
    os.kill(where_is(frozen).pid, signal.SIGSTOP)
    until(lambda: look(0.2) and watch.notes)
    assert watch.notes == ["warning: actor-0 does not answer, so its process was killed"]
    assert dies(frozen)
    assert where_is(slow) is not None
    del starting["actor-0"]
    monkeypatch.setattr(watch_module, "START_TIMEOUT", 0.1)
    until(lambda: look(0.2) and len(watch.notes) > 1)
    assert dies(slow)
    ray.kill(waiting)
