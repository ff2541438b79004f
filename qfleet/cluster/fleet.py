"""The actors of a run: starts those that are wanted, and changes their number during the run.

All wanted actors are requested from Ray at once. Those without room wait in Ray's queue, which is the demand that an
autoscaler sees; they join the fleet when they have started. One that fails, or cannot start, is requested again; only if
no actor has started yet, the run ends, or when all of them are given up.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping
from itertools import count
from typing import Any

import ray

from actors.actor import FleetView
from qfleet.cluster.faults import last_line, where
from qfleet.cluster.restarts import Restarts
from qfleet.cluster.roster import Roster, names_of
from qfleet.cluster.versions import versions_here
from qfleet.cluster.workers import ActorWorker
from qfleet.config import TrainConfig
from replay.security import Access
from rl.errors import RunFault
from rl.types import EpisodeResult

FIRST_WAIT = 10.0  # seconds that a starting run waits for more actors once the first is ready
FINISH_TIMEOUT = 30.0  # seconds in which replay must accept the segments of an actor that ends
KILL_AFTER = 2 * FINISH_TIMEOUT  # seconds after which an actor that does not answer is ended anyway

OnReport = Callable[[int, float, Iterable[EpisodeResult]], None]  # `RunStats.add_actor_report`


class ActorFleet:
    """Handles of a run's actors, by index.

        fleet = ActorFleet(config, run, access, base_steps, nice, options, restarts, extra_options)
        fleet.start()
        fleet.await_first(timeout, stopping, lambda: "what is short")
        for name, handle in fleet.workers():  # repeatedly, from the driver's loop
            handle.poll.remote(fleet.view(name, agent_steps))
        fleet.polled()  # and fleet.answered(name) for each that has answered, fleet.failed(name, error) if it has died
        lines = fleet.advance(stats.add_actor_report)
        fleet.scale(6)

    Args:
        run: the run's name.
        base_steps: agent steps made before a resume.
        nice: niceness added to the processes.
        options: returns Ray's options of an actor, by the placement that the run has then.
        restarts: the failures of the run's processes.
        extra_options: those that differ for actors beyond the ``actors.count`` of ``config``.
    """

    def __init__(
        self,
        config: TrainConfig,
        run: str,
        access: Access,
        base_steps: int,
        nice: int,
        options: Callable[[], Mapping[str, Any]],
        restarts: Restarts,
        extra_options: Mapping[str, Any] | None = None,
    ) -> None:
        self._config, self._arguments = config, (base_steps, run, nice, access, versions_here())
        self._options, self._extra_options = options, extra_options or {}
        self._class: Any = ray.remote(ActorWorker)
        self.wanted = config.actors.count
        self.roster = Roster(config.actors.environments, config.exploration.kind == "ladder")
        self.handles: dict[int, Any] = {}  # of the wanted actors, also of those that still wait for room
        self.actors: list[Any] = []  # handles of those that have started
        self._starting: dict[int, Any] = {}  # calls that are answered once the actor has started
        self._finishing: dict[int, tuple[Any, Any, float]] = {}  # handle, call, time at which the actor is killed
        self._restarts = restarts
        self._has_started = False  # whether an actor ever has
        self._polled = time.monotonic()  # end of the last round of polls

    def start(self) -> None:
        """Request all wanted actors from Ray, except those that failed a moment ago; waits for none of them.

        Each gets the lowest free index. Raises ValueError while Ray still knows an earlier actor of that index.
        """
        waiting = {_index(n) for n in self._restarts.waiting(time.monotonic()) if n.startswith("actor-")}
        taken = {*self.handles, *self._finishing, *waiting}
        free = (i for i in count() if i not in taken)
        for _ in range(self.wanted - len(self.handles) - len(waiting)):
            self._request(next(free))

    def _request(self, index: int) -> None:
        extra = self._extra_options if index >= self._config.actors.count else {}
        options = {"name": f"actor-{index}", **self._options(), **extra}
        self.handles[index] = handle = self._class.options(**options).remote(self._config, index, *self._arguments)
        self._starting[index] = handle.__ray_ready__.remote()

    def await_first(self, timeout: float, stopping: Callable[[], bool], lack: Callable[[], str]) -> None:
        """Wait until all actors have started, but at most FIRST_WAIT seconds after the first; returns if ``stopping()``.

        Raises RunFault if none has started after ``timeout`` seconds, with ``lack()``, or if one fails before that.
        """
        deadline, has_first = time.monotonic() + timeout, False
        while self._starting and time.monotonic() < deadline and not stopping():
            self._collect_started(timeout=0.5)
            if self.actors and not has_first:
                deadline, has_first = min(deadline, time.monotonic() + FIRST_WAIT), True
        if not self.actors and not stopping():
            raise RunFault(f"no actor is ready after {timeout:g} s{lack()}")
        self.roster.forget_news()

    def _collect_started(self, timeout: float) -> None:
        """Add the actors that have started since the last call.

        Raises RunFault if one cannot start and none has started before.
        """
        if not self._starting:
            return
        calls, errors = list(self._starting.values()), {}
        done = set(ray.wait(calls, num_returns=len(calls), timeout=timeout)[0])
        for index, call in [(i, c) for i, c in self._starting.items() if c in done]:
            try:
                ray.get(call)
            except ray.exceptions.ActorUnavailableError:  # the network is interrupted
                self._starting[index] = self.handles[index].__ray_ready__.remote()
            except ray.exceptions.RayError as error:
                errors[index] = error
            else:
                del self._starting[index]
                self._has_started = True
                self.actors.append(self.handles[index])
                self.roster.answer(index, time.monotonic())
                self._restarts.started(f"actor-{index}", time.monotonic())
        for index, why in errors.items():
            if not self._has_started:
                raise RunFault(f"actor-{index} could not start{where(why)}: {last_line(why)}") from why
            self.failed(f"actor-{index}", why)

    def failed(self, name: str, error: Exception) -> None:
        """Actor ``name`` has failed with ``error``: it is requested again. Raises RunFault if all actors are given up."""
        index = _index(name)
        handle = self.handles.pop(index)
        ray.kill(handle)  # it may still live, and Ray would keep its name
        if self._starting.pop(index, None) is None:
            self.actors.remove(handle)
        self.roster.remove(index)
        self._restarts.failed(name, error, time.monotonic())
        if not self.roster.living and all(self._restarts.given_up(f"actor-{i}") for i in range(self.wanted)):
            raise RunFault(self._restarts.describe_last(name))

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

    @property
    def starting(self) -> dict[str, Any]:
        """Handles of the actors that have been requested and have not started yet, by name."""
        return {f"actor-{i}": self.handles[i] for i in self._starting}

    def view(self, name: str, agent_steps: int) -> FleetView:
        """What actor ``name`` is told in a poll now; ``agent_steps``: of all actors since the run's first start."""
        self.roster.asked(_index(name), time.monotonic())
        return FleetView(*self.roster.place(_index(name)), agent_steps)

    def polled(self) -> None:
        """All actors were polled, and their answers awaited for a moment."""
        self._polled = time.monotonic()

    def answered(self, name: str) -> int:
        """Actor ``name`` has answered a poll; returns its index."""
        self.roster.answer(_index(name), time.monotonic())
        return _index(name)

    def scale(self, wanted: int) -> None:
        """Change the number of wanted actors. Those that still wait for room end first, then the highest indices.

        Those that have failed are requested at once.
        """
        self.wanted = wanted
        self._restarts.clear()
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

    def advance(self, report: OnReport, may_start: bool = True) -> list[str]:
        """Advance towards the wanted number without waiting; returns lines for the user.

        ``report`` gets what the actors that have ended did since their last poll. With ``may_start`` False, none is
        requested: without a learner an actor could not act, and might take the room that the learner waits for.
        """
        with contextlib.suppress(ValueError):  # the name of an actor that has just ended: the next call tries again
            if may_start:
                self.start()
        self._collect_started(timeout=0.0)
        lines = [self._advance_ends(report), self.roster.update(self._polled)]
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
            rejected = names_of(index for index, segments in unsent.items() if segments)
            words += [
                f"replay did not accept {sum(unsent.values())} segments of {rejected} within {FINISH_TIMEOUT:g} s"
            ]
        if silent:
            words += [f"{names_of(silent)} ended without an answer, what they had not sent is lost"]
        return f"warning: {', and '.join(words)}" if words else ""

    def all_handles(self) -> list[Any]:
        """Handles of all actors: those that wait for room, work, or end."""
        return [*self.handles.values(), *(handle for handle, _, _ in self._finishing.values())]


def _index(name: str) -> int:
    return int(name.removeprefix("actor-"))
