"""Builders for tests of snapshots: fill a shard, write snapshots, restore them and read their content."""

from __future__ import annotations

import asyncio
import contextlib
import json

from protos import codec
from replay.store.selectors import SelectorConfig
from replay.store.shard import Shard
from replay.store.snapshot_files import LOCK, MANIFEST, PREVIOUS
from replay.store.snapshots import Snapshots
from tests.conftest import FRAMES, make_segment

CAPACITY = 60


def new_shard(capacity=CAPACITY, spec=FRAMES, kind="prioritized"):
    return Shard(capacity, spec, SelectorConfig(kind), limited=False)


def fill(shard, rng, segments, writer="w", items=4):
    for _ in range(segments):
        sequence = shard.get_state()["writers"].get(writer, 0) + 1
        segment = make_segment(rng, shard.spec, items, episode=sequence, td_abs=rng.random(items))
        shard.insert(writer, sequence, codec.pack_segment(segment))


def restored(directory, shard):
    """Restore the snapshot in `directory` into `shard`; returns `shard`."""
    with contextlib.closing(Snapshots(directory, shard)):
        shard.check_valid()
        return shard


def written(directory, shard, *steps):
    """Write a snapshot of `shard`, and another one after each of `steps`; returns the statistics of each."""

    async def write():
        found = []
        with contextlib.closing(Snapshots(directory, shard)) as snapshots:
            for step in (lambda: None, *steps):
                step()
                found.append(await snapshots.write())
        return found

    return asyncio.run(write())


def content(shard):
    return [(s.writer, s.first_key, codec.segment_to_message(s.segment)) for s in shard.storage.segments()]


def files(directory):
    return {f.name for f in directory.iterdir()} - {LOCK, MANIFEST, PREVIOUS}


def _manifest(directory):
    return json.loads((directory / MANIFEST).read_text())["snapshot"]


def chunks_of(directory):
    """The names of the chunks of the last snapshot."""
    return {name for name in _manifest(directory)["files"] if name.startswith("segments")}


def items_held(directory):
    return _manifest(directory)["state"]["end_key"]
