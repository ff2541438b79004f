"""Snapshots: write a shard's content to disk while it serves, and restore it.

Segments never change and are evicted first in, first out. So a snapshot writes only the segments that are not in the
previous one, in chunks of about CHUNK_BYTES, and reuses the older chunks. The rest is small and written each time: the
|TD errors|, the counts and the writers' sequence numbers. `snapshot_files.py` defines the format.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from protos.types import SnapshotResult
from replay.store.shard import Shard
from replay.store.snapshot_files import (
    LOCK,
    MANIFEST,
    Files,
    chunk_names,
    describe_spec,
    encode_record,
    is_snapshot_file,
    key_range,
    lock_directory,
    manifest_bytes,
    read_file,
    read_manifest,
    read_segments,
    write_file,
)
from rl.errors import BadInput, RunFault
from rl.files import sync

log = logging.getLogger("qfleet.snapshot")

CHUNK_BYTES = 8 * 2**20
SLICE_SECONDS = 0.001  # time after which a snapshot that is being written yields to the event loop


class Restored(NamedTuple):
    """How much a shard has restored from a snapshot, and the snapshot's age; `str` gives a line for the log."""

    items: int
    seconds_old: float

    def __str__(self) -> str:
        return f"restored {self.items:,} transitions from a snapshot {self.seconds_old:,.0f} seconds old"


