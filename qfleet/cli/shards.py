"""`qfleet replay info | snapshot | limit | drain`: commands for running shards."""

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
    """A command for running shards, with the flags that all of these commands have."""

    addresses: tyro.conf.Positional[tuple[str, ...]]
    """host:port of each shard."""
    timeout: float = 300.0
    """Seconds to wait for the answer of each shard."""
    security: SecurityConfig = field(default_factory=SecurityConfig)
    """TLS, and the token that authenticates clients."""
    json: bool = False
    """The last line of output is a JSON object with the figures of each shard by its address."""

    def __post_init__(self) -> None:
        if not self.addresses:
            raise BadInput("missing ADDRESS: write host:port of one or more shards")
        positive(self, "timeout", unit="seconds")
        check_addresses(self.addresses)


@dataclass(frozen=True)
class InfoCommand(ShardsCommand):
    """Show the content and the limiter of running shards."""


@dataclass(frozen=True)
class SnapshotCommand(ShardsCommand):
    """Make running shards write a snapshot now."""


@dataclass(frozen=True)
class LimitCommand(ShardsCommand):
    """Make inserts into shards need credit, or (--no-limited) accept all inserts."""

    limited: bool = True
    """Inserts need credit, which a sampler with a samples-per-insert ratio grants."""


@dataclass(frozen=True)
class DrainCommand(ShardsCommand):
    """Move the content of shards, to which nothing writes any more, into other shards. An interruption loses nothing."""

    to: tuple[str, ...] = ()
    """host:port of each shard that receives the content."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_addresses(self.to)
        if not self.to or set(self.to) & set(self.addresses):
            raise BadInput(
                "--to needs shards that receive the content, other than the drained ones: write host:port of each"
            )


def check_addresses(addresses: tuple[str, ...]) -> None:
    """Raise BadInput unless each is host:port."""
    for address in addresses:
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 2**16:
            raise BadInput(f"{address!r} is not the address of a shard: write host:port")


def _each(c: ShardsCommand, call: Callable[[ShardConnection], T]) -> Iterator[tuple[str, T]]:
    """Call ``call`` for each shard; yields (address, result).

    A shard that fails does not stop the others; the RunFault for all failed shards is raised at the end.
    """
    access, faults = Access.load(c.security), []
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
    """Run `qfleet replay info`: print the counts and the limiter's state of each shard; returns the exit status.

    Raises BadInput, RunFault.
    """
    c = parse(InfoCommand, args, prog="qfleet replay info")
    figures = {}
    for address, info in _each(c, lambda connection: connection.info(c.timeout)):
        figures[address] = _figures(info)
        n, limiter = info.counts, info.limiter
        print(
            f"{address}: {n.stored:,} of {info.capacity:,} transitions, {n.resident_bytes / 1e6:,.1f} MB; "
            f"{n.inserted:,} inserted, {n.sampled:,} sampled, {n.transferred:,} transferred; {info.selector}; "
            + (f"insert credit {info.insert_credit:,}" if info.limited else "inserts not limited"),
            flush=True,
        )
        if limiter is not None and not limiter.samples_per_insert:
            print(f"  limiter {info.limiter_age:.1f} s ago: {limiter.stored:,} stored (min_size {limiter.min_size:,})")
        elif limiter is not None:
            print(
                f"  limiter {info.limiter_age:.1f} s ago: d = {limiter.diff:g} (limits {limiter.min_diff:g} to "
                f"{limiter.max_diff:g}) at {limiter.samples_per_insert:g} samples per insert, {limiter.stored:,} stored "
                f"(min_size {limiter.min_size:,})"
            )
    return _finish(c, figures)


def _figures(info: ShardInfo) -> dict[str, Any]:
    """The info of a shard as a JSON object."""
    figures = {**info._asdict(), "counts": info.counts._asdict(), **dataclasses.asdict(info.spec)}
    del figures["spec"]
    return {**figures, "limiter": info.limiter and info.limiter._asdict()}


def snapshot_command(args: list[str]) -> int:
    """Run `qfleet replay snapshot`: each shard writes a snapshot to its directory; returns the exit status.

    Raises BadInput, RunFault.
    """
    c = parse(SnapshotCommand, args, prog="qfleet replay snapshot")
    figures = {}
    for address, written in _each(c, lambda connection: connection.snapshot(c.timeout)):
        figures[address] = {"items": written.items, "bytes_written": written.bytes, "seconds": written.seconds}
        print(
            f"{address}: {written.items:,} transitions, {written.bytes / 1e6:,.1f} MB written in {written.seconds:.1f} s",
            flush=True,
        )
    return _finish(c, figures)


def limit_command(args: list[str]) -> int:
    """Run `qfleet replay limit`: set if inserts need credit; returns the exit status. Raises BadInput, RunFault."""
    c = parse(LimitCommand, args, prog="qfleet replay limit")
    figures = {}
    for address, info in _each(c, lambda connection: connection.set_limited(c.limited, c.timeout)):
        figures[address] = {"limited": info.limited}
        print(f"{address}: inserts " + ("need credit" if info.limited else "need no credit"), flush=True)
    return _finish(c, figures)


def drain_command(args: list[str]) -> int:
    """Run `qfleet replay drain`, one shard after the other; returns the exit status. Raises BadInput, RunFault."""
    c = parse(DrainCommand, args, prog="qfleet replay drain")
    access, figures = Access.load(c.security), {}
    writer = Writer(list(c.to), c.timeout, access=access)
    try:
        for address in c.addresses:
            connection = ShardConnection(address, c.timeout, access)
            moved = drain(connection, writer, functools.partial(_print_moved, address))
            figures[address] = {"moved": moved}
            print(f"{address} is empty: {moved:,} transitions moved to {', '.join(c.to)}", flush=True)
            connection.channel.close()
    finally:
        writer.close()
    return _finish(c, figures)


def _print_moved(address: str, moved: int, left: int) -> None:
    print(f"{address}: {moved:,} moved, {left:,} left", flush=True)


def _finish(c: ShardsCommand, figures: dict[str, Any]) -> int:
    """Print the JSON line if --json asks for it; returns the exit status 0."""
    if c.json:
        print(json.dumps(figures))
    return 0
