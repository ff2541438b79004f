"""Emptying a shard that is to leave into the others."""

from __future__ import annotations

from collections.abc import Callable

from protos import replay_pb2 as pb
from protos.codec import segment_from_message
from protos.types import InvalidMessage
from replay.wire.connection import ShardConnection
from replay.wire.writer import Writer
from rl.errors import RunFault

SEGMENTS = 64  # handed over in one reply
TIMEOUT = 60.0  # seconds that a shard may take to hand over or to take in so many


def drain(
    connection: ShardConnection, writer: Writer, say: Callable[[int, int], None] = lambda moved, left: None
) -> int:
    """Move every segment of the shard at ``connection`` into ``writer``'s shards; returns the items moved.

    The shard forgets a segment once another has acknowledged it, so a drain that is broken off loses nothing; the few
    segments under way then are in both places. Writers must have left the shard before. ``say`` is told the items moved
    and left. Raises RunFault.
    """
    taken = moved = 0
    while True:
        reply = connection.ask("Drain", pb.DrainRequest(taken=taken, segments=SEGMENTS), TIMEOUT)
        if not reply.segments:
            return moved
        try:
            for request in reply.segments:
                segment = segment_from_message(request.segment)  # the shard that takes it in checks the rest
                writer.transfer(segment, request.origin)
                moved += segment.items
            writer.flush(TIMEOUT)
        except InvalidMessage as error:
            raise RunFault(f"replay shard {connection.address} sent a broken reply: {error}") from error
        except TimeoutError as error:
            raise RunFault(f"draining replay shard {connection.address}: {error}") from error
        taken = reply.next
        say(moved, reply.left)
