"""Admission to a shard's server: TLS, the token, limits on connections and streams. Each is checked once a call."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hmac
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, fields
from typing import Any

import grpc

from replay.security import Access
from replay.wire.channel import NO_STREAM
from rl.bounds import between

Context = Any  # grpc.aio.ServicerContext, which is untyped
Stream = Callable[[AsyncIterator[Any], Context], AsyncIterator[Any]]

OPEN_METHODS = {"/grpc.health.v1.Health/Check"}  # answered without a token, for probes


@dataclass(frozen=True)
class Limits:
    """Resource limits of a shard's server; the sizes of messages, requests and segments are limited as well."""

    streams: int = 4_000
    """Maximum number of open Insert and Sample streams."""
    connections: int = 4_000
    """Maximum number of open connections; the server closes further ones."""
    connection_streams: int = 256
    """Maximum number of open calls per connection; further calls wait in the client."""
    stream_idle: float = 600.0
    """Seconds without a request after which the server ends a stream; clients open another when they need it."""
    connection_idle: float = 300.0
    """Seconds without a call after which the server closes a connection."""
    handshake: float = 10.0
    """Seconds in which a new connection must complete its TLS handshake and HTTP/2 settings."""
    keepalive: float = 20.0
    """Seconds between keepalive pings to an idle client, and seconds to wait for its answer before disconnecting."""

    def __post_init__(self) -> None:
        names = [f.name for f in fields(self)]
        between(self, 0, 2**31, *names, above=True, below=True)

    def options(self) -> list[tuple[str, int]]:
        """The options of a gRPC server for those limits that gRPC enforces itself."""
        return [
            ("grpc.max_concurrent_streams", self.connection_streams),
            ("grpc.max_allowed_incoming_connections", self.connections),
            ("grpc.max_connection_idle_ms", _milliseconds(self.connection_idle)),
            ("grpc.server_handshake_timeout_ms", _milliseconds(self.handshake)),
            ("grpc.keepalive_time_ms", _milliseconds(self.keepalive)),
            ("grpc.keepalive_timeout_ms", _milliseconds(self.keepalive)),
            ("grpc.http2.ping_timeout_ms", _milliseconds(self.keepalive)),  # without it: a minute
        ]


def _milliseconds(seconds: float) -> int:
    return min(max(1, round(seconds * 1000)), 2**31 - 1)


def add_port(server: grpc.aio.Server, address: str, access: Access) -> int:
    """Listen on ``host:port``, with TLS when there is a certificate; returns the port.

    Raises RuntimeError when it cannot listen there, BadSetting when a file cannot be read.
    """
    certificate, key = access.pem("certificate"), access.pem("key")
    if certificate is None or key is None:
        return int(server.add_insecure_port(address))
    mutual = access.security.mutual
    credentials = grpc.ssl_server_credentials(
        [(key, certificate)], access.pem("authority") if mutual else None, require_client_auth=mutual
    )
    return int(server.add_secure_port(address, credentials))


class TokenCheck(grpc.aio.ServerInterceptor):
    """Answers every call that does not carry the token with UNAUTHENTICATED, before its first message is read."""

    def __init__(self, token: str) -> None:
        self._wanted = f"Bearer {token}".encode()
        self._refusal = grpc.stream_stream_rpc_method_handler(_refuse)  # fits every kind of call

    async def intercept_service(self, continuation: Callable[[Any], Any], details: grpc.HandlerCallDetails) -> Any:
        """The handler of the call, or one that refuses it when the token is missing or wrong.

        Health checks need no token.
        """
        given = dict(details.invocation_metadata).get("authorization", "")
        given = given if isinstance(given, bytes) else given.encode("utf-8", "surrogateescape")
        if hmac.compare_digest(given, self._wanted) or details.method in OPEN_METHODS:
            return await continuation(details)
        return self._refusal


async def _refuse(requests: AsyncIterator[Any], context: Context) -> None:
    await context.abort(
        grpc.StatusCode.UNAUTHENTICATED, "the call does not carry this shard's token as 'authorization: Bearer TOKEN'"
    )


class StreamGuard:
    """Limits how many streams of a server are open, and how long each may send nothing."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.open = 0

    def bounded(self, method: Stream) -> Stream:
        """The streaming method with these limits applied.

        A call ends with RESOURCE_EXHAUSTED when too many are open, and with ABORTED after too long a silence.
        """

        @functools.wraps(method)
        async def stream(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
            if self.open >= self._limits.streams:
                await context.abort(
                    grpc.StatusCode.RESOURCE_EXHAUSTED, f"{NO_STREAM}: {self.open} are open on this shard"
                )
            watch = _Watch(context, self._limits.stream_idle)
            self.open += 1
            context.add_done_callback(functools.partial(self._ended, watch))
            async for reply in method(watch.listen(requests), context):
                yield reply

        return stream

    def _ended(self, watch: _Watch, context: Context) -> None:
        self.open -= 1
        watch.stop()


class _Watch:
    """Ends a call that has sent nothing for ``patience`` seconds; costs one reading of the clock a message."""

    def __init__(self, context: Context, patience: float) -> None:
        self._context, self._patience = context, patience
        self._loop = asyncio.get_running_loop()
        self._heard = self._loop.time()
        self._timer = self._loop.call_later(patience, self._look)
        self._ending: asyncio.Task[None] | None = None

    async def listen(self, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        """The requests as they arrive; each one restarts the time."""
        async for request in requests:
            self._heard = self._loop.time()
            yield request

    def _look(self) -> None:
        left = self._heard + self._patience - self._loop.time()
        if left > 0:
            self._timer = self._loop.call_later(left, self._look)
        else:
            self._ending = self._loop.create_task(self._end())

    async def _end(self) -> None:
        with contextlib.suppress(grpc.aio.BaseError):  # raised by `abort` itself, or because the call has ended already
            await self._context.abort(
                grpc.StatusCode.ABORTED,
                f"the stream sent nothing for {self._patience:g} s: open another when it is needed",
            )

    def stop(self) -> None:
        """Stop watching the call."""
        self._timer.cancel()
