"""Draws in hand: what was asked of each shard, and the stream that asks and hears the answer.

A message carries one plan's part of a shard, and a plan several batches, so that small batches do not each pay for a
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
from replay.wire.connection import ShardConnection
from rl.errors import RunFault


@dataclass
class Part:
    """One shard's part of a plan: its items of each batch, all 0 where only its counts are asked for."""

    counts: list[int]
    share: float  # of each batch, the proportion with which it was drawn
    reply: pb.SampleReply | None = None
    lost: bool = False

    @property
    def whole(self) -> bool:
        """Whether the items asked for are there."""
        return self.reply is not None and len(self.reply.keys) == 8 * sum(self.counts)


@dataclass
class Plan:
    """Batches in hand: their parts by shard."""

    parts: dict[int, Part]
    event: threading.Event = field(default_factory=threading.Event)

    @property
    def items(self) -> int:
        """Items of all its batches."""
        return sum(sum(part.counts) for part in self.parts.values())

    def settle(self) -> None:
        """Set the event once every part has its reply or is lost."""
        if all(part.reply is not None or part.lost for part in self.parts.values()):
            self.event.set()


class DrawStream:
    """The Sample stream to one shard, reopened when it breaks, and what is known of the shard.

    ``inserted`` and ``sampled`` count from when the shard was met, and go on where it is restarted and its own counts fall
    back; ``granted`` is in the same unit.
    """

    def __init__(self, index: int, link: ShardConnection) -> None:
        self.index, self.link = index, link
        self.counts = pb.Counts()  # as last heard
        self.met = False
        self._met_with = 0  # items that it held when it was met
        self.inserted = self.sampled = self.granted = 0
        self.reached = self.left = False
        self.failure: RunFault | None = None
        self._before = (0, 0)  # inserted and sampled here, less the shard's own counts
        self._lock = threading.Lock()
        self._waiting: deque[tuple[Plan, Part]] = deque()  # in the order of the requests sent
        self._requests: queue.SimpleQueue[pb.SampleRequest | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"sampler-{link.address}", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the shard may still answer."""
        return not (self.left or self.link.gone)

    def ask(self, plan: Plan, part: Part, limiter: pb.Limiter | None) -> None:
        """Send a request; its reply will settle ``part``."""
        with self._lock:
            if not self.alive:
                part.lost = True
                plan.settle()
                return
            self._waiting.append((plan, part))
            credit = max(0, self.granted - self._before[0]) if self.reached else 0  # it may have been restarted
            self._requests.put(pb.SampleRequest(counts=part.counts, insert_credit=credit, limiter=limiter))

    def meet(self) -> None:
        """Count from here on, with nothing granted; of a shard that has left nothing counts."""
        with self._lock:
            if self.met:
                self._meet(self.counts)
            if not self.alive:
                self._met_with = 0

    def take_met(self) -> int:
        """Items that the shard held when it was met, told once."""
        with self._lock:
            held, self._met_with = self._met_with, 0
        return held

    def _meet(self, counts: pb.Counts) -> None:
        self.met, self._met_with = True, counts.stored
        self.inserted = self.sampled = self.granted = 0
        self._before = (-counts.inserted, -counts.sampled)

    def _take(self, counts: pb.Counts) -> None:
        if not self.met:
            self._meet(counts)
        elif counts.inserted < self.counts.inserted or counts.sampled < self.counts.sampled:  # it was restarted
            self._before = (self.inserted - counts.inserted, self.sampled - counts.sampled)
        self.counts = counts
        self.inserted, self.sampled = counts.inserted + self._before[0], counts.sampled + self._before[1]
        self.reached = True

    def _run(self) -> None:
        while self.alive:
            requests = self._requests
            try:
                for reply in self.link.stub.Sample(iter(requests.get, None), metadata=self.link.metadata):
                    self.link.answered()
                    self._settle(reply)
            except grpc.RpcError as error:
                self._broken(error, requests)
            except ValueError:  # the channel was closed under us
                break
        self._lose_all()  # also what was asked for while it paused

    def _settle(self, reply: pb.SampleReply) -> None:
        with self._lock:
            plan, part = self._waiting.popleft()
            self._take(reply.counts)
        part.reply = reply
        plan.settle()

    def _broken(self, error: grpc.RpcError, requests: queue.SimpleQueue[pb.SampleRequest | None]) -> None:
        pause = 0.0
        try:
            if self.alive:
                pause = self.link.failed(error)
        except RunFault as fault:
            self.failure = fault
            self.link.gone = True
        self._lose_all()
        requests.put(None)  # ends the old stream's sender
        if self.alive:
            time.sleep(pause)

    def _lose_all(self) -> None:
        with self._lock:
            self._requests = queue.SimpleQueue()
            lost, self._waiting = list(self._waiting), deque()
            self.reached = False
        for plan, part in lost:
            part.lost = True
            plan.settle()

    def leave(self) -> None:
        """End the stream; what was asked for is lost."""
        self.left = True
        self._requests.put(None)
        self.link.channel.close()

    def join(self) -> None:
        """Wait for the stream's end."""
        self._thread.join(timeout=5.0)
