"""A gRPC stream that answers every request with the same bytes; prints its port.

`python -m benchmarks.processes.plain_stream FILE`, where FILE holds the bytes. It shows what `qfleet bench replay`
could carry at most, if the shard had nothing to do.
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

METHOD = "/qfleet.bench.Plain/Stream"
IN_HAND = 4  # requests, as many as the sampler has batches ahead


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
    """A function that takes the next reply of a stream from another process; IN_HAND replies are always asked for.

    Raises RuntimeError where the process does not start within 30 s.
    """
    with contextlib.ExitStack() as stack, tempfile.NamedTemporaryFile() as file:
        file.write(reply)
        file.flush()
        command = [sys.executable, "-m", "benchmarks.processes.plain_stream", file.name]
        process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        stack.callback(process.kill)
        assert process.stdout is not None
        if not select.select([process.stdout], [], [], 30.0)[0]:
            raise RuntimeError("the plain stream did not start within 30 s")
        channel = grpc.insecure_channel(f"127.0.0.1:{int(process.stdout.readline())}", options=CHANNEL_OPTIONS)
        stack.callback(channel.close)
        requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        for _ in range(IN_HAND):
            requests.put(b"")
        stack.callback(requests.put, None)
        replies = channel.stream_stream(METHOD)(iter(requests.get, None), timeout=600.0)

        def take() -> bytes:
            requests.put(b"")
            return bytes(next(replies))

        yield take


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
