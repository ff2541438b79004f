"""The gRPC server of one shard. Only its asyncio event loop uses the shard, so the shard needs no lock."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from protos import replay_pb2 as pb
from protos import replay_pb2_grpc as rpc
from protos.codec import (
    drained_to_message,
    info_to_message,
    limiter_from_message,
    priorities_from_message,
    sampled_to_message,
    segment_from_message,
    snapshot_to_message,
)
from protos.types import UNLIMITED_CREDIT, Counts, InvalidMessage
from replay.security import UNPROTECTED, Access, check_listening, host_port
from replay.store.shard import OutOfOrder, Shard
from replay.store.snapshots import Snapshots
from replay.wire.channel import NO_CREDIT, SERVER_OPTIONS
from replay.wire.guard import Limits, StreamGuard, TokenCheck, add_port
from rl.errors import RunFault

T = TypeVar("T")
Context = Any  # grpc.aio.ServicerContext, which is untyped

SERVICE_NAME = "qfleet.replay.v1.Replay"
INSERT_TIMEOUT = 60.0  # seconds that a segment waits for credit before its stream is ended
DEFAULT_LIMITS = Limits()


class ReplayServicer(rpc.ReplayServicer):
    """Implements the service of `replay.proto` for one shard."""

    def __init__(
        self, shard: Shard, insert_timeout: float = INSERT_TIMEOUT, snapshots: Snapshots | None = None
    ) -> None:
        self.shard, self.snapshots = shard, snapshots
        self._insert_timeout = insert_timeout
        self._is_leaving = False
        self._credit_arrived = asyncio.Event()  # set and replaced when unused credit grows

    async def Insert(
        self, requests: AsyncIterator[pb.InsertRequest], context: Context
    ) -> AsyncIterator[pb.InsertReply]:
        """Store segments; yields an acknowledgement of each, with the unused credit in items.

        Aborts with INVALID_ARGUMENT (malformed), FAILED_PRECONDITION (a sequence number was skipped) or
        RESOURCE_EXHAUSTED (no credit in time).
        """
        async for request in requests:
            await _reject_undecodable(request, context)
            try:
                last = await self._store(request, context)
            except InvalidMessage as error:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            except OutOfOrder as error:
                await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
            unused = min(self.shard.credit_left, UNLIMITED_CREDIT)  # `credit_left` is an int64
            yield pb.InsertReply(acknowledged=last, credit_left=unused, leaving=self._is_leaving)

    async def _store(self, request: pb.InsertRequest, context: Context) -> int:
        """Store a segment once there is credit for it, unless it is a duplicate or the shard leaves.

        Returns the writer's last sequence number. Raises InvalidMessage, before any wait, if the segment is invalid,
        and OutOfOrder.
        """
        if self._is_leaving:
            return self.shard.last_sequence(request.writer)
        last = self.shard.check_order(request.writer, request.sequence, request.origin)
        if request.sequence <= last:
            return last
        segment = segment_from_message(request.segment)
        self.shard.check(segment)
        if not request.transferred and segment.items > self.shard.credit_left:
            await self._wait_for_credit(segment.items, context)
            if self._is_leaving:
                return self.shard.last_sequence(request.writer)
        return self.shard.insert(request.writer, request.sequence, segment, request.origin, request.transferred)

    async def _wait_for_credit(self, items: int, context: Context) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._insert_timeout
        while items > self.shard.credit_left and not self._is_leaving:
            try:
                await asyncio.wait_for(self._credit_arrived.wait(), timeout=deadline - loop.time())
            except TimeoutError:
                await context.abort(
                    grpc.StatusCode.RESOURCE_EXHAUSTED,
                    f"{NO_CREDIT} for {self._insert_timeout:g} s: {self.shard.blocked_reason()}",
                )

    async def Sample(
        self, requests: AsyncIterator[pb.SampleRequest], context: Context
    ) -> AsyncIterator[pb.SampleReply]:
        """Draw items; yields one reply for each request. Aborts with INVALID_ARGUMENT if a request is malformed."""
        async for request in requests:
            await _reject_undecodable(request, context)
            try:
                limiter = limiter_from_message(request)
                sampled = self.shard.sample(list(request.counts))
            except InvalidMessage as error:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            if self.shard.grant(request.insert_credit, limiter):  # last: a rejected request changes nothing
                self._wake_writers()
            yield sampled_to_message(sampled, self.shard.spec)

    def _wake_writers(self) -> None:
        self._credit_arrived.set()
        self._credit_arrived = asyncio.Event()

    def set_leaving(self, leaving: bool) -> None:
        """Whether the shard is about to be removed: it then stores nothing more (`Insert` in `replay.proto`)."""
        self._is_leaving = leaving
        self._wake_writers()

    async def UpdatePriorities(self, request: pb.UpdatePrioritiesRequest, context: Context) -> pb.UpdatePrioritiesReply:
        """Update priorities; returns how many of the items are no longer stored. Aborts with INVALID_ARGUMENT."""
        await _reject_undecodable(request, context)
        try:
            keys, td_abs = priorities_from_message(request)
            return pb.UpdatePrioritiesReply(dropped=self.shard.update_priorities(keys, td_abs))
        except InvalidMessage as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            raise AssertionError("unreachable: abort raises") from error

    async def Drain(self, request: pb.DrainRequest, context: Context) -> pb.DrainReply:
        """Remove the segments below ``taken``; returns the next ones. Aborts with INVALID_ARGUMENT."""
        await _reject_undecodable(request, context)
        try:
            return drained_to_message(self.shard.drain(request.taken, request.segments))
        except InvalidMessage as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            raise AssertionError("unreachable: abort raises") from error

    async def SetLimited(self, request: pb.SetLimitedRequest, context: Context) -> pb.InfoReply:
        """Set whether inserts need credit; returns the new counts and settings."""
        await _reject_undecodable(request, context)
        self.shard.limited = request.limited
        self._wake_writers()
        return info_to_message(self.shard.info())

    async def Info(self, request: pb.InfoRequest, context: Context) -> pb.InfoReply:
        """Return the shard's counts and settings."""
        return info_to_message(self.shard.info())

    async def Snapshot(self, request: pb.SnapshotRequest, context: Context) -> pb.SnapshotReply:
        """Write a snapshot; returns what was written.

        Aborts with FAILED_PRECONDITION if the shard has no directory for snapshots, and with INTERNAL if writing fails.
        """
        await _reject_undecodable(request, context)
        if self.snapshots is None:
            await context.abort(
                grpc.StatusCode.FAILED_PRECONDITION,
                "this shard was started without a directory for snapshots: restart it with `--snapshots DIRECTORY`",
            )
        assert self.snapshots is not None, "abort raises"
        try:
            written = await self.snapshots.write()
        except RunFault as fault:
            await context.abort(grpc.StatusCode.INTERNAL, str(fault))
            raise AssertionError("unreachable: abort raises") from fault
        return snapshot_to_message(written)


