"""A network that breaks, between a client and a shard."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading


class FlakyProxy:
    """Forwards TCP to ``port`` from a port of its own, and at random (``seed``) breaks each connection.

    Once ``calm`` bytes, drawn afresh for each connection, have come from the client, one of these befalls it:
    cut: both ends are closed at once, requests under way with them.
    deaf: requests still arrive, but nothing of what the shard answers does, and after a moment the connection is cut. So
    acknowledgements are dropped.
    slow: nothing passes for a moment in either direction, then all goes on.
    half: the client hears the end of the stream while the shard still listens, and after a moment the connection is cut.

    While ``deaf`` is set, no connection's answers arrive.
    """

    HOWS = ("cut", "deaf", "deaf", "slow", "half")

    def __init__(self, port, seed, calm=(200, 20_000)):
        self._to, self._random, self._calm = port, random.Random(seed), calm
        self.befell = dict.fromkeys(self.HOWS, 0)
        self.swallowed = 0  # bytes of answers
        self.deaf = False
        self._loop = asyncio.new_event_loop()
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), daemon=True)
        self._thread.start()
        assert ready.wait(10.0)

    @property
    def address(self):
        return f"127.0.0.1:{self.port}"

    def _run(self, ready):
        asyncio.set_event_loop(self._loop)
        self._server = self._loop.run_until_complete(asyncio.start_server(self._connected, "127.0.0.1", 0))
        self.port = self._server.sockets[0].getsockname()[1]
        ready.set()
        self._loop.run_forever()

    async def _connected(self, reader, writer):
        ends = [writer]
        with contextlib.suppress(OSError):
            from_shard, to_shard = await asyncio.open_connection("127.0.0.1", self._to)
            ends.append(to_shard)
            state = {"mood": "", "left": self._random.randint(*self._calm)}
            ways = [
                asyncio.create_task(self._requests(reader, to_shard, state)),
                asyncio.create_task(self._answers(from_shard, writer, state)),
            ]
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
        for end in ends:
            end.transport.abort()

    async def _requests(self, reader, writer, state):
        """Returns when the connection is to be cut."""
        until = None
        while True:
            left = None if until is None else max(0.0, until - self._loop.time())
            try:
                data = await asyncio.wait_for(reader.read(4096), timeout=left)
            except TimeoutError:
                return
            if not data:
                return
            state["left"] -= len(data)
            if state["left"] <= 0 and until is None:
                how = self._random.choice(self.HOWS)
                self.befell[how] += 1
                moment = self._random.uniform(0.02, 0.2)
                if how == "cut":
                    return
                if how == "slow":
                    state["mood"] = how
                    await asyncio.sleep(moment)
                    state.update(mood="", left=self._random.randint(*self._calm))
                else:
                    state["mood"], until = how, self._loop.time() + moment
            writer.write(data)
            await writer.drain()

    async def _answers(self, reader, writer, state):
        while data := await reader.read(4096):
            while state["mood"] == "slow":
                await asyncio.sleep(0.005)
            if state["mood"] == "half":
                writer.write_eof()
                state["mood"] = "deaf"
            if state["mood"] or self.deaf:
                self.swallowed += len(data)
                continue
            writer.write(data)
            await writer.drain()

    def stop(self):
        async def end():
            self._server.close()
            others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            self._loop.stop()

        asyncio.run_coroutine_threadsafe(end(), self._loop)
        self._thread.join(10.0)
