"""What the Ray actors of a run have in common, and how a single one, such as the learner, is started again."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ray

from qfleet.cluster.faults import last_line, where
from qfleet.cluster.restarts import Restarts
from rl.errors import BadInput, RunFault


class RunProcess:
    """Base of the Ray actors of a run.

    They answer `poll` at any time, so that one that does not answer is known to hang.
    """

    def poll(self, *views: Any) -> dict[str, Any]:
        """What the driver has to know: the process's own `report`. ``views`` is what the process has to know.

        `failure` in the answer says why the process cannot go on, or is None; `restart` says whether it is started again
        then, or else the run ends.
        """
        return {"failure": None, "restart": False, **self.report(*views)}

    def report(self, *views: Any) -> dict[str, Any]:
        """The process's own part of the answer to `poll`."""
        return {}


class Process:
    """The one process of its ``name`` in a run; it is started again after it has failed.

        process = Process("evaluator", make, restarts)
        process.start()
        process.failed(error)
        if process.advance():  # repeatedly, from the driver's loop; it never waits
            ...  # it has just started, for the first time or again

    ``make`` requests it from Ray and returns its handle. ``begin`` makes the call that is answered once it works.
    """

    def __init__(
        self,
        name: str,
        make: Callable[[], Any],
        restarts: Restarts,
        begin: Callable[[Any], Any] = lambda handle: handle.__ray_ready__.remote(),
    ) -> None:
        self.name, self._make, self._restarts, self._begin = name, make, restarts, begin
        self.handle: Any = make()
        self._start_call: Any = None
        self._is_failed = False
        self.is_working = False
        self.has_started = False  # whether it ever has

    def start(self) -> None:
        """Let it begin to work."""
        self._start_call = self._begin(self.handle)

    def started(self) -> None:
        """It works."""
        self._start_call = None
        self.is_working = self.has_started = True
        self._restarts.started(self.name, time.monotonic())

    @property
    def is_starting(self) -> bool:
        """Whether it has been requested, and does not work yet."""
        return self._start_call is not None

    def failed(self, error: Exception) -> None:
        """It has failed with ``error``."""
        self._start_call, self.is_working, self._is_failed = None, False, True
        self._restarts.failed(self.name, error, time.monotonic())

    def advance(self) -> bool:
        """Start it again when it is time to. Returns True once, when it has started.

        Raises RunFault if it has never started, and cannot.
        """
        if self._is_failed:
            self._replace()
            return False
        if self._start_call is None or not is_ready(self._start_call):
            return False
        try:
            ray.get(self._start_call)
        except ray.exceptions.ActorUnavailableError:  # the network is interrupted
            self.start()
        except ray.exceptions.RayError as error:
            if not self.has_started:
                raise RunFault(f"{self.name} could not start{where(error)}: {last_line(error)}") from error
            self.failed(error)
        else:
            self.started()
        return self.is_working

    def _replace(self) -> None:
        if self.name in self._restarts.waiting(time.monotonic()):
            return
        ray.kill(self.handle)  # it may still live, and Ray would keep its name
        try:
            self.handle = self._make()
            self._is_failed = False
            self.start()
        except ValueError:  # Ray still knows the name: the next call tries again
            return
        except (BadInput, RunFault, OSError) as error:  # for example, no node suits it now
            self.failed(error)


def is_ready(ref: Any) -> bool:
    """Whether Ray has the result, or the error, of the call ``ref``."""
    return bool(ray.wait([ref], timeout=0)[0])
