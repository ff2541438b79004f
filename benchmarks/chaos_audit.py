"""The audit of `qfleet bench chaos`: is what replay has acknowledged stored, and each item once?

An item is known by (origin, episode, step): the writer that played it, its episode, and the step at which it starts.
Each actor process logs what a shard has acknowledged (`qfleet/cluster/acknowledged.py`); what is stored is read from
the last snapshots, which the shards write when the run ends.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from qfleet.cluster.acknowledged import Acknowledged
from replay.store.snapshot_files import MANIFEST, open_snapshot, read_manifest
from rl.errors import RunFault


class Death(NamedTuple):
    """A shard was killed or frozen, and restored a snapshot."""

    address: str  # host:port
    restored: float  # Unix time of the snapshot
    until: float  # when the shard's next process was seen


class Stored(NamedTuple):
    """Consecutive items of an episode that are stored in one segment."""

    origin: str
    episode: int
    first: int  # step of the first item
    items: int


class Audit(NamedTuple):
    """Counts of items.

    lost: acknowledged, and neither stored nor explained by a death. lost_within_snapshot_bound: acknowledged by a shard
    that died later, after the snapshot that its next process restored. duplicates: stored more than once; an item that
    is stored three times counts twice.
    """

    acknowledged: int
    stored: int
    lost: int
    lost_within_snapshot_bound: int
    duplicates: int


def compare(acknowledged: Iterable[Acknowledged], stored: Iterable[Stored], deaths: Sequence[Death]) -> Audit:
    """Compare what was acknowledged with what is stored."""
    copies = Counter((s.origin, s.episode, step) for s in stored for step in range(s.first, s.first + s.items))
    total = lost = within_bound = 0
    for a in acknowledged:
        total += a.items
        missing = sum((a.origin, a.episode, step) not in copies for step in range(a.first, a.first + a.items))
        if any(d.address == a.address and d.restored < a.time <= d.until for d in deaths):
            within_bound += missing
        else:
            lost += missing
    return Audit(total, copies.total(), lost, within_bound, copies.total() - len(copies))


def read_acknowledged(folder: Path) -> list[Acknowledged]:
    """All lines of the logs in ``folder``; the last one of a process that was killed may be cut short."""
    found = []
    for file in sorted(folder.glob("actor-*.log")):
        for line in file.read_text().splitlines():
            with contextlib.suppress(ValueError):
                found.append(Acknowledged.read(line))
    return found


def read_stored(run: Path) -> list[Stored]:
    """What the last snapshots of the run's shards hold.

    Raises BadInput if one cannot be read, RunFault if a shard has evicted items: then it is not known what it had.
    """
    found = []
    for folder in sorted((run / "replay").glob("shard-*")):
        state = read_manifest(folder / MANIFEST)["state"]
        if state and state["first_key"]:
            raise RunFault(f"{folder} has evicted {state['first_key']:,} items: the audit needs a larger capacity")
        for s in open_snapshot(folder)[1]:
            first = s.segment.first_step + int(s.segment.item_step[0])
            found.append(Stored(s.writer, s.segment.episode_id, first, s.segment.items))
    return found
