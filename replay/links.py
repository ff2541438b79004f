"""What the two clients share: a channel to one shard that says what is wrong, and when to give the shard up."""

from __future__ import annotations

import time
from typing import Any

import grpc

from protos import replay_pb2_grpc as rpc
from replay.service import CHANNEL_OPTIONS, NO_CREDIT
from rl.errors import RunFault

RETRY_FROM, RETRY_TO = 0.1, 2.0  # seconds between attempts, doubling


class Link:
    """One shard's address and channel, and how long it has been silent.

    ``gone`` is set once ``give_up_after`` seconds have passed since its first failure after its last answer, or when it
    refused a request; it is final.
    """

    def __init__(self, address: str, give_up_after: float) -> None:
        self.address, self.give_up_after = address, give_up_after
        self.channel = grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
        self.stub = rpc.ReplayStub(self.channel)
        self.gone = False
        self.last_error = "never reached"
        self._silent_since: float | None = None  # its first failure since it last answered
        self._pause = RETRY_FROM

    def answered(self) -> None:
        """The shard is alive."""
        self.last_error = "no error"
        self._silent_since = None
        self._pause = RETRY_FROM

    def failed(self, error: grpc.RpcError) -> float:
        """Note a failure; returns the seconds to wait before the next attempt. Sets ``gone`` when it was one too many.

        Raises RunFault on an error that no retry mends (a refused request).
        """
        code, details = _status(error)
        waiting = code == grpc.StatusCode.RESOURCE_EXHAUSTED and details.startswith(NO_CREDIT)
        refused = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.RESOURCE_EXHAUSTED)
        if code in refused and not waiting:
            raise RunFault(f"replay shard {self.address} refused a request: {details}")
        now = time.monotonic()
        if waiting or code == grpc.StatusCode.FAILED_PRECONDITION:
            self.answered()  # it speaks, so it is alive
        elif self._silent_since is None:
            self._silent_since = now
        elif now - self._silent_since > self.give_up_after:
            self.gone = True
        self.last_error = f"{code.name}: {details}"
        pause, self._pause = self._pause, min(self._pause * 2, RETRY_TO)
        return pause

    def ask(self, method: str, request: Any, timeout: float) -> Any:
        """The reply of a unary method of the service. Raises RunFault when there is none within ``timeout`` seconds."""
        try:
            return getattr(self.stub, method)(request, timeout=timeout)
        except grpc.RpcError as error:
            code, details = _status(error)
            raise RunFault(f"replay shard {self.address} did not answer {method}: {code.name}: {details}") from error

    def __reduce__(self) -> tuple[type[Link], tuple[str, float]]:
        return Link, (self.address, self.give_up_after)


def _status(error: grpc.RpcError) -> tuple[grpc.StatusCode, str]:
    if isinstance(error, grpc.Call):
        return error.code(), str(error.details())
    return grpc.StatusCode.UNKNOWN, str(error)


def all_gone(links: list[Link]) -> RunFault:
    """The error that a client raises when no shard is left."""
    states = "; ".join(f"{link.address} ({link.last_error})" for link in links)
    return RunFault(f"no replay shard has answered for {links[0].give_up_after:g} s: {states}")
