"""The writer: sends segments to shards over gRPC, each exactly once, with a bounded number in flight.

Each shard has a stream and two threads: one of gRPC's reads the outgoing segments, one of the stream's reads the
replies. Segments that are not acknowledged when a call breaks are sent again, in order, on the next call to the same
shard; the shard drops those that it had stored. Only when a shard is gone for good do its segments go to the others.
Shards may join and leave: what is in flight to one that leaves is still delivered to it.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections import deque
from collections.abc import Iterator, Sequence

import grpc

from protos import replay_pb2 as pb
from protos.codec import insert_request, pack_segment
from protos.types import PackedSegment
from replay.security import UNPROTECTED, Access
from replay.wire.connection import ShardConnection, all_gone
from rl.errors import BadInput, RunFault
from rl.types import Segment

WINDOW = 4  # segments in flight to one shard


class ShardStream:
    """The stream to one shard: segments to be sent, and segments sent and not yet acknowledged."""

    def __init__(self, connection: ShardConnection, changed: threading.Condition) -> None:
        self.connection, self._changed = connection, changed
        self._name = uuid.uuid4().hex  # new for each stream: a shard that left and rejoined remembers the old numbers
        self.queue: deque[pb.InsertRequest] = deque()  # not yet acknowledged, in order
        self.credit_left: int | None = None  # items, by its last reply
        self._sequence = 0
        self._sent = 0  # how many of `queue` were sent on the current call
        self._call = 0  # number of the current Insert call
        self.acknowledged = 0  # segments
        self.closed = self.leaving = False
        self.failure: RunFault | None = None
        self._thread = threading.Thread(target=self._run, name=f"writer-{connection.address}", daemon=True)
        self._thread.start()

    def put(self, request: pb.InsertRequest) -> None:
        """Queue a request under this stream's name and next sequence number (the caller holds the lock)."""
        self._sequence += 1
        request.writer, request.sequence = self._name, self._sequence
        self.queue.append(request)
        self._changed.notify_all()

    @property
    def open(self) -> bool:
        """Whether new segments may be sent to this shard."""
        return not (self.leaving or self.connection.gone)

    def _outgoing(self, call: int) -> Iterator[pb.InsertRequest]:
        while True:
            with self._changed:
                while self._sent >= len(self.queue) and not self.closed and call == self._call:
                    self._changed.wait(timeout=1.0)
                if call != self._call or (self.closed and self._sent >= len(self.queue)):
                    return
                request = self.queue[self._sent]
                self._sent += 1
            yield request

    def _run(self) -> None:
        while not self.closed and not self.connection.gone:
            with self._changed:
                self._call += 1
                self._sent = 0
                call = self._call
            try:
                for reply in self.connection.stub.Insert(self._outgoing(call), metadata=self.connection.metadata):
                    self._acknowledge(reply)
            except grpc.RpcError as error:
                self._failed(error)
            except ValueError:  # the channel was closed meanwhile
                return

    def _acknowledge(self, reply: pb.InsertReply) -> None:
        self.connection.answered()
        with self._changed:
            while self.queue and self.queue[0].sequence <= reply.acknowledged:
                self.queue.popleft()
                self._sent = max(0, self._sent - 1)  # a duplicate may acknowledge what this call has not sent yet
                self.acknowledged += 1
            self.credit_left = reply.credit_left
            self._changed.notify_all()

    def _failed(self, error: grpc.RpcError) -> None:
        if self.closed:
            return
        if isinstance(error, grpc.Call) and error.code() == grpc.StatusCode.FAILED_PRECONDITION:
            self._renumber()
        try:
            pause = self.connection.failed(error)
        except RunFault as fault:
            self.failure = fault
            self.connection.gone = True
            pause = 0.0
        with self._changed:
            self._call += 1  # ends the old call's sender
            self._changed.notify_all()
            if isinstance(error, grpc.Call) and error.code() == grpc.StatusCode.ABORTED:
                self._changed.wait_for(lambda: self.closed or self.queue)  # ended for its silence: wait for a segment
            else:
                self._changed.wait_for(lambda: self.closed, timeout=pause)

    def _renumber(self) -> None:
        """Continue as a new writer, from 1: the shard was restarted, and lost numbers that it had acknowledged.

        It cannot store twice what it has lost, so the segments in flight are safe to send under new numbers.
        """
        with self._changed:
            self._name = uuid.uuid4().hex
            for sequence, request in enumerate(self.queue, start=1):
                request.writer, request.sequence = self._name, sequence
            self._sequence = len(self.queue)

    def join(self) -> None:
        """Wait up to 5 seconds for the stream's thread to end."""
        self._thread.join(timeout=5.0)


