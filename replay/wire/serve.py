"""A stand-alone shard, without Ray, for any client of the protocol (`qfleet replay serve`)."""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from replay.config import MAX_CAPACITY, check_capacity_bytes
from replay.security import Access, SecurityConfig
from replay.store.restore import Restored
from replay.store.selectors import SelectorConfig
from replay.store.shard import Shard, random_generation
from replay.store.snapshots import Snapshots
from replay.wire.guard import Limits
from replay.wire.service import INSERT_TIMEOUT, ReplayServicer, start_server
from rl.bounds import as_written, at_least, between, positive, require
from rl.errors import BadSetting
from rl.types import ObservationSpec


@dataclass(frozen=True)
class ServeConfig:
    """One replay shard, without Ray."""

    host: str = "127.0.0.1"
    """Address to listen on; one that other machines can reach needs a token. 0.0.0.0: all addresses of this machine."""
    port: int = 50051
    """Port to listen on; 0: a free one."""
    capacity: int = 200_000
    """Transitions that the shard can hold; when it is full, it evicts the oldest."""
    capacity_bytes: int = 0
    """Memory limit in bytes for the content: compressed frames, the data of each step and segment, and the rows and
    priorities of `capacity` transitions. The process itself takes about 60 MB more. 0: no limit."""
    frame_shape: tuple[int, ...] = (84, 84)
    """Shape of one frame."""
    dtype: str = "uint8"
    """NumPy dtype of a frame, such as uint8 or float32."""
    stack: int = 4
    """Frames per observation; 1: no stacking."""
    selector: SelectorConfig = field(default_factory=SelectorConfig)
    """How items are drawn."""
    limited: bool = False
    """Accept items only up to the credit that a sampler with a samples-per-insert ratio grants."""
    insert_timeout: float = INSERT_TIMEOUT
    """Seconds that a segment may wait for credit before the shard ends its stream."""
    security: SecurityConfig = field(default_factory=SecurityConfig)
    """TLS, and the token that authenticates clients."""
    limits: Limits = field(default_factory=Limits)
    """Resource limits of the server."""
    seed: int = 0
    """Random seed of the draws."""
    snapshots: str | None = None
    """Directory for this shard's snapshots: loaded at the start, written on request and at an orderly shutdown."""
    snapshot_minutes: float = 0.0
    """Minutes between periodic snapshots; 0: none."""

    def __post_init__(self) -> None:
        require(bool(self.host), self, "host", "an address of this machine, or 0.0.0.0 for all of them")
        between(self, 0, 2**16 - 1, "port")
        require(1 <= self.capacity <= MAX_CAPACITY, self, "capacity", f"1 to {as_written(MAX_CAPACITY)} transitions")
        check_capacity_bytes(type(self), self.capacity_bytes, self.capacity, 1, self.selector)
        sides = "one or more numbers of at least 1"
        require(bool(self.frame_shape) and min(self.frame_shape) >= 1, self, "frame_shape", sides)
        at_least(self, 1, "stack", unit="frame")
        positive(self, "insert_timeout", unit="seconds")
        idle = f"less than `limits.stream_idle` ({self.limits.stream_idle:g} s), or the wait for credit ends the stream"
        require(self.insert_timeout < self.limits.stream_idle, self, "insert_timeout", idle)
        if self.security.authority and not self.security.mutual:
            message = "is used by a shard only for mutual TLS: add `security.mutual: true`, or leave it out"
            raise BadSetting(type(self), "security.authority", message)
        at_least(self, 0, "snapshot_minutes")
        needs_directory = "0, or give a directory with `snapshots`"
        require(not self.snapshot_minutes or bool(self.snapshots), self, "snapshot_minutes", needs_directory)
        require(_is_numeric(self.dtype), self, "dtype", "a numeric NumPy data type, such as uint8 or float32")

    @property
    def spec(self) -> ObservationSpec:
        """Shape and type of the observations that the shard stores."""
        return ObservationSpec(self.frame_shape, np.dtype(self.dtype).name, self.stack)


def _is_numeric(dtype: str) -> bool:
    try:
        return np.dtype(dtype).kind in "uif"
    except TypeError:
        return False


def check_port(host: str, port: int) -> None:
    """Raise BadSetting if this process cannot listen on ``host`` and ``port``; gRPC itself would only log it."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError as error:
        message = f"{host}: {error.strerror}: write an address of this machine"
        raise BadSetting(ServeConfig, "host", message) from error
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                message = f"{host} is not an address of this machine: write one that is, or 0.0.0.0 for all"
                raise BadSetting(ServeConfig, "host", message) from error
            message = f"{port}: {error.strerror}: write another port, or 0 for a free one"
            raise BadSetting(ServeConfig, "port", message) from error


async def serve(
    config: ServeConfig,
    ready: Callable[[int, Restored | None], None],
    on_shard: Callable[[Shard], None] = lambda shard: None,
) -> signal.Signals:
    """Serve a shard until Ctrl-C or SIGTERM; returns the signal.

    ``on_shard(shard)`` is called before the shard is served, on the event loop, the only place where the shard may be
    used. ``ready(port, restored)`` is called once it listens. Raises BadInput if the port is taken or the snapshot
    cannot be restored, RunFault if the last snapshot cannot be written.
    """
    access = Access.load(config.security)
    check_port(config.host, config.port)
    shard = Shard(config.capacity, config.spec, config.selector, config.limited, config.seed, config.capacity_bytes)
    snapshots = Snapshots(Path(config.snapshots), shard, config.snapshot_minutes) if config.snapshots else None
    on_shard(shard)
    if not config.snapshots:
        shard.generation = random_generation()
    ended: asyncio.Future[signal.Signals] = asyncio.get_running_loop().create_future()
    servicer = ReplayServicer(shard, config.insert_timeout, snapshots)
    server, port = await start_server(servicer, config.host, config.port, access, config.limits)
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, _set_once, ended, number)
    try:
        ready(port, snapshots.restored if snapshots else None)
        return await ended
    finally:
        await server.stop(grace=1.0)
        if snapshots is not None:
            await snapshots.finish()


def _set_once(ended: asyncio.Future[signal.Signals], number: signal.Signals) -> None:
    if not ended.done():
        ended.set_result(number)
