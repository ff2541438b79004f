"""`qfleet replay ...`: the replay service without a run."""

from __future__ import annotations

import asyncio
import dataclasses
import signal
from collections.abc import Callable
from typing import Any

from qfleet.cli.flags import as_flags, parse
from qfleet.cli.shards import (
    DrainCommand,
    LimitCommand,
    ShardsCommand,
    drain_command,
    info_command,
    limit_command,
    snapshot_command,
)
from replay.security import Access, host_port, make_token_file
from replay.store.snapshots import Restored
from replay.wire.serve import ServeConfig, check_port, serve
from rl.errors import BadInput, nearest

USAGE = """usage: qfleet replay COMMAND ...

  qfleet replay serve [flags]       one shard by itself, without Ray; docs/replay.md has its clients
  qfleet replay info ADDRESS ...    what running shards hold, and the limiter's state
  qfleet replay snapshot ADDRESS ...
                                    have shards write their content to their own directories, while they serve
  qfleet replay limit ADDRESS ... [--no-limited]
                                    inserts against credit alone, or without
  qfleet replay drain ADDRESS ... --to ADDRESS ...
                                    move the content of shards that are to leave into others
  qfleet replay export RUN --to DATASET
                                    the episodes of a run's replay, or of a shard's snapshot, as a Minari dataset
  qfleet replay import DATASET --to ADDRESS [ADDRESS ...]
                                    a Minari dataset's transitions into running shards
"""


def replay_command(args: list[str]) -> int:
    """Run `qfleet replay COMMAND`; returns the exit status. Raises BadInput, RunFault."""
    if not args or args[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    command, flags = _command(args[0])
    with as_flags(flags):
        return command(args[1:])


def _command(name: str) -> tuple[Callable[[list[str]], int], type[Any]]:
    """A command and the class of its flags. Raises BadInput."""
    if name in ("export", "import"):  # with torch and Gymnasium, which the others do without
        from qfleet.cli.datasets import ExportCommand, ImportCommand, export_command, import_command

        return (export_command, ExportCommand) if name == "export" else (import_command, ImportCommand)
    if name not in COMMANDS:
        raise BadInput(f"unknown command 'replay {name}': {nearest(name, [*COMMANDS, 'export', 'import'])}")
    return COMMANDS[name]


def serve_command(args: list[str]) -> int:
    """Serve one shard until a signal; returns the exit status after SIGTERM.

    Raises BadInput, and KeyboardInterrupt after Ctrl-C.
    """
    config = parse(ServeConfig, args, prog="qfleet replay serve")
    check_port(config.host, config.port)
    Access.of(dataclasses.replace(config.security, token_file=""))  # says what is wrong with the files of TLS
    if make_token_file(config.security.token_file):
        print(f"a new token is in {config.security.token_file}: give the file to the clients", flush=True)

    def ready(port: int, restored: Restored | None) -> None:
        shape = "x".join(map(str, config.spec.shape))
        content = f"; {restored}" if restored else ""
        print(
            f"replay shard on {host_port(config.host, port)}: up to {config.capacity:,} transitions of "
            f"{config.spec.dtype} {shape}, {config.selector.kind}{content}; Ctrl-C ends it",
            flush=True,
        )

    ended = asyncio.run(serve(config, ready))
    if ended == signal.SIGINT:
        raise KeyboardInterrupt
    return 143


COMMANDS: dict[str, tuple[Callable[[list[str]], int], type[Any]]] = {  # each with the class of its flags
    "serve": (serve_command, ServeConfig),
    "info": (info_command, ShardsCommand),
    "snapshot": (snapshot_command, ShardsCommand),
    "limit": (limit_command, LimitCommand),
    "drain": (drain_command, DrainCommand),
}
