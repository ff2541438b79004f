"""Errors of Ray shortened to one line."""

from __future__ import annotations

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, OutOfMemoryError, RuntimeEnvSetupError

from qfleet.cluster.faults import DIED, first_line, last_line, reason, where

TRACEBACK = """\x1b[36mray::LearnerWorker.start()\x1b[39m (pid=7, ip=127.0.0.1)
  File "learner.py", line 3, in start

rl.errors.RunFault: the losses have diverged

"""


def test_last_line_skips_a_workers_traceback():
    assert (
        last_line(RuntimeError(TRACEBACK)) == "the losses have diverged"
    )  # our own errors are told without their class
    assert first_line(RuntimeError(TRACEBACK)).startswith("\x1b[36mray::LearnerWorker.start()")


@pytest.mark.parametrize("line", [first_line, last_line])
def test_an_error_without_a_message_is_shown_as_its_repr(line):
    assert line(ValueError()) == "ValueError()"
    assert line(ValueError(" \n ")) == repr(ValueError(" \n "))


def test_the_reason_for_an_actors_death_is_that_of_its_constructor_and_says_where():
    died = ActorDiedError()
    died.error_msg = (
        "The actor died because of an error raised in its creation task, ray::A.__init__() (pid=7, ip=10.0.0.7, "
    )
    died.error_msg += "actor_id=12)\n  File ...\nrl.errors.RunFault: no ROM"
    assert (reason(died), where(died)) == ("no ROM", " on the node 10.0.0.7")
    died.error_msg = (
        "The actor died unexpectedly before finishing this task.\n\tpid: 7\n\tip: 10.0.0.8\nIts node has died."
    )
    assert (reason(died), where(died)) == ("Its node has died.", " on the node 10.0.0.8")
    assert reason(ActorUnavailableError("no route", None)).startswith("The actor None is unavailable: no route.")
    died.error_msg = (
        "The actor died unexpectedly before finishing this task.\n\tip: 10.0.0.8\nThe actor is dead because its worker "
        "process has died. Worker exit type: {} Worker exit detail: Worker unexpectedly exits. Some common causes include"
    )
    told = died.error_msg
    for kind, words in (("SYSTEM_ERROR", ""), ("NODE_OUT_OF_MEMORY", ": NODE_OUT_OF_MEMORY")):
        died.error_msg = told.format(kind)
        assert reason(died) == f"its process has died{words}"
    died.error_msg = "The actor died.\nThe actor is dead because it was killed by `ray.kill`."
    assert reason(died) == "its process was killed"
    assert isinstance(OutOfMemoryError("killed by the memory monitor"), DIED)
    setup = RuntimeEnvSetupError("no space left")
    assert (reason(setup), where(setup)) == ("no space left", "")
