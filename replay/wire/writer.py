"""The writer: sends segments to shards over gRPC, with a bounded number in flight; each segment is stored exactly once.

Each shard has one stream (`inserts.py`), which sends the unacknowledged segments of a broken call again. Segments move
to other shards only when their shard is gone (`ShardConnection`), or replies that it stores nothing more. A shard that
is gone gets segments again once it answers. Shards may join and leave: segments in flight to a shard that the writer
leaves are still delivered.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Mapping, Sequence

from protos import replay_pb2 as pb
from protos.codec import insert_request, pack_segment
from protos.types import UNLIMITED_CREDIT, PackedSegment
from replay.security import UNPROTECTED, Access
from replay.wire.connection import ShardConnection, Traffic, all_gone
from replay.wire.inserts import InsertStream, OnStored
from rl.errors import BadInput, RunFault, Unreachable
from rl.types import Segment

WINDOW = 4  # segments in flight to one shard


class Writer:
    """`SegmentSink` over gRPC. Pickling keeps only the arguments, without ``on_stored``.

        writer = Writer(addresses)
        writer.write(segment)
        writer.flush(timeout=60.0)  # wait until all segments are stored
        writer.close()

    ``on_stored`` is called with each segment that a shard has acknowledged, in the thread of its stream; it must be
    short. Raises BadInput if ``addresses`` is empty.
    """

    def __init__(
        self,
        addresses: list[str],
        give_up_after: float = 60.0,
        write_timeout: float = 300.0,
        access: Access = UNPROTECTED,
        on_stored: OnStored | None = None,
    ) -> None:
        self.addresses, self._give_up_after, self._write_timeout = list(addresses), give_up_after, write_timeout
        self._access, self._on_stored = access, on_stored
        self.name = uuid.uuid4().hex  # the origin of its segments; each stream has a writer name of its own
        self._changed = threading.Condition()
        self._sent = Traffic()  # also on streams that are closed
        self._streams: list[InsertStream] = []
        self._closed = False
        self.set_shards(addresses)
        self._next_index = hash(self.name) % len(addresses)  # so that writers start at different shards

    def __reduce__(self) -> tuple[type[Writer], tuple[list[str], float, float, Access]]:
        return Writer, (self.addresses, self._give_up_after, self._write_timeout, self._access)

    def set_shards(self, addresses: Sequence[str], timeout: float = 0.0) -> None:
        """Replace the set of shards. Segments in flight to the other shards are still delivered. Safe from any thread.

        Shards in ``addresses`` that were counted as gone are tried again at once.

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
                if stream.connection.address in addresses:
                    stream.take_back()
                stream.is_leaving = stream.is_over or stream.connection.address not in addresses
            connected = {stream.connection.address for stream in self._streams if not stream.is_leaving}
            self._streams += [
                InsertStream(connection, self._changed, self._sent, self._on_stored)
                for connection in (
                    ShardConnection(a, self._give_up_after, self._access) for a in addresses if a not in connected
                )
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
    def in_use(self) -> list[str]:
        """Addresses of the shards that may get new segments, or have segments in flight."""
        with self._changed:
            self._reassign_and_close()
            return [s.connection.address for s in self._streams if s.accepts_segments or s.queue]

    def silent_shards(self, seconds: float) -> Mapping[str, str]:
        """The last errors of the shards that have not answered for ``seconds``, by address."""
        with self._changed:
            connections = [s.connection for s in self._streams if not s.is_leaving]
        return {c.address: c.last_error for c in connections if c.silent_seconds >= seconds}

    @property
    def _acknowledged(self) -> int:
        return sum(stream.acknowledged for stream in self._streams)

    def stats(self) -> Mapping[str, float]:
        """Return what was sent to all shards, by name: ``items_sent`` and ``bytes_sent``.

        An item that was sent twice counts twice. Bytes are those of messages (`Traffic`).
        """
        return {"items_sent": float(self._sent.items), "bytes_sent": float(self._sent.bytes)}

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
                    raise Unreachable(
                        f"replay acknowledged no segment for {self._write_timeout:g} s: {self._describe_streams()}"
                    )
                self._raise_failure()
            stream.enqueue(request)

    def _choose_stream(self, items: int) -> InsertStream | None:
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
        """Move the segments of gone shards to another shard, and close the streams that are left."""
        alive = [stream for stream in self._streams if stream.accepts_segments]
        for stream in self._streams:
            while stream.is_over and stream.queue and alive and stream.failure is None:
                alive[0].enqueue(stream.queue.popleft())
            if stream.is_leaving and not stream.queue:
                stream.is_closed = True
                self._changed.notify_all()  # wakes its thread if it waits for a segment
                stream.connection.close()
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
            stream.connection.close()
        for stream in streams:
            stream.join()


def _describe_credit(items: int | None) -> str:
    return "unknown" if items is None else "unlimited" if items >= UNLIMITED_CREDIT else f"{items:,} items"
