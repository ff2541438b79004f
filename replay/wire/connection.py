"""The part that both clients share: a channel to one shard with clear errors, and when to give the shard up."""

from __future__ import annotations

import time
from typing import Any

import grpc

from protos import replay_pb2 as pb
from protos import replay_pb2_grpc as rpc
from protos.codec import drained_from_message, info_from_message, written_from_message
from protos.types import Drained, InvalidMessage, ShardInfo, SnapshotWritten
from replay.security import UNPROTECTED, Access, SecurityConfig
from replay.wire.channel import CHANNEL_OPTIONS, NO_CREDIT, NO_STREAM
from rl.errors import BadSetting, RunFault

RETRY_FROM, RETRY_TO = 0.1, 2.0  # seconds between attempts, doubling
REFUSED = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
)
ALIVE = (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.ABORTED)  # alive, and expects the stream to be reopened
HUNG_UP = (
    " (something listens there and hangs up: a shard that expects TLS or a client's certificate, or has too many "
    "connections)"
)


class ShardConnection:
    """One shard's address and channel, and how long it has been silent.

    ``gone`` is set, for good, once ``give_up_after`` seconds have passed since its first failure after its last answer,
    or when it refused a request. Pickles as its address and its access. Raises BadInput when a TLS file cannot be read.
    """

    def __init__(self, address: str, give_up_after: float, access: Access = UNPROTECTED) -> None:
        self.address, self.give_up_after, self.access = address, give_up_after, access
        self.channel = open_channel(address, access)
        self.metadata = access.metadata  # sent with each call
        self.stub = rpc.ReplayStub(self.channel)
        self.gone = False
        self.last_error = "never reached"
        self._silent_since: float | None = None  # time of its first failure since its last answer
        self._pause = RETRY_FROM

    def answered(self) -> None:
        """Note that the shard answered: it is alive."""
        self.last_error = "no error"
        self._silent_since = None
        self._pause = RETRY_FROM

    def failed(self, error: grpc.RpcError) -> float:
        """Note a failure; returns the seconds to wait before the next attempt.

        Sets ``gone`` when the shard has been silent for too long. Raises RunFault on an error that no retry can resolve
        (a refused request).
        """
        code, details = _status(error)
        waiting = code == grpc.StatusCode.RESOURCE_EXHAUSTED and details.startswith(NO_CREDIT)
        full = code == grpc.StatusCode.RESOURCE_EXHAUSTED and details.startswith(NO_STREAM)
        if code in REFUSED and not (waiting or full):
            raise RunFault(f"replay shard {self.address} refused a request: {details}")
        hint = HUNG_UP if "failed to connect" in details and "Socket closed" in details else ""
        now = time.monotonic()
        if waiting or code in ALIVE:
            self.answered()
        elif self._silent_since is None:
            self._silent_since = now
        elif now - self._silent_since > self.give_up_after:
            self.gone = True
        self.last_error = f"{code.name}: {details}{hint}"
        pause, self._pause = self._pause, min(self._pause * 2, RETRY_TO)
        return pause

    def info(self, timeout: float) -> ShardInfo:
        """The shard's counts and settings.

        Raises RunFault, as the methods below do, when the shard does not answer within ``timeout`` seconds.
        """
        return info_from_message(self._ask("Info", pb.InfoRequest(), timeout))

    def set_limited(self, limited: bool, timeout: float) -> ShardInfo:
        """Set whether inserts need credit; returns the counts and settings after it. Raises RunFault."""
        return info_from_message(self._ask("SetLimited", pb.SetLimitedRequest(limited=limited), timeout))

    def snapshot(self, timeout: float) -> SnapshotWritten:
        """Have the shard write a snapshot to its own directory; returns what was written. Raises RunFault."""
        return written_from_message(self._ask("Snapshot", pb.SnapshotRequest(), timeout))

    def drain(self, taken: int, segments: int, timeout: float) -> Drained:
        """Have the shard remove the segments with keys below ``taken``; returns up to ``segments`` of the next ones.

        Raises RunFault, also when the reply is malformed.
        """
        reply = self._ask("Drain", pb.DrainRequest(taken=taken, segments=segments), timeout)
        try:
            return drained_from_message(reply)
        except InvalidMessage as error:
            raise RunFault(f"replay shard {self.address} sent a broken reply: {error}") from error

    def _ask(self, method: str, request: Any, timeout: float) -> Any:
        """The reply of a unary method of the service. Raises RunFault."""
        try:
            return getattr(self.stub, method)(request, timeout=timeout, metadata=self.metadata)
        except grpc.RpcError as error:
            code, details = _status(error)
            raise RunFault(f"replay shard {self.address} did not answer {method}: {code.name}: {details}") from error

    def __reduce__(self) -> tuple[type[ShardConnection], tuple[str, float, Access]]:
        return ShardConnection, (self.address, self.give_up_after, self.access)


def open_channel(address: str, access: Access) -> grpc.Channel:
    """A channel to a shard, with TLS when an authority is named. Raises BadSetting when a file cannot be read."""
    authority, name = access.pem("authority"), access.security.name
    if authority is None and (name or access.security.certificate):
        said = "is missing in a client with `certificate` or `name`: write it as well"
        raise BadSetting(SecurityConfig, "authority", said)
    if authority is None:
        return grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
    credentials = grpc.ssl_channel_credentials(authority, access.pem("key"), access.pem("certificate"))
    options = [*CHANNEL_OPTIONS, *([("grpc.ssl_target_name_override", name)] if name else [])]
    return grpc.secure_channel(address, credentials, options=options)


def _status(error: grpc.RpcError) -> tuple[grpc.StatusCode, str]:
    if isinstance(error, grpc.Call):
        return error.code(), str(error.details())
    return grpc.StatusCode.UNKNOWN, str(error)


def all_gone(connections: list[ShardConnection]) -> RunFault:
    """The RunFault for a client to raise when no shard is left, with the last error of each."""
    states = "; ".join(f"{c.address} ({c.last_error})" for c in connections)
    return RunFault(f"no replay shard has answered for {connections[0].give_up_after:g} s: {states}")
