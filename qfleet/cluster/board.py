"""The board of a run: its driver stores the run's status there, and other processes leave requests for the driver."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

import ray

from qfleet.cluster.faults import DIED, reason
from qfleet.cluster.process import RunProcess
from rl.errors import BadInput, RunFault, Unreachable

if TYPE_CHECKING:
    from qfleet.run.directory import ScaleRequest

BOARD = "board"  # the actor's name, in the run's own namespace
TIMEOUT = 30.0  # seconds to wait for an answer of the board
GONE = "the run's board is gone: the run has ended or was killed, or starts its board again (then try in a few seconds)"


class ShardsView(NamedTuple):
    """What an actor has to know of the replay shards; it gets it with each poll."""

    version: int  # grows with each change
    addresses: list[str]  # host:port of those that it writes to


class RunBoard(RunProcess):
    """A Ray actor that stores a run's status, the addresses of its shards, and the last request of `qfleet scale`."""

    def __init__(self) -> None:
        self._status: dict[str, Any] = {}
        self._shards: list[str] = []
        self._request: ScaleRequest = {}

    def set_status(self, status: dict[str, Any], shards: list[str]) -> ScaleRequest:
        """Store the status that `qfleet status` shows, and the addresses (host:port) of the replay shards.

        Returns the last request of `qfleet scale`, {} if none. The driver sends all of it each time, so that a board
        that was started again has it, too.
        """
        self._status, self._shards = status, shards
        return self._request

    def status(self) -> dict[str, Any]:
        """The stored status, {} before the first."""
        return self._status

    def set_shards(self, addresses: list[str]) -> None:
        """Store the addresses (host:port) of the replay shards, before the first status is known."""
        self._shards = addresses

    def shards(self) -> list[str]:
        """The addresses (host:port) of the replay shards; an actor asks for them when it starts."""
        return self._shards

    def request_scale(self, request: ScaleRequest) -> None:
        """Store a request for numbers of shards and actors; the driver receives it from its next `set_status`."""
        self._request = request

    def last_request(self) -> ScaleRequest:
        """The last request, {} if none."""
        return self._request


class RemoteBoard:
    """A client of a run's board, for another process. Each call waits for the answer.

    board = RemoteBoard.of("cartpole-seed1", "auto")  # or RemoteBoard.here(), in one of the run's own processes
    before = board.status()
    board.request_scale({"shards": 2, "actors": None, "number": uuid.uuid4().hex})
    """

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    @classmethod
    def here(cls) -> RemoteBoard:
        """The board of the run that this process, a Ray actor, is part of. Raises RunFault when it is gone."""
        try:
            return cls(ray.get_actor(BOARD))
        except ValueError:
            raise RunFault(GONE) from None

    @classmethod
    def of(cls, run: str, address: str) -> RemoteBoard:
        """The board of the run called ``run`` in the Ray at ``address``. Raises BadInput if either is missing."""
        from qfleet.cluster.connect import HINT, join_ray  # imports torch, which the board itself does not need

        try:
            join_ray(address, run)
        except BadInput as error:
            why = str(error).removesuffix(f": {HINT}")
            raise BadInput(
                f"{run} is not a directory here, and no cluster was found in which it could be a run's name ({why}): "
                "write the directory of a run, or its name and the --address of its cluster"
            ) from error
        try:
            return cls(ray.get_actor(BOARD, namespace=run))
        except ValueError:
            raise BadInput(
                f"{run} is neither a directory here nor a run in the Ray at {address}: "
                "write the directory or the name of a run"
            ) from None

    def status(self) -> dict[str, Any]:
        """The stored status, {} before the first. Raises RunFault."""
        return dict(_answer(self._handle.status.remote()))

    def await_shards(self, timeout: float) -> list[str]:
        """The addresses (host:port) of the replay shards, once the board has them.

        Raises RunFault; it is Unreachable after ``timeout`` seconds without addresses.
        """
        deadline = time.monotonic() + timeout
        while not (addresses := _answer(self._handle.shards.remote())):
            if time.monotonic() > deadline:
                raise Unreachable(f"the run's board has had no replay shards for {timeout:g} s")
            time.sleep(0.1)
        return list(addresses)

    def request_scale(self, request: ScaleRequest) -> None:
        """Ask for numbers of shards and actors. Raises RunFault."""
        _answer(self._handle.request_scale.remote(request))

    def last_request(self) -> ScaleRequest:
        """The last request, {} if none. Raises RunFault."""
        return dict(_answer(self._handle.last_request.remote()))


def _answer(ref: ray.ObjectRef[Any]) -> Any:
    """Wait for the board's answer.

    Raises RunFault if its process is gone, cannot be reached, or does not answer within TIMEOUT seconds.
    """
    try:
        return ray.get(ref, timeout=TIMEOUT)
    except ray.exceptions.GetTimeoutError:
        raise RunFault(
            f"the run's board has not answered for {TIMEOUT:g} s: look at its process in the Ray dashboard"
        ) from None
    except ray.exceptions.ActorUnavailableError as error:
        raise RunFault(f"the run's board cannot be reached now: {reason(error)}") from error
    except DIED as error:
        raise RunFault(GONE) from error
