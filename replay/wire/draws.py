"""Requests for draws, and the stream to each shard that carries requests and replies.

A `DrawRequest` covers several batches, so that small batches share a message. Each shard gets one message with its part
of the request, a `ShardRequest`.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from dataclasses import dataclass, field

import grpc

from protos import replay_pb2 as pb
from protos.codec import count_reply_items, counts_from_message, sample_request
from protos.types import Counts, LimiterState
from replay.credit import ShardAccount
from replay.wire.connection import ShardConnection, Traffic
from rl.errors import RunFault

SAMPLE = f"/{pb.DESCRIPTOR.services_by_name['Replay'].full_name}/Sample"  # the name of the method in gRPC


@dataclass
class ShardRequest:
    """One shard's part of a `DrawRequest`, and the shard's reply."""

    counts: list[int]  # items to draw for each batch; all 0, or empty, to ask only for the shard's counts
    share: float  # probability with which this shard was chosen for an item of a batch
    reply: pb.SampleReply | None = None
    is_lost: bool = False  # no reply will come: the stream broke, or the shard has left or is gone

    @property
    def is_complete(self) -> bool:
        """Whether the shard has replied with all requested items."""
        return self.reply is not None and count_reply_items(self.reply) == sum(self.counts)


@dataclass
class DrawRequest:
    """One or more batches that are requested together, with one message to each shard that they are drawn from.

    The event ``done`` is set once every shard has replied or is lost.
    """

    shards: dict[int, ShardRequest]  # by the index of the shard's stream
    done: threading.Event = field(default_factory=threading.Event)

    @property
    def items(self) -> int:
        """Number of items in all batches."""
        return sum(sum(shard.counts) for shard in self.shards.values())

    def update_done(self) -> None:
        """Set ``done`` if every shard has replied or is lost."""
        if all(shard.reply is not None or shard.is_lost for shard in self.shards.values()):
            self.done.set()


class DrawStream:
    """The Sample stream to one shard, reopened when it breaks.

        stream = DrawStream(index, connection, account)
        stream.send(request, request.shards[index], limiter)
        request.done.wait()  # the reply is now in request.shards[index]
        stream.leave()
        stream.join()

    Each reply's counts are recorded in ``account``, the shard's account in the `CreditLedger`. While the shard is gone,
    the stream's thread calls it from time to time; once it answers, the stream and the account go on.
    """

    def __init__(self, index: int, connection: ShardConnection, account: ShardAccount) -> None:
        self.index, self.connection, self.account = index, connection, account
        self.counts = Counts()  # from the last reply
        self.received = Traffic()  # replies, also those without items
        self.has_left = False
        # The stub's method, but it counts bytes: a parsed reply would have to be serialized again to know its own.
        self._sample = connection.channel.stream_stream(
            SAMPLE, request_serializer=pb.SampleRequest.SerializeToString, response_deserializer=self._parse
        )
        self.failure: RunFault | None = None  # set if the shard rejects a request; the sampler raises it
        self._lock = threading.Lock()
        self._unanswered: deque[tuple[DrawRequest, ShardRequest]] = deque()  # in the order of the requests sent
        self._requests: queue.SimpleQueue[pb.SampleRequest | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"sampler-{connection.address}", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether the shard may still reply."""
        return not (self.has_left or self.connection.is_gone)

    def send(self, request: DrawRequest, part: ShardRequest, limiter: LimiterState | None) -> None:
        """Send ``part``, this shard's part of ``request``, without waiting for the reply.

        When the reply arrives it is stored in ``part``. If the stream breaks first, ``part.is_lost`` is set.
        """
        with self._lock:
            if not self.is_alive:
                part.is_lost = True
                request.update_done()
                return
            self._unanswered.append((request, part))
            self._requests.put(sample_request(part.counts, self.account.credit(), limiter))

    def _run(self) -> None:
        while not self.has_left and self.failure is None:
            if self.connection.is_gone:
                if self.connection.answers_again():
                    self.take_back()
                continue
            requests = self._requests
            try:
                for reply in self._sample(iter(requests.get, None), metadata=self.connection.metadata):
                    self.connection.record_answer()
                    self._handle_reply(reply)
            except grpc.RpcError as error:
                self._handle_error(error, requests)
            except ValueError:  # the channel was closed by `leave`
                break
        self._mark_all_lost()  # including requests sent during a backoff

    def _parse(self, data: bytes) -> pb.SampleReply:
        self.received.bytes += len(data)
        return pb.SampleReply.FromString(data)

    def _handle_reply(self, reply: pb.SampleReply) -> None:
        counts = counts_from_message(reply.counts)
        self.received.items += count_reply_items(reply)
        with self._lock:
            request, part = self._unanswered.popleft()
            self.counts = counts
            self.account.record(counts.inserted, counts.sampled, counts.stored)
        part.reply = reply
        request.update_done()

    def _handle_error(self, error: grpc.RpcError, requests: queue.SimpleQueue[pb.SampleRequest | None]) -> None:
        backoff = 0.0
        try:
            if self.is_alive:
                backoff = self.connection.record_failure(error)
        except RunFault as fault:
            self.failure = fault
            self.connection.is_gone = True
        with self._lock:  # `take_back` may be called by another thread
            if not self.is_alive:
                self.account.close()
        self._mark_all_lost()
        requests.put(None)  # ends the request iterator of the broken stream
        if self.is_alive:
            time.sleep(backoff)

    def _mark_all_lost(self) -> None:
        with self._lock:
            self._requests = queue.SimpleQueue()
            lost, self._unanswered = list(self._unanswered), deque()
            self.account.mark_unreachable()
        for request, part in lost:
            part.is_lost = True
            request.update_done()

    def take_back(self) -> None:
        """Draw from a shard again that was gone. Safe from any thread."""
        with self._lock:
            if not self.has_left and self.failure is None and self.connection.is_gone:
                self.account.reopen()
                self.connection.take_back()

    def leave(self) -> None:
        """End the stream; requests without a reply are marked lost."""
        with self._lock:
            self.has_left = True
            self.account.close()
        self._requests.put(None)
        self.connection.close()

    def join(self) -> None:
        """Wait up to 5 seconds for the stream's thread to end."""
        self._thread.join(timeout=5.0)
