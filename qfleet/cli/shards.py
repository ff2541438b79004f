"""`qfleet replay info | snapshot | limit | drain`: running shards asked from outside."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import tyro
from google.protobuf.json_format import MessageToDict

from protos import replay_pb2 as pb
from qfleet.cli.flags import parse
from replay.security import Access, SecurityConfig
from replay.wire.connection import ShardConnection
from replay.wire.drain import drain
from replay.wire.writer import Writer
from rl.bounds import positive
from rl.errors import BadInput, RunFault


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


def _each(c: ShardsCommand, method: str, request: Any) -> Iterator[tuple[str, Any]]:
    """The answer of each shard to ``request`` by its address; raises RunFault at the end for those that gave none."""
    access, faults = Access.of(c.security), []
    for address in c.addresses:
        connection = ShardConnection(address, c.timeout, access)
        try:
            yield address, connection.ask(method, request, c.timeout)
        except RunFault as fault:
            faults.append(str(fault))
        finally:
            connection.channel.close()
    if faults:
        raise RunFault("; ".join(faults))


def info_command(args: list[str]) -> int:
    """Counts, settings and the limiter's state."""
    c = parse(ShardsCommand, args, prog="qfleet replay info")
    figures = {}
    for address, reply in _each(c, "Info", pb.InfoRequest()):
        figures[address] = MessageToDict(
            reply, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
        n, told = reply.counts, reply.limiter
        print(
            f"{address}: {n.stored:,} of {reply.capacity:,} transitions, {n.resident_bytes / 1e6:,.1f} MB; "
            f"{n.inserted:,} inserted, {n.sampled:,} sampled, {n.transferred:,} transferred; {reply.selector}; "
            + (f"inserts up to {reply.insert_credit:,}" if reply.limited else "inserts without limit"),
            flush=True,
        )
        if reply.HasField("limiter") and not told.samples_per_insert:
            print(f"  limiter {reply.limiter_age:.1f} s ago: {told.stored:,} stored (min_size {told.min_size:,})")
        elif reply.HasField("limiter"):
            print(
                f"  limiter {reply.limiter_age:.1f} s ago: d = {told.diff:g} (from {told.min_diff:g} to {told.max_diff:g}) "
                f"at {told.samples_per_insert:g} samples an insert, {told.stored:,} stored (min_size {told.min_size:,})"
            )
    return _done(c, figures)


def snapshot_command(args: list[str]) -> int:
    """Snapshots, each to the directory that the shard was started with."""
    c = parse(ShardsCommand, args, prog="qfleet replay snapshot")
    figures = {}
    for address, reply in _each(c, "Snapshot", pb.SnapshotRequest()):
        figures[address] = {"items": reply.items, "bytes_written": reply.bytes_written, "seconds": reply.seconds}
        print(
            f"{address}: {reply.items:,} transitions, {reply.bytes_written / 1e6:,.1f} MB written in {reply.seconds:.1f} s",
            flush=True,
        )
    return _done(c, figures)


def limit_command(args: list[str]) -> int:
    """Insert credit, asked for or not."""
    c = parse(LimitCommand, args, prog="qfleet replay limit")
    figures = {}
    for address, reply in _each(c, "SetLimited", pb.SetLimitedRequest(limited=c.limited)):
        figures[address] = {"limited": reply.limited}
        print(f"{address}: inserts " + ("need credit" if reply.limited else "need no credit"), flush=True)
    return _done(c, figures)


def drain_command(args: list[str]) -> int:
    """One shard after the other into others."""
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
