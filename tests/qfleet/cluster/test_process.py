"""A part of a run that is started again; Ray is replaced by functions, tests/integration has real processes."""

from __future__ import annotations

import pytest
import ray

from qfleet.cluster import process as process_module
from qfleet.cluster import restarts as restarts_module
from qfleet.cluster.process import Process
from qfleet.cluster.restarts import Restarts
from rl.errors import BadInput, RunFault


@pytest.fixture
def fake_ray(monkeypatch):
    """Calls are their answers, or exceptions that they raise; returns the handles that were killed."""
    killed = []

    def get(call):
        if isinstance(call, Exception):
            raise call
        return call

    monkeypatch.setattr(ray, "kill", killed.append)
    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(process_module, "is_ready", lambda call: True)
    return killed


def test_a_process_that_fails_is_made_again_and_its_answer_is_kept(fake_ray):
    made = iter(["first", "second"])
    process = Process("learner", lambda: next(made), Restarts(), begin=lambda handle: f"{handle} learns")
    process.start()
    assert (process.is_starting, process.advance(), process.answer) == (True, True, "first learns")
    process.failed(RuntimeError("killed"))
    assert (process.is_working, process.is_starting) == (False, False)
    assert not process.advance()  # it is requested
    assert (fake_ray, process.handle, process.is_starting) == (["first"], "second", True)
    assert (process.advance(), process.answer, process.is_working) == (True, "second learns", True)
    assert not process.advance()  # only once


def test_a_process_waits_for_its_name_and_for_a_suitable_node_without_a_failure(fake_ray, monkeypatch):
    monkeypatch.setattr(restarts_module, "WAIT", 0.0)
    answers = iter(["first", ValueError("taken"), BadInput("no node has a GPU"), "second"])

    def make():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    restarts = Restarts()
    process = Process("learner", make, restarts, begin=lambda handle: handle)
    process.start()
    assert process.advance()
    process.failed(RuntimeError("its node has died"))
    for _ in range(3):
        assert not process.advance()
    assert process.advance()
    assert (process.handle, restarts.status()["restarts"]) == ("second", 1)


def test_a_process_that_cannot_begin_has_failed(fake_ray):
    """Its first call raises in the driver, as for a damaged checkpoint, or in the process."""
    begins = iter([OSError("the disk"), RunFault("no whole checkpoint"), ray.exceptions.RaySystemError("x")])
    restarts = Restarts()

    def begin(handle):
        error = next(begins)
        if isinstance(error, ray.exceptions.RayError):
            return error
        raise error

    process = Process("learner", lambda: "handle", restarts, begin)
    for failures in (1, 2):
        process.start()
        assert restarts.status()["restarts"] == failures
    process.start()
    process._is_failed = False
    assert not process.advance()
    assert (restarts.status()["restarts"], process.is_starting) == (3, False)


def test_a_call_that_the_network_lost_is_made_again(fake_ray):
    calls = iter([ray.exceptions.ActorUnavailableError("no route", None), "works"])
    restarts = Restarts()
    process = Process("learner", lambda: "handle", restarts, begin=lambda handle: next(calls))
    process.start()
    assert not process.advance()
    assert process.advance()
    assert restarts.status()["restarts"] == 0
