"""A replay shard: `python -m benchmarks.processes.shard [flags]` prints its port and serves until killed.

It is `qfleet replay serve` without the command line's imports and with shorter flags. On SIGUSR1 it checks between two
requests that its internal structures are consistent (`Shard.check_valid`) and prints VALID or the inconsistency.
"""

from __future__ import annotations

import argparse
import asyncio
import signal

from replay.store.selectors import SelectorConfig
from replay.store.shard import Shard
from replay.wire.serve import ServeConfig, serve

VALID = "valid"


def check_on_signal(shard: Shard) -> None:
    """Print the shard's `verdict` on each SIGUSR1."""
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, lambda: print(verdict(shard), flush=True))


def verdict(shard: Shard) -> str:
    """Check the shard; returns VALID or one line that describes the inconsistency."""
    try:
        shard.check_valid()
    except AssertionError as error:
        return " ".join(f"invalid: {error}".split())
    return VALID


def main() -> None:
    """Serve a shard until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--capacity", type=int, default=1000)
    parser.add_argument("--shape", type=int, nargs="+", default=[2])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--stack", type=int, default=1)
    parser.add_argument("--limited", action="store_true")
    parser.add_argument("--alpha", type=float, default=1.0)
    parser.add_argument("--insert-timeout", type=float, default=60.0)
    parser.add_argument("--snapshots")
    parser.add_argument("--snapshot-minutes", type=float, default=0.0)
    a = parser.parse_args()
    selector = SelectorConfig(alpha=a.alpha, epsilon=1e-6)
    config = ServeConfig(
        port=a.port,
        capacity=a.capacity,
        frame_shape=tuple(a.shape),
        dtype=a.dtype,
        stack=a.stack,
        selector=selector,
        limited=a.limited,
        insert_timeout=a.insert_timeout,
        snapshots=a.snapshots,
        snapshot_minutes=a.snapshot_minutes,
    )
    asyncio.run(serve(config, lambda port, _: print(port, flush=True), check_on_signal))


if __name__ == "__main__":
    main()
