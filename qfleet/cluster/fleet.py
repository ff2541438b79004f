"""The actors of a run: starts those that are wanted, knows which of them live, and changes their number during the run.

All wanted actors are requested from Ray at once. Those without room wait in Ray's queue, which is the demand that an
autoscaler sees; they join the fleet when they have started. Ray restarts an actor whose process or node dies.
"""

from __future__ import annotations

import contextlib
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import ray

from actors.actor import FleetView
from qfleet.cluster.faults import last_line
from qfleet.cluster.workers import ActorWorker
from qfleet.config import TrainConfig
from replay.security import Access
from rl.errors import RunFault
from rl.types import EpisodeResult

FIRST_WAIT = 10.0  # seconds that a starting run waits for more actors once the first is ready
LOST_AFTER = 10.0  # seconds without an answer after which an actor leaves the fleet
NOTE_PERIOD = 10.0  # seconds between two lines about actors that join, are lost, or return
FINISH_TIMEOUT = 30.0  # seconds in which replay must accept the segments of an actor that ends
KILL_AFTER = 2 * FINISH_TIMEOUT  # seconds after which an actor that does not answer is ended anyway

OnReport = Callable[[int, float, Iterable[EpisodeResult]], None]  # `RunStats.add_actor_report`


class Roster:
    """Which actors of a fleet are living, that is, have answered within the last LOST_AFTER seconds; and their places.

        roster = Roster(environments=16, ladder=True)
        roster.answer(3, now)
        line = roster.update(now)  # a line for the user about actors that were lost or returned, or ""
        roster.place(3)  # (0, 16)

    The environments of the living actors, in the order of their indices, are numbered without gaps. ``environments``:
    of one actor. ``ladder``: whether epsilons depend on these numbers. Times are in seconds.
    """

    def __init__(self, environments: int, ladder: bool) -> None:
        self._environments, self._ladder = environments, ladder
        self._answered: dict[int, float] = {}  # time of the last answer
        self.living: list[int] = []
        self._known: set[int] = set()  # actors that have lived before
        self._lost: set[int] = set()  # not reported yet, as the next two
        self._returned: set[int] = set()
        self._joined: set[int] = set()
        self._next_note = 0.0

    def answer(self, index: int, now: float) -> None:
        """Actor ``index`` has answered; it joins the fleet if it was not in it."""
        self._answered[index] = now
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
        self._answered.pop(index, None)
        self.living = [i for i in self.living if i != index]
        for group in (self._known, self._lost, self._returned, self._joined):
            group.discard(index)

    def update(self, now: float) -> str:
        """Remove actors that have not answered in time; returns a line about all changes since the last one, or "".

        There is at most one line in NOTE_PERIOD seconds.
        """
        silent = {i for i in self.living if now - self._answered[i] > LOST_AFTER}
        self.living = [i for i in self.living if i not in silent]
        self._lost |= silent - self._returned
        self._returned -= silent
        changes = (
            (self._lost, "does not answer", "do not answer"),
            (self._returned, "answers again", "answer again"),
            (self._joined, "joins", "join"),
        )
        words = [f"{_names(group)} {one if len(group) == 1 else more}" for group, one, more in changes if group]
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


def _names(indices: Iterable[int]) -> str:
    """The names of actors, of the first four if there are more than five: "actor-1, actor-2"."""
    names = [f"actor-{i}" for i in sorted(indices)]
    if len(names) > 5:
        names = [*names[:4], f"{len(names) - 4} more"]
    return ", ".join(names)


