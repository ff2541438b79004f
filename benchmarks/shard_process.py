"""A replay shard in a process of its own (`python -m benchmarks.shard_process`): prints its port, serves until killed.

`qfleet replay serve` without the command line's imports, and with short names.
"""

from __future__ import annotations

import argparse
import asyncio

from replay.selectors import SelectorConfig
from replay.serve import ServeConfig, serve


def main() -> None:
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
    asyncio.run(serve(config, lambda port, _: print(port, flush=True)))


if __name__ == "__main__":
    main()