def _make_deserializer(message: type[Message]) -> Callable[[bytes], Message | None]:
    """Return a deserializer that returns None for bytes that are not a ``message``.

    With the generated deserializer gRPC would answer UNKNOWN and log a traceback.
    """

    def read(data: bytes) -> Message | None:
        try:
            return message.FromString(data)
        except DecodeError:
            return None

    return read


async def _reject_undecodable(request: Message | None, context: Context) -> None:
    if request is None:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the request cannot be parsed as this method's message")


def _handlers(servicer: ReplayServicer, guard: StreamGuard) -> grpc.GenericRpcHandler:
    """Return the handlers of the service, as in the generated code, but with own deserializers and limited streams."""
    methods = pb.DESCRIPTOR.services_by_name["Replay"].methods
    kinds = {True: grpc.stream_stream_rpc_method_handler, False: grpc.unary_unary_rpc_method_handler}
    behaviour = {True: guard.limit, False: lambda method: method}
    return grpc.method_handlers_generic_handler(
        SERVICE_NAME,
        {
            m.name: kinds[m.client_streaming](
                behaviour[m.client_streaming](getattr(servicer, m.name)),
                request_deserializer=_make_deserializer(getattr(pb, m.input_type.name)),
                response_serializer=getattr(pb, m.output_type.name).SerializeToString,
            )
            for m in methods
        },
    )