class ActorFleet:
    """Handles of a run's actors, by index.

        fleet = ActorFleet(config, run, access, base_steps, nice, options, extra_options)
        fleet.start()
        fleet.await_first(timeout, stopping)
        for name, handle in fleet.workers():  # repeatedly, from the driver's loop
            handle.poll.remote(fleet.view(name, agent_steps))  # and fleet.answered(name) when it has answered
        lines = fleet.advance(stats.add_actor_report)
        fleet.scale(6)

    Args:
        run: the run's name.
        base_steps: agent steps made before a resume.
        nice: niceness added to the processes.
        options: Ray options of each actor.
        extra_options: those that differ for actors beyond the ``actors.count`` of ``config``.
    """

    def __init__(
        self,
        config: TrainConfig,
        run: str,
        access: Access,
        base_steps: int,
        nice: int,
        options: Mapping[str, Any],
        extra_options: Mapping[str, Any] | None = None,
    ) -> None:
        self._config, self._arguments = config, (base_steps, run, nice, access)
        self._options, self._extra_options = options, extra_options or {}
        self._class: Any = ray.remote(ActorWorker)
        self.wanted = config.actors.count
        self.roster = Roster(config.actors.environments, config.exploration.kind == "ladder")
        self.handles: dict[int, Any] = {}  # of the wanted actors, also of those that still wait for room
        self.actors: list[Any] = []  # handles of those that have started; the same list object all the time
        self._starting: dict[int, Any] = {}  # calls that are answered once the actor has started
        self._finishing: dict[int, tuple[Any, Any, float]] = {}  # handle, call, time at which the actor is killed

    def start(self) -> None:
        """Request all wanted actors from Ray; waits for none of them."""
        while len(self.handles) < self.wanted:
            self._request()

    def _request(self) -> None:
        """Request the actor of the lowest free index. Raises ValueError while Ray still knows an earlier one."""
        index = next(
            i for i in range(self.wanted + len(self._finishing)) if i not in {**self.handles, **self._finishing}
        )
        extra = self._extra_options if index >= self._config.actors.count else {}
        options = {"name": f"actor-{index}", **self._options, **extra}
        self.handles[index] = handle = self._class.options(**options).remote(self._config, index, *self._arguments)
        self._starting[index] = handle.__ray_ready__.remote()

    def await_first(self, timeout: float, stopping: Callable[[], bool]) -> None:
        """Wait until all actors have started, but at most FIRST_WAIT seconds after the first; returns if ``stopping()``.

        Raises RunFault if none has started after ``timeout`` seconds, or if one cannot start.
        """
        deadline, has_first = time.monotonic() + timeout, False
        while self._starting and time.monotonic() < deadline and not stopping():
            self._collect_started(timeout=0.5)
            if self.actors and not has_first:
                deadline, has_first = min(deadline, time.monotonic() + FIRST_WAIT), True
        if not self.actors and not stopping():
            resources: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
            raise RunFault(
                f"no actor is ready after {timeout:g} s (needed: {self._options.get('num_cpus', 1)} CPU each; free in the "
                f"cluster: {resources.get('CPU', 0):g} CPU): add nodes, reduce `replay.shards` or `learner.threads`, or "
                "raise `ready_timeout`"
            )
        self.roster.forget_news()

    def _collect_started(self, timeout: float) -> None:
        """Add the actors that have started since the last call. Raises RunFault if one cannot start."""
        if not self._starting:
            return
        calls = list(self._starting.values())
        done = set(ray.wait(calls, num_returns=len(calls), timeout=timeout)[0])
        for index, call in [(i, c) for i, c in self._starting.items() if c in done]:
            del self._starting[index]
            try:
                ray.get(call)
            except ray.exceptions.ActorUnavailableError:  # Ray restarts it
                self._starting[index] = self.handles[index].__ray_ready__.remote()
                continue
            except ray.exceptions.RayActorError as error:
                raise RunFault(f"actor-{index} could not start: {last_line(error)}") from error
            self.actors.append(self.handles[index])
            self.roster.answer(index, time.monotonic())

    @property
    def living(self) -> int:
        """Number of living actors, with those that still end."""
        return len(self.roster.living) + len(self._finishing)

    @property
    def finishing(self) -> int:
        """Number of actors that still end, and may have segments in flight."""
        return len(self._finishing)

    @property
    def environments(self) -> int:
        """Environments of the living actors together."""
        return len(self.roster.living) * self._config.actors.environments

    def workers(self) -> list[tuple[str, Any]]:
        """(name, handle) of every wanted actor that has started."""
        return [(f"actor-{i}", handle) for i, handle in self.handles.items() if i not in self._starting]

    def view(self, name: str, agent_steps: int) -> FleetView:
        """What actor ``name`` has to know now; ``agent_steps``: of all actors since the run's first start."""
        return FleetView(*self.roster.place(_index(name)), agent_steps)

    def answered(self, name: str) -> int:
        """Actor ``name`` has answered a poll; returns its index."""
        self.roster.answer(_index(name), time.monotonic())
        return _index(name)

    def scale(self, wanted: int) -> None:
        """Change the number of wanted actors. Those that still wait for room end first, then the highest indices."""
        self.wanted = wanted
        by_rank = sorted(self.handles, key=lambda i: (i in self.roster.living, -i))
        for index in by_rank[: max(len(self.handles) - wanted, 0)]:
            handle = self.handles.pop(index)
            self.roster.remove(index)
            if self._starting.pop(index, None) is not None:
                ray.kill(handle)
                continue
            self.actors.remove(handle)
            call = handle.finish.remote(FINISH_TIMEOUT)
            self._finishing[index] = (handle, call, time.monotonic() + KILL_AFTER)

    def advance(self, report: OnReport) -> list[str]:
        """Advance towards the wanted number without waiting; returns lines for the user.

        ``report`` gets what the actors that have ended did since their last poll. Raises RunFault if an actor cannot
        start.
        """
        with contextlib.suppress(ValueError):  # the name of an actor that has just ended: the next call tries again
            self.start()
        self._collect_started(timeout=0.0)
        lines = [self._advance_ends(report), self.roster.update(time.monotonic())]
        return [line for line in lines if line]

    def _advance_ends(self, report: OnReport) -> str:
        """Kill the actors that have finished or are out of time; returns a warning about lost segments, or ""."""
        unsent, silent = {}, []
        for index, (handle, call, deadline) in list(self._finishing.items()):
            if not ray.wait([call], timeout=0)[0] and time.monotonic() < deadline:
                continue
            try:
                answer = ray.get(call, timeout=0)
                report(index, answer["agent_steps"], answer["episodes"])
                unsent[index] = answer["unsent"]
            except (ray.exceptions.RayError, TimeoutError):
                silent.append(index)
            ray.kill(handle)
            del self._finishing[index]
        words = []
        if sum(unsent.values()):
            rejected = _names(index for index, segments in unsent.items() if segments)
            words += [
                f"replay did not accept {sum(unsent.values())} segments of {rejected} within {FINISH_TIMEOUT:g} s"
            ]
        if silent:
            words += [f"{_names(silent)} ended without an answer, what they had not sent is lost"]
        return f"warning: {', and '.join(words)}" if words else ""

    def all_handles(self) -> list[Any]:
        """Handles of all actors: those that wait for room, work, or end."""
        return [*self.handles.values(), *(handle for handle, _, _ in self._finishing.values())]


def _index(name: str) -> int:
    return int(name.removeprefix("actor-"))