class Writer:
    """`SegmentSink` over gRPC. Pickles as its addresses and its access.

        writer = Writer(addresses)
        writer.write(segment)  # as often as wanted
        writer.flush(timeout=60.0)  # then `close`

    Raises BadInput without an address.
    """

    def __init__(
        self,
        addresses: list[str],
        give_up_after: float = 60.0,
        write_timeout: float = 300.0,
        access: Access = UNPROTECTED,
    ) -> None:
        self.addresses, self._give_up_after, self._write_timeout = list(addresses), give_up_after, write_timeout
        self._access = access
        self.name = uuid.uuid4().hex
        self._changed = threading.Condition()
        self._streams: list[ShardStream] = []
        self._closed = False
        self.set_shards(addresses)
        self._turn = hash(self.name) % len(addresses)  # so that many writers start at different shards

    def __reduce__(self) -> tuple[type[Writer], tuple[list[str], float, float, Access]]:
        return Writer, (self.addresses, self._give_up_after, self._write_timeout, self._access)

    def set_shards(self, addresses: Sequence[str], timeout: float = 0.0) -> None:
        """Write to these shards from now on; for any thread. What is in flight to the others is still delivered.

        With a ``timeout`` in seconds it waits until it is delivered. Raises TimeoutError when that takes longer,
        BadInput without an address, RunFault when the writer is closed or no shard is left.
        """
        if not addresses:
            raise BadInput("a writer without a replay shard: write the address of at least one")
        addresses = list(dict.fromkeys(addresses))
        with self._changed:
            if self._closed:
                raise RunFault("the writer is closed")
            self.addresses = addresses
            for stream in self._streams:
                stream.leaving = stream.connection.address not in addresses
            here = {stream.connection.address for stream in self._streams}
            self._streams += [
                ShardStream(ShardConnection(a, self._give_up_after, self._access), self._changed)
                for a in addresses
                if a not in here
            ]
            self._changed.notify_all()
            deadline = time.monotonic() + timeout
            while timeout and any(stream.leaving for stream in self._streams):
                self._check()
                self._tidy()
                if time.monotonic() >= deadline:
                    raise TimeoutError(
                        f"after {timeout:g} s shards that are to be left have not acknowledged: {self._state()}"
                    )
                self._changed.wait(timeout=0.1)

    @property
    def in_flight(self) -> int:
        """Number of segments not yet acknowledged."""
        return sum(len(stream.queue) for stream in self._streams)

    @property
    def _acknowledged(self) -> int:
        return sum(stream.acknowledged for stream in self._streams)

    def write(self, segment: Segment) -> None:
        """Send a segment to a shard that has credit; waits while every shard's window is full.

        Raises RunFault when no shard is left, a shard refused a segment, none was acknowledged for ``write_timeout``
        seconds, or the writer is closed meanwhile.
        """
        self._put(insert_request(pack_segment(segment), self.name), segment.items)

    def transfer(self, segment: PackedSegment, origin: str) -> None:
        """`write` for a segment of ``origin``'s that comes from another shard or a dataset: it needs no credit."""
        self._put(insert_request(segment, origin, transferred=True), 0)

    def _put(self, request: pb.InsertRequest, items: int) -> None:
        with self._changed:
            deadline, moved = time.monotonic() + self._write_timeout, self._acknowledged
            self._check()
            while (stream := self._choose(items)) is None:
                self._changed.wait(timeout=1.0)
                if self._acknowledged != moved:
                    deadline, moved = time.monotonic() + self._write_timeout, self._acknowledged
                if time.monotonic() >= deadline:
                    raise RunFault(f"replay took no segment for {self._write_timeout:g} s: {self._state()}")
                self._check()
            stream.put(request)

    def _choose(self, items: int) -> ShardStream | None:
        """The next stream in turn with room in its window, preferably with credit for ``items``; or None."""
        self._tidy()
        count = len(self._streams)
        turn = [self._streams[(self._turn + i) % count] for i in range(count)]
        self._turn = (self._turn + 1) % count
        free = [stream for stream in turn if stream.open and len(stream.queue) < WINDOW]
        funded = [stream for stream in free if stream.credit_left is None or stream.credit_left >= items]
        idle = [stream for stream in free if not stream.queue]
        return next(iter(funded or idle), None)

    def _tidy(self) -> None:
        """Give the other shards what was in flight to a shard that is gone for good; end the streams that have left."""
        alive = [stream for stream in self._streams if stream.open]
        for stream in self._streams:
            while stream.connection.gone and stream.queue and alive and stream.failure is None:
                alive[0].put(stream.queue.popleft())
            if stream.leaving and not stream.queue:
                stream.closed = True
                self._changed.notify_all()  # its thread may be waiting for a segment
                stream.connection.channel.close()
        self._streams = [stream for stream in self._streams if not stream.closed]

    def _check(self) -> None:
        if self._closed:
            raise RunFault("the writer was closed while it waited for replay to take a segment")
        for stream in self._streams:
            if stream.failure is not None:
                raise stream.failure
        if all(stream.connection.gone for stream in self._streams):
            raise all_gone([stream.connection for stream in self._streams])

    def _state(self) -> str:
        return ", ".join(
            f"{s.connection.address}: {len(s.queue)} in flight, credit {s.credit_left}, {s.connection.last_error}"
            for s in self._streams
        )

    def flush(self, timeout: float) -> None:
        """Wait until every segment is acknowledged.

        Raises TimeoutError after ``timeout`` seconds, RunFault when no shard is left or one refused a segment.
        """
        with self._changed:
            deadline = time.monotonic() + timeout
            while self.in_flight:
                self._tidy()
                self._check()
                self._changed.wait(timeout=0.1)
                if time.monotonic() >= deadline and self.in_flight:
                    raise TimeoutError(f"after {timeout:g} s replay has not acknowledged: {self._state()}")

    def close(self) -> None:
        """Close the streams; segments not acknowledged are lost (call `flush` first)."""
        with self._changed:
            self._closed = True
            streams = list(self._streams)
            for stream in streams:
                stream.closed = True
            self._changed.notify_all()
        for stream in streams:
            stream.connection.channel.close()
        for stream in streams:
            stream.join()
