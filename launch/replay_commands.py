"""`qfleet replay ...`: the replay service by itself."""

from __future__ import annotations

import asyncio
import signal

from launch.flags import parse
from replay.security import host_port, make_token_file
from replay.serve import ServeConfig, serve
from rl.errors import BadInput, nearest

USAGE = """usage: qfleet replay COMMAND ...

  qfleet replay serve [flags]       one shard by itself, without Ray; docs/replay.md has its clients
"""


def replay_command(args: list[str]) -> int:
    """A shard and its content, apart from any run."""
    if not args or args[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    if args[0] != "serve":
        raise BadInput(f"unknown command 'replay {args[0]}': {nearest(args[0], ['serve'])}")
    return serve_command(args[1:])


def serve_command(args: list[str]) -> int:
    config = parse(ServeConfig, args, prog="qfleet replay serve")

    if make_token_file(config.security.token_file):
        print(f"a new token is in {config.security.token_file}: give the file to the clients", flush=True)

    def ready(port: int) -> None:
        shape = "x".join(map(str, config.spec.shape))
        print(
            f"replay shard on {host_port(config.host, port)}: up to {config.capacity:,} transitions of "
            f"{config.spec.dtype} {shape}, {config.selector.kind}; Ctrl-C ends it",
            flush=True,
        )

    ended = asyncio.run(serve(config, ready))
    if ended == signal.SIGINT:
        raise KeyboardInterrupt
    return 143
