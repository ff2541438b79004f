"""A log of what replay has acknowledged to the actors, with which `qfleet bench chaos` checks what replay has stored.

It exists only if the environment variable DIRECTORY names a folder: each actor process then writes a file there.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from protos.types import PackedSegment

DIRECTORY = "QFLEET_ACKNOWLEDGED"  # environment variable of the run


class Acknowledged(NamedTuple):
    """A segment that a shard has acknowledged, as one line of the log. Its items are consecutive steps."""

    time: float  # Unix time
    origin: str  # the writer that played the episode
    episode: int
    first: int  # step of the first item within the episode
    items: int
    address: str  # host:port of the shard
    version: int  # the newest of the weights that chose its actions

    @classmethod
    def read(cls, line: str) -> Acknowledged:
        """Inverse of `str`. Raises ValueError if the line was cut short."""
        at, origin, episode, first, items, address, version = line.removesuffix(";").split()
        if not line.endswith(";"):
            raise ValueError(f"not a whole line: {line!r}")
        return cls(float(at), origin, int(episode), int(first), int(items), address, int(version))

    def __str__(self) -> str:
        return f"{self.time:.6f} {' '.join(map(str, self[1:]))};"


def log_here(index: int) -> Callable[[str, PackedSegment, str], None] | None:
    """The `on_stored` of the writer of actor ``index``, which appends a line to its log; None if there is no log.

    A line is with the kernel before the next segment is written, so it survives the death of the process.
    """
    if not (folder := os.environ.get(DIRECTORY)):
        return None
    file = (Path(folder) / f"actor-{index}-{os.getpid()}.log").open("a", buffering=1)

    def log(origin: str, segment: PackedSegment, address: str) -> None:
        first = segment.first_step + int(segment.item_step[0])
        items, version = segment.items, int(segment.versions.max())
        file.write(f"{Acknowledged(time.time(), origin, segment.episode_id, first, items, address, version)}\n")

    return log
