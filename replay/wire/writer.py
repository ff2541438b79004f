"""The writer: sends segments to shards over gRPC, with a bounded number in flight; each segment is stored exactly once.

Each shard has one stream with two threads: a gRPC thread takes segments from `ShardStream._outgoing` and sends them,
the stream's own thread reads the replies. When a call breaks, its unacknowledged segments are sent again, in order, on
the next call to the same shard, which ignores those that it has already stored. Segments move to other shards only when
their shard is gone (`ShardConnection`). Shards may join and leave: segments in flight to a leaving shard are still
delivered.
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
from protos.types import UNLIMITED_CREDIT, PackedSegment
from replay.security import UNPROTECTED, Access
from replay.wire.connection import ShardConnection, all_gone
from rl.errors import BadInput, RunFault
from rl.types import Segment

WINDOW = 4  # segments in flight to one shard


class ShardStream:
    """The Insert stream to one shard, with the queue of segments that it has not acknowledged; reopened when it breaks.

    ``changed`` is the `Writer`'s condition: it guards the state of all streams.
    """

    def __init__(self, connection: ShardConnection, changed: threading.Condition) -> None:
        self.connection, self._changed = connection, changed
        # A new writer name for each stream: a shard that leaves and joins again still knows the old sequence numbers.
        self._name = uuid.uuid4().hex
        self.queue: deque[pb.InsertRequest] = deque()  # not yet acknowledged, in order
        self.credit_left: int | None = None  # unused credit in items, from the last reply; None before the first
        self._sequence = 0
        self._sent = 0  # how many of `queue` were sent on the current call
        self._call = 0  # number of the current Insert call
        self.acknowledged = 0  # segments, since the stream was created
        self.is_closed = self.is_leaving = False
        self.failure: RunFault | None = None
        self._thread = threading.Thread(target=self._run, name=f"writer-{connection.address}", daemon=True)
        self._thread.start()

    def enqueue(self, request: pb.InsertRequest) -> None:
        """Queue a request with this stream's name and next sequence number. The caller must hold the lock."""
        self._sequence += 1
        request.writer, request.sequence = self._name, self._sequence
        self.queue.append(request)
        self._changed.notify_all()

    @property
    def accepts_segments(self) -> bool:
        """Whether new segments may be sent to this shard."""
        return not (self.is_leaving or self.connection.is_gone)

    def _outgoing(self, call: int) -> Iterator[pb.InsertRequest]:
        while True:
            with self._changed:
                while self._sent >= len(self.queue) and not self.is_closed and call == self._call:
                    self._changed.wait(timeout=1.0)
                if call != self._call or (self.is_closed and self._sent >= len(self.queue)):
                    return
                request = self.queue[self._sent]
                self._sent += 1
            yield request

    def _run(self) -> None:
        while not self.is_closed and not self.connection.is_gone:
            with self._changed:
                self._call += 1
                self._sent = 0
                call = self._call
            try:
                for reply in self.connection.stub.Insert(self._outgoing(call), metadata=self.connection.metadata):
                    self._acknowledge(reply)
            except grpc.RpcError as error:
                self._handle_error(error)
            except ValueError:  # the channel is closed
                return

    def _acknowledge(self, reply: pb.InsertReply) -> None:
        self.connection.record_answer()
        with self._changed:
            while self.queue and self.queue[0].sequence <= reply.acknowledged:
                self.queue.popleft()
                self._sent = max(
                    0, self._sent - 1
                )  # a duplicate is acknowledged together with later ones not yet resent
                self.acknowledged += 1
            self.credit_left = reply.credit_left
            self._changed.notify_all()

    def _handle_error(self, error: grpc.RpcError) -> None:
        if self.is_closed:
            return
        if isinstance(error, grpc.Call) and error.code() == grpc.StatusCode.FAILED_PRECONDITION:
            self._restart_numbering()
        try:
            backoff = self.connection.record_failure(error)
        except RunFault as fault:
            self.failure = fault
            self.connection.is_gone = True
            backoff = 0.0
        with self._changed:
            self._call += 1  # ends `_outgoing` of the broken call
            self._changed.notify_all()
            if isinstance(error, grpc.Call) and error.code() == grpc.StatusCode.ABORTED:
                self._changed.wait_for(
                    lambda: self.is_closed or self.queue
                )  # it was idle: reopen it for the next segment
            else:
                self._changed.wait_for(lambda: self.is_closed, timeout=backoff)

    def _restart_numbering(self) -> None:
        """Continue under a new name, with sequence numbers from 1.

        The shard was restarted and has lost segments that it had acknowledged. It has none of the segments in flight
        either, so they can be sent again under new numbers without being stored twice.
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
    """`SegmentSink` over gRPC. Pickling keeps only the arguments.

        writer = Writer(addresses)
        writer.write(segment)
        writer.flush(timeout=60.0)  # wait until all segments are stored
        writer.close()

    Raises BadInput if ``addresses`` is empty.
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
        self.name = uuid.uuid4().hex  # the origin of its segments; each stream has a writer name of its own
        self._changed = threading.Condition()
        self._streams: list[ShardStream] = []
        self._closed = False
        self.set_shards(addresses)
        self._next_index = hash(self.name) % len(addresses)  # so that writers start at different shards

    def __reduce__(self) -> tuple[type[Writer], tuple[list[str], float, float, Access]]:
        return Writer, (self.addresses, self._give_up_after, self._write_timeout, self._access)

    def set_shards(self, addresses: Sequence[str], timeout: float = 0.0) -> None:
        """Replace the set of shards. Segments in flight to the other shards are still delivered. Safe from any thread.

        With a ``timeout`` above 0, waits up to that many seconds until these segments are acknowledged, and raises
        TimeoutError if they are not. Raises BadInput if ``addresses`` is empty, RunFault if the writer is closed or
        every shard is gone.
        """
        if not addresses:
            raise BadInput("a writer needs at least one replay shard: write its address")
        addresses = list(dict.fromkeys(addresses))
        with self._changed:
            if self._closed:
                raise RunFault("the writer is closed")
            self.addresses = addresses
            for stream in self._streams:
                stream.is_leaving = stream.connection.address not in addresses
            connected = {stream.connection.address for stream in self._streams}
            self._streams += [
                ShardStream(ShardConnection(a, self._give_up_after, self._access), self._changed)
                for a in addresses
                if a not in connected
            ]
            self._changed.notify_all()
            deadline = time.monotonic() + timeout
            while timeout and any(stream.is_leaving for stream in self._streams):
                self._raise_failure()
                self._reassign_and_close()
                if time.monotonic() >= deadline:
                    raise TimeoutError(
                        f"shards that leave have not acknowledged all segments after {timeout:g} s: "
                        f"{self._describe_streams()}"
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
        """Queue a segment for a shard, if possible one with enough unused credit; waits while no shard can take one.

        Raises RunFault if every shard is gone, a shard rejected a segment, no segment is acknowledged for
        ``write_timeout`` seconds, or another thread closes the writer.
        """
        self._enqueue(insert_request(pack_segment(segment), self.name), segment.items)

    def transfer(self, segment: PackedSegment, origin: str) -> None:
        """Like `write`, for a segment from another shard or a dataset, first written by ``origin``; needs no credit."""
        self._enqueue(insert_request(segment, origin, transferred=True), 0)

    def _enqueue(self, request: pb.InsertRequest, items: int) -> None:
        with self._changed:
            deadline, acknowledged = time.monotonic() + self._write_timeout, self._acknowledged
            self._raise_failure()
            while (stream := self._choose_stream(items)) is None:
                self._changed.wait(timeout=1.0)
                if self._acknowledged != acknowledged:
                    deadline, acknowledged = time.monotonic() + self._write_timeout, self._acknowledged
                if time.monotonic() >= deadline:
                    raise RunFault(
                        f"replay acknowledged no segment for {self._write_timeout:g} s: {self._describe_streams()}"
                    )
                self._raise_failure()
            stream.enqueue(request)

    def _choose_stream(self, items: int) -> ShardStream | None:
        """Return the next stream (round robin) that can take a segment of ``items`` items, or None.

        It must have room in its window and enough unused credit. If none has, an idle stream is returned: its segment
        waits at the shard.
        """
        self._reassign_and_close()
        count = len(self._streams)
        streams = [self._streams[(self._next_index + i) % count] for i in range(count)]
        self._next_index = (self._next_index + 1) % count
        free = [stream for stream in streams if stream.accepts_segments and len(stream.queue) < WINDOW]
        with_credit = [stream for stream in free if stream.credit_left is None or stream.credit_left >= items]
        idle = [stream for stream in free if not stream.queue]
        return next(iter(with_credit or idle), None)

    def _reassign_and_close(self) -> None:
        """Move the segments of gone shards to another shard, and close the streams of shards that have left."""
        alive = [stream for stream in self._streams if stream.accepts_segments]
        for stream in self._streams:
            while stream.connection.is_gone and stream.queue and alive and stream.failure is None:
                alive[0].enqueue(stream.queue.popleft())
            if stream.is_leaving and not stream.queue:
                stream.is_closed = True
                self._changed.notify_all()  # wakes its thread if it waits for a segment
                stream.connection.channel.close()
        self._streams = [stream for stream in self._streams if not stream.is_closed]

    def _raise_failure(self) -> None:
        if self._closed:
            raise RunFault("the writer was closed while it waited for replay to accept a segment")
        for stream in self._streams:
            if stream.failure is not None:
                raise stream.failure
        if all(stream.connection.is_gone for stream in self._streams):
            raise all_gone([stream.connection for stream in self._streams])

    def _describe_streams(self) -> str:
        return ", ".join(
            f"{s.connection.address}: {len(s.queue)} in flight, unused credit {_describe_credit(s.credit_left)}, "
            f"{s.connection.last_error}"
            for s in self._streams
        )

    def flush(self, timeout: float) -> None:
        """Wait until every segment is acknowledged.

        Raises TimeoutError after ``timeout`` seconds, RunFault if every shard is gone or one rejected a segment.
        """
        with self._changed:
            deadline = time.monotonic() + timeout
            while self.in_flight:
                self._reassign_and_close()
                self._raise_failure()
                self._changed.wait(timeout=0.1)
                if time.monotonic() >= deadline and self.in_flight:
                    raise TimeoutError(
                        f"replay has not acknowledged all segments after {timeout:g} s: {self._describe_streams()}"
                    )

    def close(self) -> None:
        """Close the streams. Segments not yet acknowledged may be lost, so call `flush` first."""
        with self._changed:
            self._closed = True
            streams = list(self._streams)
            for stream in streams:
                stream.is_closed = True
            self._changed.notify_all()
        for stream in streams:
            stream.connection.channel.close()
        for stream in streams:
            stream.join()


def _describe_credit(items: int | None) -> str:
    return "unknown" if items is None else "unlimited" if items >= UNLIMITED_CREDIT else f"{items:,} items"
