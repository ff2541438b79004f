"""What the two clients share: a channel to one shard that says what is wrong, and when to give the shard up."""

from __future__ import annotations

import time

import grpc

from protos import replay_pb2 as pb
from protos import replay_pb2_grpc as rpc
from replay.service import CHANNEL_OPTIONS, NO_CREDIT
from rl.errors import BadInput, RunFault

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
        self._silent_since = None
        self._pause = RETRY_FROM

    def failed(self, error: grpc.RpcError) -> float:
        """Note a failure; returns the seconds to wait before the next attempt. Sets ``gone`` when it was one too many.

        Raises RunFault on an error that no retry mends (a refused request).
        """
        code = error.code() if isinstance(error, grpc.Call) else grpc.StatusCode.UNKNOWN
        details = error.details() if isinstance(error, grpc.Call) else str(error)
        waiting = code == grpc.StatusCode.RESOURCE_EXHAUSTED and str(details).startswith(NO_CREDIT)
        refused = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.RESOURCE_EXHAUSTED)
        if code in refused and not waiting:
            raise RunFault(f"replay shard {self.address} refused a request: {details}")
        self.last_error = f"{code.name}: {details}"
        now = time.monotonic()
        if waiting or code == grpc.StatusCode.FAILED_PRECONDITION:
            self.answered()  # it speaks, so it is alive
        elif self._silent_since is None:
            self._silent_since = now
        elif now - self._silent_since > self.give_up_after:
            self.gone = True
        pause, self._pause = self._pause, min(self._pause * 2, RETRY_TO)
        return pause

    def __reduce__(self) -> tuple[type[Link], tuple[str, float]]:
        return Link, (self.address, self.give_up_after)


def ask_for_snapshot(address: str, timeout: float) -> pb.SnapshotReply:
    """Have the shard at ``address`` write a snapshot. Raises RunFault with the reason, or after ``timeout`` seconds."""
    link = Link(address, timeout)
    try:
        reply: pb.SnapshotReply = link.stub.Snapshot(pb.SnapshotRequest(), timeout=timeout)
        return reply
    except grpc.RpcError as error:
        reason = error.details() if isinstance(error, grpc.Call) else error
        raise RunFault(f"replay shard {address} wrote no snapshot: {reason}") from error
    finally:
        link.channel.close()


def ask_for_info(address: str, timeout: float = 10.0) -> pb.InfoReply:
    """What the shard at ``address`` says of itself. Raises BadInput when none answers there within ``timeout`` seconds."""
    link = Link(address, timeout)
    try:
        reply: pb.InfoReply = link.stub.Info(pb.InfoRequest(), timeout=timeout)
        return reply
    except grpc.RpcError as error:
        reason = error.details() if isinstance(error, grpc.Call) else error
        raise BadInput(f"no replay shard answers at {address}: {reason}; write host:port of one that runs") from error
    finally:
        link.channel.close()


def all_gone(links: list[Link]) -> RunFault:
    """The error that a client raises when no shard is left."""
    states = "; ".join(f"{link.address} ({link.last_error})" for link in links)
    return RunFault(f"no replay shard has answered for {links[0].give_up_after:g} s: {states}")
