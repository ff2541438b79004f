"""Access control of a shard's server: TLS, token check, limits on connections and streams."""

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

METHODS_WITHOUT_TOKEN = {"/grpc.health.v1.Health/Check"}  # for health probes


@dataclass(frozen=True)
class Limits:
    """Resource limits of a shard's server. Sizes of messages, requests and segments have fixed limits elsewhere."""

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
        """Return the gRPC server options for the limits that gRPC itself enforces."""
        return [
            ("grpc.max_concurrent_streams", self.connection_streams),
            ("grpc.max_allowed_incoming_connections", self.connections),
            ("grpc.max_connection_idle_ms", _milliseconds(self.connection_idle)),
            ("grpc.server_handshake_timeout_ms", _milliseconds(self.handshake)),
            ("grpc.keepalive_time_ms", _milliseconds(self.keepalive)),
            ("grpc.keepalive_timeout_ms", _milliseconds(self.keepalive)),
            ("grpc.http2.ping_timeout_ms", _milliseconds(self.keepalive)),  # default: 60 s
        ]


def _milliseconds(seconds: float) -> int:
    return min(max(1, round(seconds * 1000)), 2**31 - 1)


def add_port(server: grpc.aio.Server, address: str, access: Access) -> int:
    """Make ``server`` listen on ``address`` ("host:port"), with TLS if there is a certificate; returns the port.

    Raises RuntimeError if it cannot listen there, BadSetting if a file cannot be read.
    """
    certificate, key = access.read_pem("certificate"), access.read_pem("key")
    if certificate is None or key is None:
        return int(server.add_insecure_port(address))
    mutual = access.security.mutual
    credentials = grpc.ssl_server_credentials(
        [(key, certificate)], access.read_pem("authority") if mutual else None, require_client_auth=mutual
    )
    return int(server.add_secure_port(address, credentials))


class TokenCheck(grpc.aio.ServerInterceptor):
    """Rejects every call without the token with UNAUTHENTICATED, before its first message is read."""

    def __init__(self, token: str) -> None:
        self._expected = f"Bearer {token}".encode()
        self._rejection = grpc.stream_stream_rpc_method_handler(_reject)  # fits every kind of call

    async def intercept_service(self, continuation: Callable[[Any], Any], details: grpc.HandlerCallDetails) -> Any:
        """Return the call's handler, or a rejecting handler if the token is missing or wrong.

        Health checks need no token.
        """
        given = dict(details.invocation_metadata).get("authorization", "")
        given = given if isinstance(given, bytes) else given.encode("utf-8", "surrogateescape")
        if hmac.compare_digest(given, self._expected) or details.method in METHODS_WITHOUT_TOKEN:
            return await continuation(details)
        return self._rejection


async def _reject(requests: AsyncIterator[Any], context: Context) -> None:
    await context.abort(
        grpc.StatusCode.UNAUTHENTICATED,
        "the token is missing or wrong: send this shard's token as metadata 'authorization: Bearer TOKEN'",
    )


class StreamGuard:
    """Limits how many streams a server has open, and how long each may be idle."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.open_streams = 0

    def limit(self, method: Stream) -> Stream:
        """Return the streaming ``method`` with the limits applied.

        A call ends with RESOURCE_EXHAUSTED if too many streams are open, and with ABORTED if it is idle for too long.
        """

        @functools.wraps(method)
        async def stream(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
            if self.open_streams >= self._limits.streams:
                await context.abort(
                    grpc.StatusCode.RESOURCE_EXHAUSTED, f"{NO_STREAM}: {self.open_streams} are open on this shard"
                )
            timer = _IdleTimer(context, self._limits.stream_idle)
            self.open_streams += 1
            context.add_done_callback(functools.partial(self._on_call_done, timer))
            async for reply in method(timer.track(requests), context):
                yield reply

        return stream

    def _on_call_done(self, timer: _IdleTimer, context: Context) -> None:
        self.open_streams -= 1
        timer.stop()


class _IdleTimer:
    """Aborts a call that has sent nothing for ``timeout`` seconds.

    A request costs one reading of the clock: the timer is rescheduled only when it fires.
    """

    def __init__(self, context: Context, timeout: float) -> None:
        self._context, self._timeout = context, timeout
        self._loop = asyncio.get_running_loop()
        self._last_request = self._loop.time()
        self._timer = self._loop.call_later(timeout, self._check)
        self._abort_task: asyncio.Task[None] | None = None

    async def track(self, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        """Yield the requests as they arrive; each one restarts the idle time."""
        async for request in requests:
            self._last_request = self._loop.time()
            yield request

    def _check(self) -> None:
        left = self._last_request + self._timeout - self._loop.time()
        if left > 0:
            self._timer = self._loop.call_later(left, self._check)
        else:
            self._abort_task = self._loop.create_task(self._abort())

    async def _abort(self) -> None:
        with contextlib.suppress(grpc.aio.BaseError):  # `abort` always raises, also if the call has already ended
            await self._context.abort(
                grpc.StatusCode.ABORTED,
                f"the stream sent nothing for {self._timeout:g} s: open a new one when you need it",
            )

    def stop(self) -> None:
        """Cancel the timer."""
        self._timer.cancel()
