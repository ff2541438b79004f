"""A client's connection to one shard: channel, unary calls, and the decision when the shard counts as gone."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Any

import grpc

from protos import replay_pb2 as pb
from protos import replay_pb2_grpc as rpc
from protos.codec import drained_from_message, info_from_message, snapshot_from_message
from protos.types import Drained, InvalidMessage, ShardInfo, SnapshotResult
from replay.security import UNPROTECTED, Access, SecurityConfig
from replay.wire.channel import CHANNEL_OPTIONS, NO_CREDIT, NO_STREAM
from rl.errors import BadSetting, RunFault, Unreachable

MIN_BACKOFF, MAX_BACKOFF = 0.1, 2.0  # seconds between attempts; doubled after each failure
RETRY_GONE = 10.0  # seconds between calls to a shard that counts as gone
RETRY_TIMEOUT = 5.0  # seconds that it has to answer such a call
FATAL_CODES = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
)
# The shard is alive and expects the client to reopen the stream.
REOPEN_CODES = (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.ABORTED)
CONNECTION_CLOSED_HINT = (
    " (the connection was accepted and then closed: the shard may expect TLS or a client certificate, or have too many "
    "connections)"
)


@dataclass
class Traffic:
    """Messages of one kind that a client has sent or received: the items in them and their bytes.

    Bytes are those of the serialized messages, without the framing of gRPC, HTTP/2, TCP and IP.
    """

    items: int = 0
    bytes: int = 0


class ShardConnection:
    """A channel to one shard, with the state of its failures.

    ``is_gone`` becomes true when the shard has failed for ``give_up_after`` seconds without an answer, and false again
    with `take_back`. The streams also set it, for good, when the shard rejects a request. Pickling keeps only the
    arguments. Raises BadSetting as `open_channel` does.
    """

    def __init__(self, address: str, give_up_after: float, access: Access = UNPROTECTED) -> None:
        self.address, self.give_up_after, self.access = address, give_up_after, access
        self.channel = open_channel(address, access)
        self.metadata = access.metadata  # sent with each call
        self.stub = rpc.ReplayStub(self.channel)
        self.is_gone = False
        self.last_error = "never reached"
        self._silent_since: float | None = None  # time of the first failure since the last answer
        self._backoff = MIN_BACKOFF
        self._woken = threading.Event()  # ends the pause of `answers_again`

    def record_answer(self) -> None:
        """Record that the shard answered; resets the backoff."""
        self.last_error = "no error"
        self._silent_since = None
        self._backoff = MIN_BACKOFF

    @property
    def silent_seconds(self) -> float:
        """Seconds since the first failure after the shard's last answer; 0 if it answers."""
        since = self._silent_since
        return 0.0 if since is None else time.monotonic() - since

    def record_failure(self, error: grpc.RpcError) -> float:
        """Record a failed call; returns the seconds to wait before the next attempt.

        Sets ``is_gone`` if the shard has not answered for ``give_up_after`` seconds. Raises RunFault if the shard
        rejected the request, so that retrying is useless.
        """
        code, details = _status(error)
        waiting = code == grpc.StatusCode.RESOURCE_EXHAUSTED and details.startswith(NO_CREDIT)
        full = code == grpc.StatusCode.RESOURCE_EXHAUSTED and details.startswith(NO_STREAM)
        if code in FATAL_CODES and not (waiting or full):
            raise RunFault(f"replay shard {self.address} rejected a request: {details}")
        hint = CONNECTION_CLOSED_HINT if "failed to connect" in details and "Socket closed" in details else ""
        now = time.monotonic()
        if waiting or code in REOPEN_CODES:
            self.record_answer()
        elif self._silent_since is None:
            self._silent_since = now
        elif now - self._silent_since > self.give_up_after:
            self.is_gone = True
        self.last_error = f"{code.name}: {details}{hint}"
        backoff, self._backoff = self._backoff, min(self._backoff * 2, MAX_BACKOFF)
        return backoff

    def answers_again(self) -> bool:
        """Call a shard that is gone, after a pause of RETRY_GONE seconds; returns whether it answers.

        `take_back` and `close` end the pause; then the shard is not called.
        """
        if self._woken.wait(timeout=RETRY_GONE):
            self._woken.clear()
            return False
        try:
            self.info(RETRY_TIMEOUT)
        except (RunFault, ValueError):  # ValueError: the channel was closed meanwhile
            return False
        return True

    def take_back(self) -> None:
        """Count the shard as alive; it has ``give_up_after`` seconds again."""
        self.record_answer()
        self.is_gone = False
        self._woken.set()

    def close(self) -> None:
        """Close the channel; calls in progress fail."""
        self.channel.close()
        self._woken.set()

    def info(self, timeout: float) -> ShardInfo:
        """The shard's counts and settings.

        Raises RunFault if the shard does not answer within ``timeout`` seconds, as do the methods below.
        """
        return info_from_message(self._call("Info", pb.InfoRequest(), timeout))

    def set_limited(self, limited: bool, timeout: float) -> ShardInfo:
        """Set whether inserts need credit; returns the new counts and settings. Raises RunFault."""
        return info_from_message(self._call("SetLimited", pb.SetLimitedRequest(limited=limited), timeout))

    def snapshot(self, timeout: float) -> SnapshotResult:
        """Ask the shard to write a snapshot to its directory; returns when it is on disk. Raises RunFault."""
        return snapshot_from_message(self._call("Snapshot", pb.SnapshotRequest(), timeout))

    def drain(self, taken: int, segments: int, timeout: float) -> Drained:
        """Ask the shard to remove the segments with keys below ``taken``; returns up to ``segments`` of the next ones.

        Raises RunFault if the shard does not answer or the reply is malformed.
        """
        reply = self._call("Drain", pb.DrainRequest(taken=taken, segments=segments), timeout)
        try:
            return drained_from_message(reply)
        except InvalidMessage as error:
            raise RunFault(f"replay shard {self.address} sent a malformed reply: {error}") from error

    def _call(self, method: str, request: Any, timeout: float) -> Any:
        """Call a unary method of the service; returns the reply. Raises RunFault."""
        try:
            return getattr(self.stub, method)(request, timeout=timeout, metadata=self.metadata)
        except grpc.RpcError as error:
            code, details = _status(error)
            is_silent = code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
            what = f"did not answer {method}: {code.name}" if is_silent else f"answered {method} with {code.name}"
            raise RunFault(f"replay shard {self.address} {what}: {details}") from error

    def __reduce__(self) -> tuple[type[ShardConnection], tuple[str, float, Access]]:
        return ShardConnection, (self.address, self.give_up_after, self.access)


