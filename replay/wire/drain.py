"""Draining: moving the content of one shard into other shards before it is removed."""

from __future__ import annotations

from collections.abc import Callable

from replay.wire.connection import ShardConnection
from replay.wire.writer import Writer
from rl.errors import RunFault

SEGMENTS = 64  # in one reply
TIMEOUT = 60.0  # seconds that a shard may take to return or to store that many


def drain(
    connection: ShardConnection, writer: Writer, on_progress: Callable[[int, int], None] = lambda moved, left: None
) -> int:
    """Move all segments of the shard at ``connection`` into ``writer``'s shards; returns the number of items moved.

    The shard removes a segment only after another shard has acknowledged it. So an interrupted drain loses nothing, but
    may leave up to SEGMENTS segments in both places. First make all writers stop writing to the shard.
    ``on_progress(moved, left)`` is called after each reply with the items moved so far and those left. Raises RunFault
    if a shard does not answer or store the segments in time.
    """
    taken = moved = 0
    while (drained := connection.drain(taken, SEGMENTS, TIMEOUT)).segments:
        for origin, segment in drained.segments:  # the receiving shard validates it
            writer.transfer(segment, origin)
            moved += segment.items
        try:
            writer.flush(TIMEOUT)
        except TimeoutError as error:
            raise RunFault(f"draining replay shard {connection.address}: {error}") from error
        taken = drained.next
        on_progress(moved, drained.left)
    return moved
