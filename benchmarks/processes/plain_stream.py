"""A gRPC server that answers every request with the same bytes: an upper limit for `qfleet bench replay`.

    python -m benchmarks.processes.plain_stream FILE

It prints its port and answers each request with the content of FILE. A shard must also draw items and assemble the
replies.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import select
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc

from replay.wire.channel import CHANNEL_OPTIONS, SERVER_OPTIONS
from rl.errors import RunFault

METHOD = "/qfleet.bench.Plain/Stream"
REQUESTS_AHEAD = 4  # requests sent before their replies are needed


async def serve(path: str) -> None:
    """Print the port, and answer every request with the content of the file at ``path`` until killed."""
    reply = Path(path).read_bytes()

    async def stream(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        del context
        async for _ in requests:
            yield reply

    handler = grpc.stream_stream_rpc_method_handler(stream)
    server = grpc.aio.server(options=SERVER_OPTIONS)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("qfleet.bench.Plain", {"Stream": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


@contextlib.contextmanager
def plain_stream(reply: bytes) -> Iterator[Callable[[], bytes]]:
    """Start the server with ``reply`` in a separate process; yields a function that receives the next reply.

    REQUESTS_AHEAD requests are always in flight. Raises RunFault if the process does not start within 30 s.
    """
    with contextlib.ExitStack() as stack, tempfile.NamedTemporaryFile() as file:
        file.write(reply)
        file.flush()
        command = [sys.executable, "-m", "benchmarks.processes.plain_stream", file.name]
        process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        stack.callback(process.kill)
        assert process.stdout is not None
        port = process.stdout.readline() if select.select([process.stdout], [], [], 30.0)[0] else ""
        if not port:
            raise RunFault("the plain gRPC server did not start within 30 s: see its error output above, if any")
        channel = grpc.insecure_channel(f"127.0.0.1:{int(port)}", options=CHANNEL_OPTIONS)
        stack.callback(channel.close)
        requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        for _ in range(REQUESTS_AHEAD):
            requests.put(b"")
        stack.callback(requests.put, None)
        replies = channel.stream_stream(METHOD)(iter(requests.get, None), timeout=600.0)

        def receive() -> bytes:
            requests.put(b"")
            return bytes(next(replies))

        yield receive


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
