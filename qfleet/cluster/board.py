"""The board of a run: what its driver pins up for others, and what others ask of the driver."""

from __future__ import annotations

from typing import Any

import ray

from qfleet.cluster.connect import join
from qfleet.run.directory import ScaleRequest
from rl.errors import BadInput, RunFault

BOARD = "board"  # the actor's name, in the run's own namespace
TIMEOUT = 30.0  # seconds in which it must answer


class RunBoard:
    """A Ray actor: the run's status, where its replay shards are, and how many it is asked to have."""

    def __init__(self) -> None:
        self._status: dict[str, Any] = {}
        self._shards: list[str] = []
        self._request: ScaleRequest = {}

    def set_status(self, status: dict[str, Any]) -> ScaleRequest:
        """Pin up what `qfleet status` shows; returns what `qfleet scale` asked for, if anything."""
        self._status = status
        return self._request

    def status(self) -> dict[str, Any]:
        """What is pinned up."""
        return self._status

    def set_shards(self, addresses: list[str]) -> None:
        """Pin up where the replay shards are."""
        self._shards = addresses

    def shards(self) -> list[str]:
        """Where the replay shards are; an actor that starts asks."""
        return self._shards

    def request_scale(self, request: ScaleRequest) -> None:
        """Note a number of replay shards for the driver."""
        self._request = request


class RemoteBoard:
    """The board of a run, for another process: each call waits for the answer. Raises RunFault."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    @classmethod
    def here(cls) -> RemoteBoard:
        """The board of the run that this Ray actor is a part of."""
        return cls(ray.get_actor(BOARD))

    @classmethod
    def of(cls, run: str, address: str) -> RemoteBoard:
        """The board of the run called ``run`` in the Ray at ``address``. Raises BadInput."""
        try:
            join(address, run)
        except BadInput as error:
            raise BadInput(f"{run} is no directory here, and as a name in a cluster: {error}") from error
        try:
            return cls(ray.get_actor(BOARD, namespace=run))
        except ValueError:
            raise BadInput(f"no run named {run!r} in the Ray at {address}, and no such directory") from None

    def status(self) -> dict[str, Any]:
        """What is pinned up."""
        return dict(_answer(self._handle.status.remote()))

    def shards(self) -> list[str]:
        """Where the replay shards are."""
        return list(_answer(self._handle.shards.remote()))

    def request_scale(self, request: ScaleRequest) -> None:
        """Ask for a number of replay shards."""
        _answer(self._handle.request_scale.remote(request))


def _answer(ref: ray.ObjectRef[Any]) -> Any:
    """What the board answers. Raises RunFault where its process is gone or silent."""
    try:
        return ray.get(ref, timeout=TIMEOUT)
    except ray.exceptions.GetTimeoutError:
        raise RunFault(
            f"the run's board has not answered for {TIMEOUT:g} s: see its process in the Ray dashboard"
        ) from None
    except ray.exceptions.RayActorError as error:
        raise RunFault("the run's board is gone: the run has ended or was killed") from error
