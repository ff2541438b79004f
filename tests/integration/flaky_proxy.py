"""A TCP proxy with random faults, to put between a client and a shard."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading


class FlakyProxy:
    """Forwards TCP connections to ``port`` on this machine, and causes one random fault (``seed``) on each of them.

        proxy = FlakyProxy(shard.port, seed=0)
        writer = Writer([proxy.address])
        proxy.stop()

    The fault comes after the client has sent a random number of bytes from the range ``fault_after``:

    cut: both sides are closed at once; requests in flight are lost.
    drop_replies: requests are forwarded, replies (acknowledgements too) are dropped; then the connection is cut.
    pause: nothing is forwarded in either direction for a short time; another fault follows later.
    half_close: the client sees the end of the stream while the shard still receives; then the connection is cut.

    While the attribute ``drop_all_replies`` is True, replies are dropped on all connections. ``forwarded`` counts the
    bytes that went through: of requests to the shard, of replies to the client.
    """

    FAULTS = ("cut", "drop_replies", "drop_replies", "pause", "half_close")

    def __init__(self, port, seed, fault_after=(200, 20_000)):
        self._shard_port, self._random, self._fault_after = port, random.Random(seed), fault_after
        self.faults = dict.fromkeys(self.FAULTS, 0)  # how often each one was caused
        self.dropped_bytes = 0  # of replies
        self.forwarded = {"requests": 0, "replies": 0}  # bytes
        self.drop_all_replies = False
        self._loop = asyncio.new_event_loop()
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), daemon=True)
        self._thread.start()
        assert ready.wait(10.0)

    @property
    def address(self):
        """host:port for the client to connect to."""
        return f"127.0.0.1:{self.port}"

    def _run(self, ready):
        asyncio.set_event_loop(self._loop)
        self._server = self._loop.run_until_complete(asyncio.start_server(self._forward, "127.0.0.1", 0))
        self.port = self._server.sockets[0].getsockname()[1]
        ready.set()
        self._loop.run_forever()

    async def _forward(self, reader, writer):
        """Forward one connection of a client until it ends or is cut."""
        writers = [writer]
        with contextlib.suppress(OSError):
            from_shard, to_shard = await asyncio.open_connection("127.0.0.1", self._shard_port)
            writers.append(to_shard)
            state = {"fault": "", "bytes_left": self._random.randint(*self._fault_after)}
            directions = [
                asyncio.create_task(self._forward_requests(reader, to_shard, state)),
                asyncio.create_task(self._forward_replies(from_shard, writer, state)),
            ]
            await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
            for direction in directions:
                direction.cancel()
            await asyncio.gather(*directions, return_exceptions=True)
        for end in writers:
            end.transport.abort()

    async def _forward_requests(self, reader, writer, state):
        """Forward what the client sends; returns when the connection is to be cut."""
        cut_at = None  # loop time
        while True:
            left = None if cut_at is None else max(0.0, cut_at - self._loop.time())
            try:
                data = await asyncio.wait_for(reader.read(4096), timeout=left)
            except TimeoutError:
                return
            if not data:
                return
            state["bytes_left"] -= len(data)
            if state["bytes_left"] <= 0 and cut_at is None:
                fault = self._random.choice(self.FAULTS)
                self.faults[fault] += 1
                seconds = self._random.uniform(0.02, 0.2)
                if fault == "cut":
                    return
                if fault == "pause":
                    state["fault"] = fault
                    await asyncio.sleep(seconds)
                    state.update(fault="", bytes_left=self._random.randint(*self._fault_after))
                else:
                    state["fault"], cut_at = fault, self._loop.time() + seconds
            self.forwarded["requests"] += len(data)
            writer.write(data)
            await writer.drain()

    async def _forward_replies(self, reader, writer, state):
        """Forward what the shard sends, or drop it."""
        while data := await reader.read(4096):
            while state["fault"] == "pause":
                await asyncio.sleep(0.005)
            if state["fault"] == "half_close":
                writer.write_eof()
                state["fault"] = "drop_replies"
            if state["fault"] or self.drop_all_replies:
                self.dropped_bytes += len(data)
                continue
            self.forwarded["replies"] += len(data)
            writer.write(data)
            await writer.drain()

    def stop(self):
        """Close all connections and stop listening."""

        async def end():
            self._server.close()
            others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            self._loop.stop()

        asyncio.run_coroutine_threadsafe(end(), self._loop)
        self._thread.join(10.0)
