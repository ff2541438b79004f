"""What the Ray actors of a run have in common, and how a single one, such as the learner, is started again."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import ray

from qfleet.cluster.restarts import Restarts
from rl.errors import BadInput, RunFault, Unreachable


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


class ThreadedLoop:
    """Runs the loop of a component in its own thread; `failure` holds the reason if it fails.

    A RunFault ends the run: the component knows what is wrong. After Unreachable or any other exception, for example of
    a GPU, a new process may do better, so `restart` is set.
    """

    def __init__(self, body: Callable[[], None], name: str) -> None:
        self.stopping = threading.Event()
        self.failure: str | None = None
        self.restart = False
        self._body = body
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def is_started(self) -> bool:
        """Whether `start` was called."""
        return self._thread.ident is not None

    @property
    def is_alive(self) -> bool:
        """Whether the loop runs."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def _run(self) -> None:
        try:
            self._body()
        except RunFault as fault:
            self._fail(str(fault), isinstance(fault, Unreachable))
        except Exception as error:
            traceback.print_exc()  # into Ray's log of the process
            self._fail(f"{type(error).__name__}: {error}", True)

    def _fail(self, why: str, restart: bool) -> None:
        if not self.stopping.is_set():
            self.restart, self.failure = restart, why

    @property
    def state(self) -> dict[str, Any]:
        """`failure` and `restart`, for the answer to a poll."""
        return {"failure": self.failure, "restart": self.restart}

    def stop(self, timeout: float) -> bool:
        """Ask the loop to end; returns whether it ended within ``timeout`` seconds, or was never started."""
        self.stopping.set()
        if self.is_started:
            self._thread.join(timeout)
        return not self._thread.is_alive()


class Process:
    """The one process of its ``name`` in a run; it is started again after it has failed.

        process = Process("evaluator", make, restarts)
        process.start()
        process.failed(error)
        if process.advance():  # repeatedly, from the driver's loop; it never waits
            ...  # it has just started, for the first time or again

    ``make`` requests it from Ray and returns its handle; it may raise BadInput while no node suits it. ``begin`` makes
    the call that is answered once it works; `answer` is its answer.
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
        self.answer: Any = None
        self._start_call: Any = None
        self._is_failed = False
        self.is_working = False
        self.has_started = False  # whether it ever has

    def start(self) -> None:
        """Let it begin to work."""
        try:
            self._start_call = self._begin(self.handle)
        except (RunFault, BadInput, OSError, ray.exceptions.RayError) as error:  # for example, a damaged checkpoint
            self.failed(error)

    def started(self, answer: Any = None) -> None:
        """It works."""
        self.answer, self._start_call = answer, None
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
        """Start it again when it is time to. Returns True once, when it has started."""
        if self._is_failed:
            self._replace()
            return False
        if self._start_call is None or not is_ready(self._start_call):
            return False
        try:
            self.started(ray.get(self._start_call))
        except ray.exceptions.ActorUnavailableError:  # the network is interrupted
            self.start()
        except ray.exceptions.RayError as error:
            self.failed(error)
        return self.is_working

    def _replace(self) -> None:
        if self.name in self._restarts.waiting(time.monotonic()):
            return
        ray.kill(self.handle)  # it may still live, and Ray would keep its name
        try:
            self.handle = self._make()
        except ValueError:  # Ray still knows the name: the next call tries again
            return
        except (BadInput, ray.exceptions.RayError):
            self._restarts.postpone(self.name, time.monotonic())
            return
        self._is_failed = False
        self.start()


def is_ready(ref: Any) -> bool:
    """Whether Ray has the result, or the error, of the call ``ref``."""
    return bool(ray.wait([ref], timeout=0)[0])
