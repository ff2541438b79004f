"""Snapshots: a shard's content on disk, written while it serves.

Segments never change and are evicted first in, first out. So a snapshot writes only the segments that the one before it
lacks, in chunks of about CHUNK_BYTES, and lists the older chunks again. What does change is small and written anew: the
items' |TD error|, the counts and the writers' sequences. `snapshot_files.py` defines the format.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from protos.types import SnapshotWritten
from replay.store.shard import Shard
from replay.store.snapshot_files import (
    LOCK,
    MANIFEST,
    Files,
    chunks,
    is_ours,
    key_range,
    locked,
    manifest_bytes,
    put,
    read,
    read_manifest,
    record,
    segments_of,
    spec_words,
)
from rl.errors import BadInput, RunFault
from rl.files import sync

log = logging.getLogger("qfleet.snapshot")

CHUNK_BYTES = 8 * 2**20
SLICE = 0.001  # seconds after which a snapshot yields to the event loop


class Restored(NamedTuple):
    """The content that a shard restored from a snapshot."""

    items: int
    seconds_old: float

    def __str__(self) -> str:
        return f"restored {self.items:,} transitions of a snapshot {self.seconds_old:,.0f} seconds old"


class Snapshots:
    """The directory of one shard's snapshots.

        snapshots = Snapshots(directory, shard, minutes)  # restores the snapshot in the directory
        snapshots.start()  # from here on in the shard's event loop
        await snapshots.write()  # as often as wanted; at the end `await snapshots.finish()`

    The directory is locked while this object lives.
    """

    def __init__(self, directory: Path, shard: Shard, minutes: float = 0.0) -> None:
        """Restore what ``directory`` holds; `start` writes a snapshot every ``minutes`` (0: only when asked).

        Raises BadInput when another shard uses the directory, or its content is damaged or of other observations.
        """
        self.directory, self._shard, self._minutes = directory, shard, minutes
        self.restored: Restored | None = None
        self._turn = asyncio.Lock()
        self._waiting: asyncio.Task[SnapshotWritten] | None = None  # asked for and not yet begun
        self._clock: asyncio.Task[None] | None = None
        self._lock = locked(directory)
        try:
            self._snapshot = self._restore()  # the last one written
        except BaseException:
            self._lock.close()
            raise
        self._number: int = self._snapshot["number"]

    def start(self) -> None:
        """Start writing snapshots every ``minutes``, where that is above 0."""
        if self._minutes > 0:
            self._clock = asyncio.create_task(self._write_in_time())

    async def _write_in_time(self) -> None:
        while True:
            await asyncio.sleep(self._minutes * 60.0)
            try:
                await self.write()
            except RunFault as fault:
                log.warning("%s; the one before it is whole", fault)

    async def finish(self) -> SnapshotWritten:
        """Write a last snapshot and `close`; returns what was written. Raises RunFault when it could not be."""
        if self._clock is not None:
            self._clock.cancel()
        try:
            return await self.write()
        finally:
            self.close()

    def close(self) -> None:
        """Release the directory without writing."""
        self._lock.close()

    async def write(self) -> SnapshotWritten:
        """Write a snapshot; returns what was written. Raises RunFault when it could not be.

        Callers that ask while one is being written share the next one.
        """
        if self._waiting is None:
            self._waiting = asyncio.create_task(self._take_turn())
        return await asyncio.shield(self._waiting)  # which continues when its caller is cancelled

    async def _take_turn(self) -> SnapshotWritten:
        async with self._turn:
            self._waiting = None
            try:
                return await self._write()
            except OSError as error:
                raise RunFault(f"{self.directory}: a snapshot could not be written: {error.strerror}") from error

    async def _write(self) -> SnapshotWritten:
        began = time.monotonic()
        state, now = self._shard.get_state(), time.time()
        first, end = state["first_key"], state["end_key"]
        td = self._shard.storage.errors(first, end)
        self._number += 1  # also after a failure: its manifest may be in place
        number, written = self._number, 0
        files = self._still_good(first, end)
        covered = max([first, *(key_range(name)[1] for name in files)])
        async for at, until, records in self._runs(covered, end):
            if at != covered:  # evicted before it was written, and so was everything older
                files, td, first = {}, td[at - first :], at
            name, covered = f"segments-{number}-{at}-{until}.bin", until
            files[name] = await asyncio.to_thread(put, self.directory / name, records)
            written += files[name]["bytes"]
        if covered != end:
            files, td, first = {}, td[:0], end
        files[f"td-{number}.bin"] = await asyncio.to_thread(put, self.directory / f"td-{number}.bin", [td.tobytes()])
        snapshot = {
            **self._snapshot,
            "number": number,
            "time": now,
            "state": {**state, "first_key": first},
            "files": files,
        }
        await asyncio.to_thread(self._commit, snapshot)
        return SnapshotWritten(end - first, written + td.nbytes, time.monotonic() - began)

    def _still_good(self, first_key: int, end_key: int) -> Files:
        """The last snapshot's chunks of items still stored, except a small last one that is merged with newer items."""
        files = self._snapshot["files"]
        good = {name: files[name] for name in chunks(files) if key_range(name)[1] > first_key}
        last = max(good, key=key_range, default=None)
        if last and good[last]["bytes"] < CHUNK_BYTES // 2 and key_range(last)[1] < end_key:
            del good[last]
        return good

    async def _runs(self, first_key: int, end_key: int) -> AsyncIterator[tuple[int, int, list[bytes]]]:
        """Records of successive segments in runs of about CHUNK_BYTES, each with its first and its end key."""
        records: list[bytes] = []
        start = at = first_key
        size = 0
        pause = time.monotonic() + SLICE
        for stored in self._shard.storage.segments(first_key, end_key):
            if records and (stored.first_key != at or size >= CHUNK_BYTES):
                yield start, at, records
                records, size = [], 0
            if not records:
                start = stored.first_key
            records.append(record(stored))
            size += len(records[-1])
            at = stored.end_key
            if time.monotonic() >= pause:
                await asyncio.sleep(0)
                pause = time.monotonic() + SLICE
        if records:
            yield start, at, records

    def _commit(self, snapshot: dict[str, Any]) -> None:
        """Put the manifest in place, then delete the files that it does not list."""
        sync(self.directory)
        put(self.directory / MANIFEST, [manifest_bytes(snapshot)])
        sync(self.directory)
        self._snapshot = snapshot
        for file in self.directory.iterdir():
            if file.name not in (*snapshot["files"], MANIFEST, LOCK) and is_ours(file.name):
                file.unlink()

    def _restore(self) -> dict[str, Any]:
        """Fill the shard from the directory, and record there that its keys begin a new generation."""
        spec = self._shard.spec
        ours = {"frame_shape": list(spec.frame_shape), "dtype": spec.dtype, "stack": spec.stack}
        file = self.directory / MANIFEST
        snapshot: dict[str, Any] = {
            "generation": -1,
            "number": 0,
            "time": 0.0,
            "spec": ours,
            "state": None,
            "files": {},
        }
        if file.exists():
            try:
                snapshot = read_manifest(file)
                if snapshot["spec"] != ours:
                    raise BadInput(
                        f"{file} is of observations {spec_words(snapshot['spec'])}, not {spec_words(ours)}: "
                        "write another directory, or start the shard with those"
                    )
                self._fill(snapshot)
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise BadInput(
                    f"{self.directory} holds a snapshot that cannot be taken back ({' '.join(str(error).split())}): "
                    "write another directory, or move this one away to start empty"
                ) from error
        snapshot["generation"] = self._shard.generation = snapshot["generation"] + 1
        try:
            self._commit(snapshot)
        except OSError as error:
            raise BadInput(f"{self.directory} cannot be written: {error.strerror}") from error
        return snapshot

    def _fill(self, snapshot: dict[str, Any]) -> None:
        state, files = snapshot["state"], snapshot["files"]
        if state is None:  # of a shard that ended before its first snapshot
            return
        td = np.frombuffer(read(self.directory, f"td-{snapshot['number']}.bin", files), np.float32)
        self._shard.set_state(state, segments_of(self.directory, state["first_key"], files), td)
        if self._shard.storage.size:
            self.restored = Restored(self._shard.storage.size, max(0.0, time.time() - snapshot["time"]))