def open_channel(address: str, access: Access) -> grpc.Channel:
    """Open a channel to a shard, with TLS if ``authority`` is set.

    Raises BadSetting if a file cannot be read, or if ``certificate`` or ``name`` is set without ``authority``.
    """
    authority, name = access.read_pem("authority"), access.security.name
    if authority is None and (name or access.security.certificate):
        message = "is missing: a client with `certificate` or `name` needs it too"
        raise BadSetting(SecurityConfig, "authority", message)
    if authority is None:
        return grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
    credentials = grpc.ssl_channel_credentials(authority, access.read_pem("key"), access.read_pem("certificate"))
    options = [*CHANNEL_OPTIONS, *([("grpc.ssl_target_name_override", name)] if name else [])]
    return grpc.secure_channel(address, credentials, options=options)


def _status(error: grpc.RpcError) -> tuple[grpc.StatusCode, str]:
    if isinstance(error, grpc.Call):
        return error.code(), str(error.details())
    return grpc.StatusCode.UNKNOWN, str(error)


def all_gone(connections: list[ShardConnection]) -> Unreachable:
    """Return the error to raise when every shard is gone; it names the last error of each."""
    states = "; ".join(f"{c.address} ({c.last_error})" for c in connections)
    return Unreachable(f"no replay shard has answered for {connections[0].give_up_after:g} s: {states}")
