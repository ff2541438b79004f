"""When processes that have failed are requested from Ray again, and what the user is told of them.

Ray restarts a process that dies, but not one whose constructor raised.
"""

from __future__ import annotations

from collections.abc import Sequence

from qfleet.cluster.faults import last_line, where

FIRST_DELAY = 5.0  # seconds from the first failure of a process to its next request
LAST_DELAY = 300.0  # the delay doubles up to this
NOTE_PERIOD = 10.0  # seconds between two lines, also of those about actors that join, are lost, or return


class Retries:
    """Processes that have failed, by name.

        retries = Retries()
        retries.failed("actor-3", error, now)
        retries.waiting(now)  # {"actor-3"} for 5 seconds; after its next failure for 10 seconds, at most for 5 minutes
        retries.started("actor-3")  # its next delay is the first again
        line = retries.news(now)  # a warning about those that have failed, or ""

    Times are in seconds.
    """

    def __init__(self) -> None:
        self._delays: dict[str, float] = {}  # the last one of each process
        self._due: dict[str, float] = {}  # times
        self._untold: dict[str, str] = {}  # where and why
        self._next_note = 0.0

    def failed(self, name: str, error: Exception, now: float) -> None:
        """The process has failed."""
        self._delays[name] = min(2 * self._delays.get(name, FIRST_DELAY / 2), LAST_DELAY)
        self._due[name] = now + self._delays[name]
        self._untold[name] = f"{where(error)} ({last_line(error)})"

    def waiting(self, now: float) -> set[str]:
        """Processes that are not to be requested yet."""
        return {name for name, due in self._due.items() if now < due}

    def started(self, name: str) -> None:
        """The process has started."""
        self._delays.pop(name, None)
        self._due.pop(name, None)

    def clear(self) -> None:
        """Let all be requested now."""
        self._delays.clear()
        self._due.clear()

    def news(self, now: float) -> str:
        """A line about those that have failed since the last one, or ""; at most one line in NOTE_PERIOD seconds."""
        if not self._untold or now < self._next_note:
            return ""
        names, why = list(self._untold), list(self._untold.values())[-1]
        delay = max(self._delays.get(name, 0.0) for name in names)
        self._untold.clear()
        self._next_note = now + NOTE_PERIOD
        if len(names) == 1:
            return f"warning: {names[0]} has failed{why}: it is requested again after {delay:g} s"
        return f"warning: {listed(names)} have failed, {names[-1]}{why}: they are requested again after at most {delay:g} s"


def listed(names: Sequence[str]) -> str:
    """The names, or the first four if there are more than five: "actor-1, actor-2"."""
    shown = names if len(names) <= 5 else [*names[:4], f"{len(names) - 4} more"]
    return ", ".join(shown)