class Snapshots:
    """Writes and restores the snapshots of one shard in one directory.

        snapshots = Snapshots(directory, shard, minutes)  # restores the snapshot in the directory, if there is one
        snapshots.start()  # call this, and the next two, in the shard's event loop
        await snapshots.write()
        await snapshots.finish()

    The directory is locked until `close` or `finish`.
    """

    def __init__(self, directory: Path, shard: Shard, minutes: float = 0.0) -> None:
        """Lock ``directory`` and restore its snapshot into ``shard``.

        After `start`, a snapshot is written every ``minutes`` minutes; 0: only by `write`. Raises BadInput if another
        shard uses the directory, or the snapshot is damaged or has observations of another shape or type.
        """
        self.directory, self._shard, self._minutes = directory, shard, minutes
        self.restored: Restored | None = None
        self._write_lock = asyncio.Lock()
        self._queued: asyncio.Task[SnapshotResult] | None = None  # requested and not yet started
        self._timer: asyncio.Task[None] | None = None
        self._lock = lock_directory(directory)
        try:
            self._snapshot = self._restore()  # content of the last manifest
        except BaseException:
            self._lock.close()
            raise
        self._number: int = self._snapshot["number"]

    def start(self) -> None:
        """Start writing a snapshot every ``minutes`` minutes, if that is above 0."""
        if self._minutes > 0:
            self._timer = asyncio.create_task(self._write_periodically())

    async def _write_periodically(self) -> None:
        while True:
            await asyncio.sleep(self._minutes * 60.0)
            try:
                await self.write()
            except RunFault as fault:
                log.warning("%s; the previous snapshot is intact", fault)

    async def finish(self) -> SnapshotResult:
        """Write a last snapshot and release the directory. Raises RunFault if it cannot be written."""
        if self._timer is not None:
            self._timer.cancel()
        try:
            return await self.write()
        finally:
            self.close()

    def close(self) -> None:
        """Release the directory without writing a snapshot."""
        self._lock.close()

    async def write(self) -> SnapshotResult:
        """Write a snapshot; returns its statistics. Raises RunFault if it cannot be written.

        All calls during the writing of a snapshot share the next one.
        """
        if self._queued is None:
            self._queued = asyncio.create_task(self._write_next())
        return await asyncio.shield(self._queued)  # writing continues if the caller is cancelled

    async def _write_next(self) -> SnapshotResult:
        async with self._write_lock:
            self._queued = None
            try:
                return await self._write()
            except OSError as error:
                raise RunFault(f"{self.directory}: a snapshot could not be written: {error.strerror}") from error

    async def _write(self) -> SnapshotResult:
        began = time.monotonic()
        state, now = self._shard.get_state(), time.time()
        first, end = state["first_key"], state["end_key"]
        td = self._shard.storage.td_errors(first, end)
        self._number += 1  # also if the last snapshot failed: its manifest may be in place
        number, written = self._number, 0
        files = self._reusable_chunks(first, end)
        covered = max([first, *(key_range(name)[1] for name in files)])
        async for at, until, records in self._new_chunks(covered, end):
            if at != covered:  # the segments in between were evicted, and so were all older ones
                files, td, first = {}, td[at - first :], at
            name, covered = f"segments-{number}-{at}-{until}.bin", until
            files[name] = await asyncio.to_thread(write_file, self.directory / name, records)
            written += files[name]["bytes"]
        if covered != end:
            files, td, first = {}, td[:0], end
        files[f"td-{number}.bin"] = await asyncio.to_thread(
            write_file, self.directory / f"td-{number}.bin", [td.tobytes()]
        )
        snapshot = {
            **self._snapshot,
            "number": number,
            "time": now,
            "state": {**state, "first_key": first},
            "files": files,
        }
        await asyncio.to_thread(self._commit, snapshot)
        return SnapshotResult(end - first, written + td.nbytes, time.monotonic() - began)

    def _reusable_chunks(self, first_key: int, end_key: int) -> Files:
        """Return the last snapshot's chunks with items still stored.

        The last chunk is left out if it is small and there are newer items: they are written into one new chunk.
        """
        files = self._snapshot["files"]
        reusable = {name: files[name] for name in chunk_names(files) if key_range(name)[1] > first_key}
        last = max(reusable, key=key_range, default=None)
        if last and reusable[last]["bytes"] < CHUNK_BYTES // 2 and key_range(last)[1] < end_key:
            del reusable[last]
        return reusable

    async def _new_chunks(self, first_key: int, end_key: int) -> AsyncIterator[tuple[int, int, list[bytes]]]:
        """Yield chunks of about CHUNK_BYTES with consecutive keys: first key, end key and records of the segments."""
        records: list[bytes] = []
        start = at = first_key
        size = 0
        pause = time.monotonic() + SLICE_SECONDS
        for stored in self._shard.storage.segments(first_key, end_key):
            if records and (stored.first_key != at or size >= CHUNK_BYTES):
                yield start, at, records
                records, size = [], 0
            if not records:
                start = stored.first_key
            records.append(encode_record(stored))
            size += len(records[-1])
            at = stored.end_key
            if time.monotonic() >= pause:
                await asyncio.sleep(0)
                pause = time.monotonic() + SLICE_SECONDS
        if records:
            yield start, at, records

    def _commit(self, snapshot: dict[str, Any]) -> None:
        """Write the manifest, then delete the snapshot files that it does not list."""
        sync(self.directory)
        write_file(self.directory / MANIFEST, [manifest_bytes(snapshot)])
        sync(self.directory)
        self._snapshot = snapshot
        for file in self.directory.iterdir():
            if file.name not in (*snapshot["files"], MANIFEST, LOCK) and is_snapshot_file(file.name):
                file.unlink()

    def _restore(self) -> dict[str, Any]:
        """Restore the shard, if there is a snapshot, and write a manifest with the next generation of keys.

        Returns the content of that manifest.
        """
        spec = self._shard.spec
        own_spec = {"frame_shape": list(spec.frame_shape), "dtype": spec.dtype, "stack": spec.stack}
        file = self.directory / MANIFEST
        snapshot: dict[str, Any] = {
            "generation": -1,
            "number": 0,
            "time": 0.0,
            "spec": own_spec,
            "state": None,
            "files": {},
        }
        if file.exists():
            try:
                snapshot = read_manifest(file)
                if snapshot["spec"] != own_spec:
                    raise BadInput(
                        f"{file} has observations {describe_spec(snapshot['spec'])}, not {describe_spec(own_spec)}: "
                        "write another directory, or start the shard with the observations of the snapshot"
                    )
                self._load(snapshot)
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise BadInput(
                    f"the snapshot in {self.directory} cannot be restored ({' '.join(str(error).split())}): write "
                    "another directory, or move this one away to start with an empty shard"
                ) from error
        snapshot["generation"] = self._shard.generation = snapshot["generation"] + 1
        try:
            self._commit(snapshot)
        except OSError as error:
            raise BadInput(f"{self.directory} cannot be written ({error.strerror}): write another directory") from error
        return snapshot

    def _load(self, snapshot: dict[str, Any]) -> None:
        state, files = snapshot["state"], snapshot["files"]
        if state is None:  # the shard ended before its first snapshot
            return
        td = np.frombuffer(read_file(self.directory, f"td-{snapshot['number']}.bin", files), np.float32)
        self._shard.set_state(state, read_segments(self.directory, state["first_key"], files), td)
        if self._shard.storage.size:
            self.restored = Restored(self._shard.storage.size, max(0.0, time.time() - snapshot["time"]))
