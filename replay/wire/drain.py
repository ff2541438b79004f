"""Emptying a shard that is to leave into the others."""

from __future__ import annotations

from collections.abc import Callable

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
    while (drained := connection.drain(taken, SEGMENTS, TIMEOUT)).segments:
        for origin, segment in drained.segments:  # the shard that takes it in checks it
            writer.transfer(segment, origin)
            moved += segment.items
        try:
            writer.flush(TIMEOUT)
        except TimeoutError as error:
            raise RunFault(f"draining replay shard {connection.address}: {error}") from error
        taken = drained.next
        say(moved, drained.left)
    return moved
