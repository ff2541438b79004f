"""Which actors of a fleet are living, and where their environments are in the fleet."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable

from qfleet.cluster.restarts import NOTE_PERIOD, listed

LOST_AFTER = 10.0  # seconds without an answer after which an actor leaves the fleet


class Roster:
    """Which actors of a fleet are living, that is, answer polls within LOST_AFTER seconds; and their places.

        roster = Roster(environments=16, ladder=True)
        roster.asked(3, now)
        roster.answer(3, now)
        line = roster.update(polled)  # for the user, about actors that were lost or returned, or ""
        roster.place(3)  # (0, 16)

    The environments of the living actors, in the order of their indices, are numbered without gaps. ``environments``:
    of one actor. ``ladder``: whether epsilons depend on these numbers. Times are in seconds.
    """

    def __init__(self, environments: int, ladder: bool) -> None:
        self._environments, self._ladder = environments, ladder
        self._since: dict[int, float] = {}  # time of the last answer, or of the poll that is to be answered
        self.living: list[int] = []
        self._known: set[int] = set()  # actors that have lived before
        self._lost: set[int] = set()  # not reported yet, as the next two
        self._returned: set[int] = set()
        self._joined: set[int] = set()
        self._next_note = 0.0

    def asked(self, index: int, now: float) -> None:
        """Actor ``index``, which has answered all polls before, is polled: it cannot have answered earlier."""
        if index in self._since:
            self._since[index] = now

    def answer(self, index: int, now: float) -> None:
        """Actor ``index`` has answered; it joins the fleet if it was not in it."""
        self._since[index] = now
        if index not in self.living:
            self._add({index})

    def _add(self, indices: set[int]) -> None:
        self.living = sorted({*self.living, *indices})
        self._joined |= indices - self._known
        self._returned |= (indices & self._known) - self._lost  # one that was lost meanwhile is not worth a line
        self._lost -= indices
        self._known |= indices

    def remove(self, index: int) -> None:
        """Actor ``index`` ends; its index may be used again."""
        self._since.pop(index, None)
        self.living = [i for i in self.living if i != index]
        for group in (self._known, self._lost, self._returned, self._joined):
            group.discard(index)

    def update(self, now: float) -> str:
        """Remove actors that have not answered in time; returns a line about all changes since the last one, or "".

        ``now``: when answers were last awaited, because what the driver does since then is not the actors' silence.
        There is at most one line in NOTE_PERIOD seconds.
        """
        silent = {i for i in self.living if now - self._since[i] > LOST_AFTER}
        self.living = [i for i in self.living if i not in silent]
        self._lost |= silent - self._returned
        self._returned -= silent
        changes = (
            (self._lost, "does not answer", "do not answer"),
            (self._returned, "answers again", "answer again"),
            (self._joined, "joins", "join"),
        )
        words = [f"{names_of(group)} {one if len(group) == 1 else more}" for group, one, more in changes if group]
        if not words or now < self._next_note:
            return ""
        start = "warning: " if self._lost else ""
        for group in (self._lost, self._returned, self._joined):
            group.clear()
        self._next_note = now + NOTE_PERIOD
        return f"{start}{', '.join(words)}: {self._describe()}"

    def forget_news(self) -> None:
        """Report no changes up to now."""
        self._joined.clear()

    def _describe(self) -> str:
        count = f"{len(self.living)} actor{'s' if len(self.living) > 1 else ''}"
        if not self.living:
            return "no actor is left, the run waits for one"
        return f"the ladder is spread over {count}" if self._ladder else f"the run has {count}"

    def place(self, index: int) -> tuple[int, int]:
        """(number of the first environment of actor ``index``, environments of the fleet), with it in the fleet."""
        before = bisect_left(self.living, index)
        actors = len(self.living) + (self.living[before : before + 1] != [index])
        return before * self._environments, actors * self._environments


def names_of(indices: Iterable[int]) -> str:
    """The names of actors, at most five: "actor-1, actor-2"."""
    return listed([f"actor-{i}" for i in sorted(indices)])
