"""The stream to each shard that carries a writer's segments and the shard's acknowledgements.

It has two threads: a gRPC thread takes segments from `InsertStream._outgoing` and sends them, the stream's own thread
reads the replies. When a call breaks, its unacknowledged segments are sent again, in order, on the next call to the
same shard, which ignores those that it has already stored. While the shard is gone, the second thread calls it from
time to time; once it answers, the stream goes on.
"""

from __future__ import annotations

import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterator

import grpc

from protos import replay_pb2 as pb
from protos.codec import count_request_items, segment_from_message
from protos.types import PackedSegment
from replay.wire.connection import ShardConnection, Traffic
from rl.errors import RunFault

OnStored = Callable[[str, PackedSegment, str], None]  # origin, segment, and the address of the shard that has stored it


class InsertStream:
    """The Insert stream to one shard, with the queue of segments that it has not acknowledged; reopened when it breaks.

    ``changed`` is the `Writer`'s condition: it guards the state of all streams, and ``sent``, the count of what they
    send. ``on_stored`` is called with each segment that is acknowledged.
    """

    def __init__(
        self, connection: ShardConnection, changed: threading.Condition, sent: Traffic, on_stored: OnStored | None
    ) -> None:
        self.connection, self._changed, self._traffic = connection, changed, sent
        self._on_stored = on_stored
        # A new writer name for each stream: a shard that leaves and joins again still knows the old sequence numbers.
        self._name = uuid.uuid4().hex
        self.queue: deque[pb.InsertRequest] = deque()  # not yet acknowledged, in order
        self.credit_left: int | None = None  # unused credit in items, from the last reply; None before the first
        self._sequence = 0
        self._sent = 0  # how many of `queue` were sent on the current call
        self._call = 0  # number of the current Insert call
        self.acknowledged = 0  # segments, since the stream was created
        self.is_closed = self.is_leaving = False
        self._shard_leaves = False  # it has replied that it stores nothing more
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
    def is_over(self) -> bool:
        """Whether the shard is gone or stores nothing more: what is still queued must go to another one."""
        return self.connection.is_gone or self._shard_leaves

    @property
    def accepts_segments(self) -> bool:
        """Whether new segments may be sent to this shard."""
        return not (self.is_leaving or self.is_over)

    def _outgoing(self, call: int) -> Iterator[pb.InsertRequest]:
        while True:
            with self._changed:
                while self._sent >= len(self.queue) and not self.is_closed and call == self._call:
                    self._changed.wait(timeout=1.0)
                if call != self._call or (self.is_closed and self._sent >= len(self.queue)):
                    return
                request = self.queue[self._sent]
                self._sent += 1
                self._traffic.items += count_request_items(request)
                self._traffic.bytes += request.ByteSize()  # about 2 us; packing the segment takes 300
            yield request

    def _run(self) -> None:
        while not self.is_closed and self.failure is None:
            if self.connection.is_gone:
                if self.connection.answers_again():
                    self.take_back()
                continue
            with self._changed:
                self._call += 1
                self._sent = 0
                call = self._call
            try:
                replies = self.connection.stub.Insert(self._outgoing(call), metadata=self.connection.metadata)
                for reply in replies:
                    self._acknowledge(reply)
                    if reply.leaving:
                        replies.cancel()
                        return
            except grpc.RpcError as error:
                self._handle_error(error)
            except ValueError:  # the channel is closed
                return

    def take_back(self) -> None:
        """Send segments to a shard again that was gone.

        If the segments in flight were not moved to other shards meanwhile, they are sent again under their old numbers,
        so that those that the shard has stored are not stored twice.
        """
        with self._changed:
            if self.failure is None and self.connection.is_gone:
                self.credit_left = None
                if not self.queue:
                    self._restart_numbering()
                self.connection.take_back()
                self._changed.notify_all()

    def _acknowledge(self, reply: pb.InsertReply) -> None:
        self.connection.record_answer()
        with self._changed:
            while self.queue and self.queue[0].sequence <= reply.acknowledged:
                stored = self.queue.popleft()
                if self._on_stored is not None:
                    segment = segment_from_message(stored.segment)
                    self._on_stored(stored.origin, segment, self.connection.address)
                self._sent = max(
                    0, self._sent - 1
                )  # a duplicate is acknowledged together with later ones not yet resent
                self.acknowledged += 1
            self.credit_left = reply.credit_left
            if reply.leaving:
                self._shard_leaves = True
                self._call += 1  # ends `_outgoing`
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
                self._changed.wait_for(lambda: self.is_closed or self.connection.is_gone, timeout=backoff)

    def _restart_numbering(self) -> None:
        """Continue under a new name, with sequence numbers from 1.

        The shard lacks segments before those in flight: it was restarted and has lost what it had acknowledged, or they
        were moved to another one while it was gone. So it has none of the segments in flight either, and they can be
        sent again under new numbers without being stored twice.
        """
        with self._changed:
            self._name = uuid.uuid4().hex
            for sequence, request in enumerate(self.queue, start=1):
                request.writer, request.sequence = self._name, sequence
            self._sequence = len(self.queue)

    def join(self) -> None:
        """Wait up to 5 seconds for the stream's thread to end."""
        self._thread.join(timeout=5.0)
