"""When processes that have failed are started again, how often they have failed, and what the user is told of it.

A process that has worked for STEADY seconds is started again at once. One that fails sooner waits, each time twice as
long; after MAX_FAILURES such failures it is given up, and the run ends; an actor is given up only when no other one lives.
Ray itself restarts nothing: it would repeat the constructor with the arguments of the run's start.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from qfleet.cluster.faults import last_line, where

STEADY = 30.0  # seconds of work after which a failure counts as the first one again
FIRST_DELAY = 1.0  # seconds from the second failure in a row to the next start
LAST_DELAY = 300.0  # the delay doubles up to this
WAIT = 5.0  # seconds from one look for a suitable node to the next
MAX_FAILURES = 8  # in a row, after which a process is given up: with these delays, after one to two minutes
NOTE_PERIOD = 10.0  # seconds between two lines, also of those about actors that join, are lost, or return
TITLES = {name: f"the {name}" for name in ("learner", "evaluator", "board", "weight store")}  # in messages


class Restarts:
    """The failures of a run's processes, by name.

        restarts = Restarts()
        restarts.failed("actor-3", error, now)
        restarts.waiting(now)  # {"actor-3"} until it is to be started again
        restarts.started("actor-3", now)
        line = restarts.news(now)  # a warning about those that have failed, or ""
        restarts.status()  # for `qfleet status` and the logs

    Times are in seconds of one clock.
    """

    def __init__(self) -> None:
        self._started: dict[str, float] = {}  # when each process last started
        self._in_a_row: dict[str, int] = {}  # failures
        self._due: dict[str, float] = {}  # times of the next start
        self._why: dict[str, str] = {}  # where and why each process failed last
        self._untold: dict[str, None] = {}  # names of those that have failed since the last line
        self._next_note = 0.0
        self._counts: Counter[str] = Counter()  # failures by kind of process
        self._last: tuple[str, float] | None = None  # the last failure, and its time by the wall clock

    def failed(self, name: str, error: Exception, now: float) -> None:
        """The process has failed, or could not start."""
        began = self._started.pop(name, None)
        steady = began is not None and now - began >= STEADY
        self._in_a_row[name] = failures = 1 if steady else self._in_a_row.get(name, 0) + 1
        self._due[name] = now + self._delay(failures)
        self._why[name] = f"{where(error)} ({last_line(error)})"
        self._untold[name] = None
        self._counts[name.split("-")[0]] += 1
        self._last = f"{title(name)} has failed{self._why[name]}", time.time()

    @staticmethod
    def _delay(failures: int) -> float:
        """Seconds from a failure to the next start; ``failures``: in a row."""
        return 0.0 if failures < 2 else min(FIRST_DELAY * 2 ** (failures - 2), LAST_DELAY)

    def waiting(self, now: float) -> set[str]:
        """Processes that are not to be started yet."""
        return {name for name, due in self._due.items() if now < due}

    def given_up(self, name: str) -> bool:
        """Whether the process has failed MAX_FAILURES times in a row."""
        return self._in_a_row.get(name, 0) >= MAX_FAILURES

    def describe_last(self, name: str) -> str:
        """Why the process is given up, as a part of a message."""
        return f"{title(name)} has failed {self._in_a_row[name]} times in a row, last{self._why[name]}"

    def postpone(self, name: str, now: float) -> None:
        """The process cannot be started now, because no node suits it: that is no failure."""
        self._due[name] = now + WAIT

    def started(self, name: str, now: float) -> None:
        """The process has started."""
        self._started[name] = now
        self._due.pop(name, None)

    def forget(self, name: str) -> None:
        """The process is not wanted any more."""
        self._started.pop(name, None)
        self._in_a_row.pop(name, None)
        self._due.pop(name, None)

    def clear(self) -> None:
        """Let all be started now."""
        self._in_a_row.clear()
        self._due.clear()

    def news(self, now: float) -> str:
        """A line about those that have failed since the last one, or ""; at most one line in NOTE_PERIOD seconds."""
        if not self._untold or now < self._next_note:
            return ""
        names = list(self._untold)
        why = self._why[names[-1]]
        delay = max(self._delay(self._in_a_row.get(name, 0)) for name in names)
        self._untold.clear()
        self._next_note = now + NOTE_PERIOD
        one = len(names) == 1
        when = f" after {'' if one else 'at most '}{delay:g} s" if delay else ""
        if one:
            return f"warning: {title(names[0])} has failed{why}: it is started again{when}"
        listing = listed([title(name) for name in names])
        return f"warning: {listing} have failed, {title(names[-1])}{why}: they are started again{when}"

    def status(self) -> dict[str, Any]:
        """`restarts`: failures after which a process was started again, or is to be, in all and by kind of process.

        `last_fault`: a line about the last one, or "", and its Unix time.
        """
        what, at = self._last or ("", None)
        counts = {"restarts": self._counts.total(), "restarts_by_kind": dict(self._counts)}
        return {**counts, "last_fault": what, "last_fault_time": at}


def title(name: str) -> str:
    """The name of a process in messages: "the learner", "actor-3"."""
    return TITLES.get(name, name)


def listed(names: Sequence[str]) -> str:
    """The names, or the first four if there are more than five: "actor-1, actor-2"."""
    shown = names if len(names) <= 5 else [*names[:4], f"{len(names) - 4} more"]
    return ", ".join(shown)
