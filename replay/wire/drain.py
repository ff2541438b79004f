"""Draining: moving the content of a shard that leaves into the other shards."""

from __future__ import annotations

from collections.abc import Callable

from replay.wire.connection import ShardConnection
from replay.wire.writer import Writer
from rl.errors import RunFault

SEGMENTS = 64  # handed over in one reply
TIMEOUT = 60.0  # seconds that a shard may take to hand over or to store so many


def drain(
    connection: ShardConnection, writer: Writer, say: Callable[[int, int], None] = lambda moved, left: None
) -> int:
    """Move every segment of the shard at ``connection`` into ``writer``'s shards; returns the number of items moved.

    The shard removes a segment only after another has acknowledged it, so an interrupted drain loses nothing; the few
    segments in flight are then in both places. Writers must have left the shard before. ``say`` is called with the
    items moved and left. Raises RunFault when a shard does not answer or store them in time.
    """
    taken = moved = 0
    while (drained := connection.drain(taken, SEGMENTS, TIMEOUT)).segments:
        for origin, segment in drained.segments:  # the shard that stores it checks it
            writer.transfer(segment, origin)
            moved += segment.items
        try:
            writer.flush(TIMEOUT)
        except TimeoutError as error:
            raise RunFault(f"draining replay shard {connection.address}: {error}") from error
        taken = drained.next
        say(moved, drained.left)
    return moved