async def start_server(
    servicer: ReplayServicer,
    host: str,
    port: int,
    access: Access = UNPROTECTED,
    limits: Limits = DEFAULT_LIMITS,
) -> tuple[grpc.aio.Server, int]:
    """Serve a shard on ``host`` and ``port`` (0: a free one); returns the server and its port.

    After stopping the server, the caller must also await ``finish()`` of the servicer's snapshots. Raises BadInput if
    other machines could reach the shard without a token, RuntimeError if it cannot listen there.
    """
    check_listening(host, access)
    server = grpc.aio.server(
        options=[*SERVER_OPTIONS, *limits.options()],
        interceptors=[TokenCheck(access.token)] if access.token else [],
    )
    server.add_generic_rpc_handlers((_handlers(servicer, StreamGuard(limits)),))
    checks = health.aio.HealthServicer()  # type: ignore[attr-defined]
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    port = add_port(server, host_port(host, port), access)
    await server.start()
    for name in ("", SERVICE_NAME):
        await checks.set(name, health_pb2.HealthCheckResponse.SERVING)
    if servicer.snapshots is not None:
        servicer.snapshots.start()
    return server, port


class ShardServer:
    """Serves a shard from its own thread, for callers without asyncio (a Ray actor, a test).

        server = ShardServer(shard)  # listens when this returns
        writer = Writer([server.address])
        server.stop()

    Raises what `start_server` raises, and TimeoutError if it does not listen within 30 s.
    """

    def __init__(
        self,
        shard: Shard,
        host: str = "127.0.0.1",
        port: int = 0,
        access: Access = UNPROTECTED,
        limits: Limits = DEFAULT_LIMITS,
        snapshots: Snapshots | None = None,
    ) -> None:
        self.shard, self._host, self._snapshots = shard, host, snapshots
        self._ready = threading.Event()
        self._failure: Exception | None = None
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()
        self._grace = 0.0
        self.port = 0
        self._servicer = ReplayServicer(shard, snapshots=snapshots)
        serving = start_server(self._servicer, host, port, access, limits)
        self._thread = threading.Thread(target=self._run, args=(serving,), name="replay-shard", daemon=True)
        self._thread.start()
        if not self._ready.wait(timeout=30.0):
            raise TimeoutError(f"the replay shard did not start listening on {host}:{port} within 30 s")
        if self._failure is not None:
            raise self._failure

    def _run(self, serving: Coroutine[Any, Any, tuple[grpc.aio.Server, int]]) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            server, self.port = self._loop.run_until_complete(serving)
        except Exception as error:
            self._failure = error
            self._ready.set()
            return
        self._ready.set()
        self._loop.run_until_complete(self._stopping.wait())
        self._loop.run_until_complete(server.stop(self._grace))
        if self._snapshots is not None:
            try:
                self._loop.run_until_complete(self._snapshots.finish())
            except RunFault as fault:
                self._failure = fault

    @property
    def address(self) -> str:
        """host:port that the shard listens on."""
        return host_port(self._host, self.port)

    def counts(self) -> Counts:
        """Return the shard's counts, read on its event loop. Raises TimeoutError after 10 seconds."""

        return self._call(self.shard.counts)

    def set_leaving(self, leaving: bool) -> None:
        """Whether the shard is about to be removed and stores nothing more. Raises TimeoutError after 10 seconds."""
        self._call(lambda: self._servicer.set_leaving(leaving))

    def _call(self, function: Callable[[], T]) -> T:
        async def call() -> T:
            return function()

        return asyncio.run_coroutine_threadsafe(call(), self._loop).result(timeout=10.0)

    def stop(self, grace: float = 1.0, timeout: float = 10.0) -> None:
        """Stop serving and write the last snapshot; open streams are cancelled after ``grace`` seconds.

        Raises TimeoutError if that takes ``timeout`` seconds more, RunFault if the snapshot cannot be written.
        """
        self._grace = grace
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(timeout=grace + timeout)
        if self._thread.is_alive():
            raise TimeoutError(f"the replay shard on port {self.port} did not stop within {grace + timeout:g} s")
        if self._failure is not None:
            raise self._failure
