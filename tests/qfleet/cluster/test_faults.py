"""Errors of Ray shortened to one line."""

from __future__ import annotations

import pytest

from qfleet.cluster.faults import first_line, last_line

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
