"""`qfleet replay info | snapshot | limit | drain`: commands to running shards."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import tyro

from protos.types import ShardInfo
from qfleet.cli.flags import parse
from replay.security import Access, SecurityConfig
from replay.wire.connection import ShardConnection
from replay.wire.drain import drain
from replay.wire.writer import Writer
from rl.bounds import positive
from rl.errors import BadInput, RunFault

T = TypeVar("T")


@dataclass(frozen=True)
class ShardsCommand:
    """Running shards."""

    addresses: tyro.conf.Positional[tuple[str, ...]]
    """host:port of each shard."""
    timeout: float = 300.0
    """Seconds that each may take to answer."""
    security: SecurityConfig = field(default_factory=SecurityConfig)
    """TLS and the token."""
    json: bool = False
    """The last line of output is a JSON object with the figures of each shard by its address."""

    def __post_init__(self) -> None:
        if not self.addresses:
            raise BadInput("a shard's address is missing: write host:port of one or more")
        positive(self, "timeout", unit="seconds")
        check_addresses(self.addresses)


@dataclass(frozen=True)
class LimitCommand(ShardsCommand):
    """Have shards ask for insert credit from now on, or (--no-limited) take whatever comes."""

    limited: bool = True
    """Whether inserts need credit, which a sampler with a samples-per-insert ratio grants."""


@dataclass(frozen=True)
class DrainCommand(ShardsCommand):
    """Move the content of shards that writers have left into others; nothing is lost when it is broken off."""

    to: tuple[str, ...] = ()
    """host:port of the shards that take it in."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_addresses(self.to)
        if not self.to or set(self.to) & set(self.addresses):
            raise BadInput("--to names the shards that take the content in: write the addresses of one or more others")


def check_addresses(addresses: tuple[str, ...]) -> None:
    """Raise BadInput unless each is host:port."""
    for address in addresses:
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 2**16:
            raise BadInput(f"{address!r} is no shard's address: write host:port")


def _each(c: ShardsCommand, call: Callable[[ShardConnection], T]) -> Iterator[tuple[str, T]]:
    """The answer of each shard to ``call`` by its address; raises RunFault at the end for those that gave none."""
    access, faults = Access.of(c.security), []
    for address in c.addresses:
        connection = ShardConnection(address, c.timeout, access)
        try:
            yield address, call(connection)
        except RunFault as fault:
            faults.append(str(fault))
        finally:
            connection.channel.close()
    if faults:
        raise RunFault("; ".join(faults))


def info_command(args: list[str]) -> int:
    """Run `qfleet replay info`: print counts, settings and the limiter's state of each shard; returns the exit status.

    Raises BadInput, RunFault.
    """
    c = parse(ShardsCommand, args, prog="qfleet replay info")
    figures = {}
    for address, info in _each(c, lambda connection: connection.info(c.timeout)):
        figures[address] = _figures(info)
        n, told = info.counts, info.limiter
        print(
            f"{address}: {n.stored:,} of {info.capacity:,} transitions, {n.resident_bytes / 1e6:,.1f} MB; "
            f"{n.inserted:,} inserted, {n.sampled:,} sampled, {n.transferred:,} transferred; {info.selector}; "
            + (f"inserts up to {info.insert_credit:,}" if info.limited else "inserts without limit"),
            flush=True,
        )
        if told is not None and not told.samples_per_insert:
            print(f"  limiter {info.limiter_age:.1f} s ago: {told.stored:,} stored (min_size {told.min_size:,})")
        elif told is not None:
            print(
                f"  limiter {info.limiter_age:.1f} s ago: d = {told.diff:g} (from {told.min_diff:g} to {told.max_diff:g}) "
                f"at {told.samples_per_insert:g} samples an insert, {told.stored:,} stored (min_size {told.min_size:,})"
            )
    return _done(c, figures)


def _figures(info: ShardInfo) -> dict[str, Any]:
    """What `info` says of a shard, for JSON."""
    own = {**info._asdict(), "counts": info.counts._asdict(), **dataclasses.asdict(info.spec)}
    del own["spec"]
    return {**own, "limiter": info.limiter and info.limiter._asdict()}


def snapshot_command(args: list[str]) -> int:
    """Run `qfleet replay snapshot`: each shard writes to its own snapshot directory; returns the exit status.

    Raises BadInput, RunFault.
    """
    c = parse(ShardsCommand, args, prog="qfleet replay snapshot")
    figures = {}
    for address, written in _each(c, lambda connection: connection.snapshot(c.timeout)):
        figures[address] = {"items": written.items, "bytes_written": written.bytes, "seconds": written.seconds}
        print(
            f"{address}: {written.items:,} transitions, {written.bytes / 1e6:,.1f} MB written in {written.seconds:.1f} s",
            flush=True,
        )
    return _done(c, figures)


def limit_command(args: list[str]) -> int:
    """Run `qfleet replay limit`: whether inserts need credit; returns the exit status. Raises BadInput, RunFault."""
    c = parse(LimitCommand, args, prog="qfleet replay limit")
    figures = {}
    for address, info in _each(c, lambda connection: connection.set_limited(c.limited, c.timeout)):
        figures[address] = {"limited": info.limited}
        print(f"{address}: inserts " + ("need credit" if info.limited else "need no credit"), flush=True)
    return _done(c, figures)


def drain_command(args: list[str]) -> int:
    """Run `qfleet replay drain`, one shard after the other; returns the exit status. Raises BadInput, RunFault."""
    c = parse(DrainCommand, args, prog="qfleet replay drain")
    access, figures = Access.of(c.security), {}
    writer = Writer(list(c.to), c.timeout, access=access)
    try:
        for address in c.addresses:
            connection = ShardConnection(address, c.timeout, access)
            moved = drain(connection, writer, functools.partial(_say_moved, address))
            figures[address] = {"moved": moved}
            print(f"{address} is empty: {moved:,} transitions moved to {', '.join(c.to)}", flush=True)
            connection.channel.close()
    finally:
        writer.close()
    return _done(c, figures)


def _say_moved(address: str, moved: int, left: int) -> None:
    print(f"{address}: {moved:,} moved, {left:,} left", flush=True)


def _done(c: ShardsCommand, figures: dict[str, Any]) -> int:
    if c.json:
        print(json.dumps(figures))
    return 0
