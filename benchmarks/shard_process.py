"""A replay shard in a process of its own (`python -m benchmarks.shard_process`): prints its port, serves until killed."""

from __future__ import annotations

import argparse
import asyncio

from replay.selectors import SelectorConfig
from replay.service import start_server
from replay.shard import Shard
from rl.types import ObservationSpec


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--capacity", type=int, default=1000)
    parser.add_argument("--shape", type=int, nargs="+", default=[2])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--stack", type=int, default=1)
    parser.add_argument("--limited", action="store_true")
    parser.add_argument("--alpha", type=float, default=1.0)
    parser.add_argument("--insert-timeout", type=float, default=60.0)
    a = parser.parse_args()
    spec = ObservationSpec(tuple(a.shape), a.dtype, a.stack)
    shard = Shard(a.capacity, spec, SelectorConfig(alpha=a.alpha, epsilon=1e-6), a.limited)
    server, port = await start_server(shard, f"127.0.0.1:{a.port}", a.insert_timeout)
    print(port, flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main())
