"""`qfleet replay ...`: the replay service by itself."""

from __future__ import annotations

import asyncio
import json
import signal
from dataclasses import dataclass

import tyro

from launch.dataset_commands import export_command, import_command
from launch.flags import parse
from replay.links import ask_for_snapshot
from replay.serve import ServeConfig, serve
from replay.snapshot import Restored
from rl.errors import BadInput, RunFault, nearest

USAGE = """usage: qfleet replay COMMAND ...

  qfleet replay serve [flags]       one shard by itself, without Ray; docs/replay.md has its clients
  qfleet replay snapshot ADDRESS [ADDRESS ...]
                                    have shards write their content to their own directories, while they serve
  qfleet replay export RUN --to DATASET
                                    the episodes of a run's replay, or of a shard's snapshot, as a Minari dataset
  qfleet replay import DATASET --to ADDRESS [ADDRESS ...]
                                    a Minari dataset's transitions into running shards
"""


@dataclass(frozen=True)
class SnapshotCommand:
    """Have shards write snapshots, each to the directory that it was started with."""

    addresses: tyro.conf.Positional[tuple[str, ...]]
    """host:port of each shard."""
    timeout: float = 300.0
    """Seconds that each may take."""
    json: bool = False
    """The last line of output is a JSON object with the figures of each shard by its address."""

    def __post_init__(self) -> None:
        if not self.addresses:
            raise BadInput("qfleet replay snapshot needs a shard's address: write host:port of one or more")
        if self.timeout <= 0:
            raise BadInput(f"--timeout is {self.timeout}: write a positive number of seconds")
        for address in self.addresses:
            host, _, port = address.rpartition(":")
            if not host or not port.isdigit():
                raise BadInput(f"{address!r} is no shard's address: write host:port")


def replay_command(args: list[str]) -> int:
    """A shard and its content, apart from any run."""
    if not args or args[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    if args[0] not in COMMANDS:
        raise BadInput(f"unknown command 'replay {args[0]}': {nearest(args[0], COMMANDS)}")
    return COMMANDS[args[0]](args[1:])


def serve_command(args: list[str]) -> int:
    config = parse(ServeConfig, args, prog="qfleet replay serve")

    def ready(port: int, restored: Restored | None) -> None:
        shape = "x".join(map(str, config.spec.shape))
        content = f"; {restored}" if restored else ""
        print(
            f"replay shard on 127.0.0.1:{port}: up to {config.capacity:,} transitions of {config.spec.dtype} {shape}, "
            f"{config.selector.kind}{content}; Ctrl-C ends it",
            flush=True,
        )

    ended = asyncio.run(serve(config, ready))
    if ended == signal.SIGINT:
        raise KeyboardInterrupt
    return 143


def snapshot_command(args: list[str]) -> int:
    c = parse(SnapshotCommand, args, prog="qfleet replay snapshot")
    figures, faults = {}, []
    for address in c.addresses:
        try:
            reply = ask_for_snapshot(address, c.timeout)
        except RunFault as fault:
            faults.append(str(fault))
            continue
        figures[address] = {"items": reply.items, "bytes_written": reply.bytes_written, "seconds": reply.seconds}
        print(
            f"{address}: {reply.items:,} transitions, {reply.bytes_written / 1e6:,.1f} MB written in {reply.seconds:.1f} s",
            flush=True,
        )
    if c.json:
        print(json.dumps(figures))
    if faults:
        raise RunFault("; ".join(faults))
    return 0


COMMANDS = {
    "serve": serve_command,
    "snapshot": snapshot_command,
    "export": export_command,
    "import": import_command,
}
