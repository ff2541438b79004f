"""Draws in hand: what was asked of each shard, and the stream that asks and hears the answer.

A message carries one shard's part of a request, and a request several batches, so that small batches do not each pay for a
message.
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

    counts: list[int]  # items of each batch; all 0, or none, where the shard's counts alone are asked for
    share: float  # of each batch, the proportion with which it was drawn
    reply: pb.SampleReply | None = None
    lost: bool = False

    @property
    def whole(self) -> bool:
        """Whether the items asked for are there."""
        return self.reply is not None and items_of_reply(self.reply) == sum(self.counts)


@dataclass
class DrawRequest:
    """Some batches that are asked for together: one message to each shard that they are drawn from, by its index.

    It is settled as a whole, because a batch is there once every shard has sent its items of it.
    """

    shards: dict[int, ShardRequest]
    settled: threading.Event = field(default_factory=threading.Event)

    @property
    def items(self) -> int:
        """Items of all its batches."""
        return sum(sum(shard.counts) for shard in self.shards.values())

    def settle(self) -> None:
        """Set the event once every shard has replied or is lost."""
        if all(shard.reply is not None or shard.lost for shard in self.shards.values()):
            self.settled.set()


class DrawStream:
    """The Sample stream to one shard, reopened when it breaks. It keeps the shard's counts and records them."""

    def __init__(self, index: int, connection: ShardConnection, account: ShardAccount) -> None:
        self.index, self.connection, self.account = index, connection, account
        self.counts = Counts()  # as last heard
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
        """Send this shard's part of ``request``; its reply will settle it."""
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
            except ValueError:  # the channel was closed under us
                break
        self._lose_all()  # also what was asked for while it paused

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
        """End the stream; what was asked for is lost."""
        self.left = True
        self.account.close()
        self._requests.put(None)
        self.connection.channel.close()

    def join(self) -> None:
        """Wait for the stream's end."""
        self._thread.join(timeout=5.0)
