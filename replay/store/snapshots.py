"""Snapshots: write a shard's content to disk while it serves.

Segments never change and are evicted first in, first out. So a snapshot writes only the segments that are not in the
previous one, in chunks of about CHUNK_BYTES, and reuses the older chunks. The rest is small and written each time: the
|TD errors|, the counts and the writers' sequence numbers. The last two snapshots are kept. `snapshot_files.py` defines
the format, `restore.py` reads it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from protos.types import SnapshotResult
from replay.store.restore import Restored, restore
from replay.store.shard import Shard
from replay.store.snapshot_files import (
    LOCK,
    MANIFEST,
    PREVIOUS,
    Files,
    chunk_names,
    encode_record,
    is_snapshot_file,
    key_range,
    lock_directory,
    manifest_bytes,
    write_file,
)
from rl.errors import BadInput, RunFault
from rl.files import sync

log = logging.getLogger("qfleet.snapshot")

CHUNK_BYTES = 8 * 2**20
SLICE_SECONDS = 0.001  # time after which a snapshot that is being written yields to the event loop


class Snapshots:
    """Writes and restores the snapshots of one shard in one directory.

        snapshots = Snapshots(directory, shard, minutes)  # restores the snapshot in the directory, if there is one
        snapshots.start()  # call this, and the next two, in the shard's event loop
        await snapshots.write()
        await snapshots.finish()

    The directory is locked until `close` or `finish`.
    """

    def __init__(self, directory: Path, shard: Shard, minutes: float = 0.0, set_aside: bool = False) -> None:
        """Lock ``directory`` and restore its newest undamaged snapshot into ``shard``.

        After `start`, a snapshot is written every ``minutes`` minutes; 0: only by `write`. If none of the snapshots can be
        restored, their files are moved into a folder with ``set_aside``, and the shard starts empty. Raises BadInput
        without it, and if another shard uses the directory, or its observations have another shape or type.
        """
        self.directory, self._shard, self._minutes = directory, shard, minutes
        self._write_lock = asyncio.Lock()
        self._queued: asyncio.Task[SnapshotResult] | None = None  # requested and not yet started
        self._timer: asyncio.Task[None] | None = None
        self._lock = lock_directory(directory)
        try:
            restored = restore(directory, shard, set_aside)
            self.restored: Restored | None = restored.what
            self.damage = restored.damage  # what was damaged and what was done about it, for the user, or ""
            self._snapshot, older = restored.snapshot, restored.older  # contents of the last two manifests
            self._delete_unlisted(self._snapshot, older)  # a full disk may lack the room for a manifest
            self._commit(self._snapshot, older)
            if self.damage:
                log.warning("%s: %s", directory, self.damage)
        except OSError as error:
            self._lock.close()
            raise BadInput(f"{directory} cannot be written ({error.strerror}): write another directory") from error
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
            new: list[str] = []  # files that belong to this snapshot alone
            try:
                result, snapshot = await self._write(new)
            except OSError as error:
                for name in new:  # they would keep a full disk full
                    with contextlib.suppress(OSError):
                        (self.directory / name).unlink(missing_ok=True)
                raise self._failed(error) from error
            try:
                await asyncio.to_thread(self._commit, snapshot, self._snapshot)
            except OSError as error:
                raise self._failed(error) from error
            return result

    def _failed(self, error: OSError) -> RunFault:
        return RunFault(f"{self.directory}: a snapshot could not be written: {error.strerror}")

    async def _write(self, new: list[str]) -> tuple[SnapshotResult, dict[str, Any]]:
        """Write the files of a snapshot, whose names are added to ``new``; returns statistics and manifest."""
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
            new.append(name)
            files[name] = await asyncio.to_thread(write_file, self.directory / name, records)
            written += files[name]["bytes"]
        if covered != end:
            files, td, first = {}, td[:0], end
        new.append(f"td-{number}.bin")
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
        return SnapshotResult(end - first, written + td.nbytes, time.monotonic() - began), snapshot

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

    def _commit(self, snapshot: dict[str, Any], older: dict[str, Any]) -> None:
        """Write the manifests of a snapshot and of the one before it, then delete the files that neither lists.

        Raises OSError; the manifest may then be in place.
        """
        sync(self.directory)
        write_file(self.directory / PREVIOUS, [manifest_bytes(older)])
        sync(self.directory)
        write_file(self.directory / MANIFEST, [manifest_bytes(snapshot)])
        sync(self.directory)
        self._snapshot = snapshot
        self._delete_unlisted(snapshot, older)

    def _delete_unlisted(self, snapshot: dict[str, Any], older: dict[str, Any]) -> None:
        """Delete the files that neither manifest lists."""
        kept = {*snapshot["files"], *older["files"], MANIFEST, PREVIOUS, LOCK}
        for file in self.directory.iterdir():
            if file.name not in kept and is_snapshot_file(file.name):
                file.unlink()
