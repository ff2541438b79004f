"""`qfleet replay`: the replay service without a training run."""

from __future__ import annotations

import asyncio
import dataclasses
import signal
from collections.abc import Callable
from typing import Any

from qfleet.cli.flags import errors_name_flags, parse
from qfleet.cli.shards import (
    DrainCommand,
    InfoCommand,
    LimitCommand,
    SnapshotCommand,
    drain_command,
    info_command,
    limit_command,
    snapshot_command,
)
from replay.security import Access, host_port, make_token_file
from replay.store.restore import Restored
from replay.wire.serve import ServeConfig, check_port, serve
from rl.errors import BadInput, suggestion

USAGE = """usage: qfleet replay COMMAND ...

  qfleet replay serve [flags]     run one shard without Ray (see docs/replay.md)
  qfleet replay info ADDRESS ...  show the content and limiter of running shards
  qfleet replay snapshot ADDRESS ...
                                  make running shards write a snapshot now
  qfleet replay limit ADDRESS ... [--no-limited]
                                  make inserts need credit, or no longer need it
  qfleet replay drain ADDRESS ... --to ADDRESS ...
                                  move the content of shards into other shards
  qfleet replay export RUN --to DATASET
                                  write replay snapshots as a Minari dataset
  qfleet replay import DATASET --to ADDRESS [ADDRESS ...]
                                  insert a Minari dataset into running shards

ADDRESS is host:port of a shard. `qfleet replay COMMAND --help` lists flags.
"""


def replay_command(args: list[str]) -> int:
    """Run `qfleet replay COMMAND`; returns the exit status. Raises BadInput, RunFault."""
    if not args or args[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    command, flags = _command(args[0])
    with errors_name_flags(flags):
        return command(args[1:])


def _command(name: str) -> tuple[Callable[[list[str]], int], type[Any]]:
    """The command ``name`` and the class of its flags. Raises BadInput if there is no such command."""
    if name in ("export", "import"):  # these import torch and Gymnasium; the other commands do not
        from qfleet.cli.datasets import ExportCommand, ImportCommand, export_command, import_command

        return (export_command, ExportCommand) if name == "export" else (import_command, ImportCommand)
    if name not in COMMANDS:
        raise BadInput(f"unknown command 'replay {name}': {suggestion(name, [*COMMANDS, 'export', 'import'])}")
    return COMMANDS[name]


def serve_command(args: list[str]) -> int:
    """Run `qfleet replay serve` until a signal arrives; returns the exit status after SIGTERM.

    Raises BadInput; KeyboardInterrupt after Ctrl-C.
    """
    config = parse(ServeConfig, args, prog="qfleet replay serve")
    check_port(config.host, config.port)
    Access.load(
        dataclasses.replace(config.security, token_file="")
    )  # raises BadInput if a TLS file is missing or malformed
    if make_token_file(config.security.token_file):
        print(f"wrote a new token to {config.security.token_file}: copy this file to the clients", flush=True)

    def ready(port: int, restored: Restored | None) -> None:
        shape = "x".join(map(str, config.spec.shape))
        content = f"; {restored}" if restored else ""
        print(
            f"replay shard on {host_port(config.host, port)}: up to {config.capacity:,} transitions of "
            f"{config.spec.dtype} {shape}, {config.selector.kind}{content}; Ctrl-C stops it",
            flush=True,
        )

    ended = asyncio.run(serve(config, ready))
    if ended == signal.SIGINT:
        raise KeyboardInterrupt
    return 143


COMMANDS: dict[str, tuple[Callable[[list[str]], int], type[Any]]] = {  # each with the class of its flags
    "serve": (serve_command, ServeConfig),
    "info": (info_command, InfoCommand),
    "snapshot": (snapshot_command, SnapshotCommand),
    "limit": (limit_command, LimitCommand),
    "drain": (drain_command, DrainCommand),
}
