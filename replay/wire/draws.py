"""Requests for draws: what each shard was asked for, and the stream that carries requests and replies.

A message carries one shard's part of a request. A request covers several batches, so that small batches do not each
cost a message.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from dataclasses import dataclass, field

import grpc

from protos import replay_pb2 as pb
from protos.codec import counts_from_message, items_of_reply, sample_request
from protos.types import Counts, LimiterState
from replay.credit import ShardAccount
from replay.wire.connection import ShardConnection
from rl.errors import RunFault


@dataclass
class ShardRequest:
    """What one shard is asked for in a message, and its reply."""

    counts: list[int]  # items of each batch; all 0, or empty, to ask only for the shard's counts
    share: float  # of each batch: the probability with which the shard was chosen for an item
    reply: pb.SampleReply | None = None
    lost: bool = False

    @property
    def whole(self) -> bool:
        """Whether the reply is there and holds all items asked for."""
        return self.reply is not None and items_of_reply(self.reply) == sum(self.counts)


@dataclass
class DrawRequest:
    """Some batches that are asked for together: one message to each shard that they are drawn from, by its index.

    It is settled as a whole: a batch is complete once every shard has sent its items of it.
    """

    shards: dict[int, ShardRequest]
    settled: threading.Event = field(default_factory=threading.Event)

    @property
    def items(self) -> int:
        """Number of items in all its batches."""
        return sum(sum(shard.counts) for shard in self.shards.values())

    def settle(self) -> None:
        """Set the event ``settled`` once every shard has replied or is lost."""
        if all(shard.reply is not None or shard.lost for shard in self.shards.values()):
            self.settled.set()


class DrawStream:
    """The Sample stream to one shard, reopened when it breaks.

        stream = DrawStream(index, connection, account)
        stream.ask(request, request.shards[index], limiter)
        request.settled.wait()  # then the reply is in the request; at the end `leave` and `join`

    It records the shard's counts in its ``account`` of the ledger.
    """

    def __init__(self, index: int, connection: ShardConnection, account: ShardAccount) -> None:
        self.index, self.connection, self.account = index, connection, account
        self.counts = Counts()  # by its last reply
        self.left = False
        self.failure: RunFault | None = None
        self._lock = threading.Lock()
        self._waiting: deque[tuple[DrawRequest, ShardRequest]] = deque()  # in the order of the requests sent
        self._requests: queue.SimpleQueue[pb.SampleRequest | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"sampler-{connection.address}", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the shard may still answer."""
        return not (self.left or self.connection.gone)

    def ask(self, request: DrawRequest, own: ShardRequest, limiter: LimiterState | None) -> None:
        """Send this shard's part ``own`` of ``request``; the reply, or the loss of the stream, settles it."""
        with self._lock:
            if not self.alive:
                own.lost = True
                request.settle()
                return
            self._waiting.append((request, own))
            self._requests.put(sample_request(own.counts, self.account.credit(), limiter))

    def _run(self) -> None:
        while self.alive:
            requests = self._requests
            try:
                stub, metadata = self.connection.stub, self.connection.metadata
                for reply in stub.Sample(iter(requests.get, None), metadata=metadata):
                    self.connection.answered()
                    self._settle(reply)
            except grpc.RpcError as error:
                self._broken(error, requests)
            except ValueError:  # the channel was closed by `leave`
                break
        self._lose_all()  # also requests made during a pause

    def _settle(self, reply: pb.SampleReply) -> None:
        counts = counts_from_message(reply.counts)
        with self._lock:
            request, own = self._waiting.popleft()
            self.counts = counts
            self.account.record(counts.inserted, counts.sampled, counts.stored)
        own.reply = reply
        request.settle()

    def _broken(self, error: grpc.RpcError, requests: queue.SimpleQueue[pb.SampleRequest | None]) -> None:
        pause = 0.0
        try:
            if self.alive:
                pause = self.connection.failed(error)
        except RunFault as fault:
            self.failure = fault
            self.connection.gone = True
        if not self.alive:
            self.account.close()
        self._lose_all()
        requests.put(None)  # ends the old stream's sender
        if self.alive:
            time.sleep(pause)

    def _lose_all(self) -> None:
        with self._lock:
            self._requests = queue.SimpleQueue()
            lost, self._waiting = list(self._waiting), deque()
            self.account.lose()
        for request, own in lost:
            own.lost = True
            request.settle()

    def leave(self) -> None:
        """End the stream; requests without a reply are lost."""
        self.left = True
        self.account.close()
        self._requests.put(None)
        self.connection.channel.close()

    def join(self) -> None:
        """Wait up to 5 seconds for the stream's thread to end."""
        self._thread.join(timeout=5.0)
