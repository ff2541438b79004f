"""Snapshots: a shard's content on disk, written while it serves.

    <directory>/segments-<number>-<first key>-<end key>.bin ... td-<number>.bin MANIFEST.json .lock

Segments never change and leave first in, first out, so a snapshot writes those that the one before it lacks, in chunks of
about CHUNK_BYTES, and names the older chunks again. Each record of a chunk is its length (uint32, little-endian) and a
serialized InsertRequest with writer and segment. What does change is small and written anew: the items' |TD error|
(float32), and the manifest: counts, writers' sequences, size and SHA-256 of every file. Each file is written aside, synced
and renamed under a name of its snapshot's number; the snapshot exists once its manifest, the last of them, does. Nothing is
ever unpickled.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import struct
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError

from protos import replay_pb2 as pb
from replay.shard import Shard
from replay.storage import Kept
from rl.errors import BadInput, RunFault
from rl.types import ObservationSpec

log = logging.getLogger("qfleet.snapshot")

FORMAT = 1
MANIFEST, LOCK = "MANIFEST.json", ".lock"
CHUNK_BYTES = 8 * 2**20
SLICE = 0.001  # seconds of the event loop between two looks at what else there is to do

Files = dict[str, dict[str, Any]]  # name -> {bytes, sha256}


class Written(NamedTuple):
    """A snapshot on disk."""

    items: int
    bytes: int  # of the files that were new
    seconds: float


class Restored(NamedTuple):
    """What a shard took back."""

    items: int
    seconds_old: float

    def __str__(self) -> str:
        return f"restored {self.items:,} transitions of a snapshot {self.seconds_old:,.0f} seconds old"


class Snapshots:
    """The directory of one shard's snapshots, locked while this lives; all methods but the first on the shard's loop."""

    def __init__(self, directory: Path, shard: Shard, minutes: float = 0.0) -> None:
        """Take back what ``directory`` holds; `start` writes a snapshot every ``minutes`` (0: only when asked).

        Raises BadInput, in one line, when another shard uses it, or what it holds is damaged or of another kind.
        """
        self.directory, self._shard, self._minutes = directory, shard, minutes
        self.restored: Restored | None = None
        self._turn = asyncio.Lock()
        self._waiting: asyncio.Task[Written] | None = None  # has not had its turn yet
        self._clock: asyncio.Task[None] | None = None
        self._lock = _locked(directory)
        try:
            self._snapshot = self._take_back()  # the last one written
        except BaseException:
            self._lock.close()
            raise
        self._number: int = self._snapshot["number"]

    def start(self) -> None:
        """Begin to write them in time."""
        if self._minutes > 0:
            self._clock = asyncio.create_task(self._write_in_time())

    async def _write_in_time(self) -> None:
        while True:
            await asyncio.sleep(self._minutes * 60.0)
            try:
                await self.write()
            except RunFault as fault:
                log.warning("%s; the one before it is whole", fault)

    async def finish(self) -> Written:
        """Write the last one and `close`. Raises RunFault."""
        if self._clock is not None:
            self._clock.cancel()
        try:
            return await self.write()
        finally:
            self.close()

    def close(self) -> None:
        """Let the directory go, as it is."""
        self._lock.close()

    async def write(self) -> Written:
        """Write a snapshot; whoever asks while one is being written shares the one after it. Raises RunFault."""
        if self._waiting is None:
            self._waiting = asyncio.create_task(self._take_turn())
        return await asyncio.shield(self._waiting)  # which goes on where its caller is gone

    async def _take_turn(self) -> Written:
        async with self._turn:
            self._waiting = None
            try:
                return await self._write()
            except OSError as error:
                raise RunFault(f"{self.directory}: a snapshot could not be written: {error.strerror}") from error

    async def _write(self) -> Written:
        began = time.monotonic()
        state, now = self._shard.get_state(), time.time()
        first, end = state["first_key"], state["end_key"]
        td = self._shard.storage.errors(first, end)
        self._number += 1  # of one that failed too: its manifest may be in place
        number, written = self._number, 0
        files = self._still_good(first, end)
        covered = max([first, *(_keys(name)[1] for name in files)])
        async for at, until, records in self._runs(covered, end):
            if at != covered:  # evicted before its turn came, and so was all before it
                files, td, first = {}, td[at - first :], at
            name, covered = f"segments-{number}-{at}-{until}.bin", until
            files[name] = await asyncio.to_thread(_put, self.directory / name, records)
            written += files[name]["bytes"]
        if covered != end:
            files, td, first = {}, td[:0], end
        files[f"td-{number}.bin"] = await asyncio.to_thread(_put, self.directory / f"td-{number}.bin", [td.tobytes()])
        snapshot = {
            **self._snapshot,
            "number": number,
            "time": now,
            "state": {**state, "first_key": first},
            "files": files,
        }
        await asyncio.to_thread(self._commit, snapshot)
        return Written(end - first, written + td.nbytes, time.monotonic() - began)

    def _still_good(self, first_key: int, end_key: int) -> Files:
        """The last snapshot's chunks of items still stored, but for a small last one that can be written with more."""
        files = self._snapshot["files"]
        good = {name: files[name] for name in _chunks(files) if _keys(name)[1] > first_key}
        last = max(good, key=_keys, default=None)
        if last and good[last]["bytes"] < CHUNK_BYTES // 2 and _keys(last)[1] < end_key:
            del good[last]
        return good

    async def _runs(self, first_key: int, end_key: int) -> AsyncIterator[tuple[int, int, list[bytes]]]:
        """Records of successive segments in runs of about CHUNK_BYTES, and the keys that each run begins and ends with."""
        records: list[bytes] = []
        start = at = first_key
        size = 0
        pause = time.monotonic() + SLICE
        for kept in self._shard.storage.segments(first_key, end_key):
            if records and (kept.first_key != at or size >= CHUNK_BYTES):
                yield start, at, records
                records, size = [], 0
            if not records:
                start = kept.first_key
            records.append(_record(kept))
            size += len(records[-1])
            at = kept.first_key + _items(kept.message)
            if time.monotonic() >= pause:
                await asyncio.sleep(0)
                pause = time.monotonic() + SLICE
        if records:
            yield start, at, records

    def _commit(self, snapshot: dict[str, Any]) -> None:
        """Put the manifest in place, then delete what it does not name."""
        _sync(self.directory)
        _put(self.directory / MANIFEST, [_manifest(snapshot)])
        _sync(self.directory)
        self._snapshot = snapshot
        for file in self.directory.iterdir():
            if file.name not in (*snapshot["files"], MANIFEST, LOCK) and _is_ours(file.name):
                file.unlink()

    def _take_back(self) -> dict[str, Any]:
        """Fill the shard with what the directory holds, and note there that its keys begin a new generation."""
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
                snapshot = _read_manifest(file)
                if snapshot["spec"] != ours:
                    raise BadInput(
                        f"{file} is of observations {_words(snapshot['spec'])}, not {_words(ours)}: "
                        "write another directory, or start the shard with those"
                    )
                self._fill(snapshot)
            except (OSError, ValueError, KeyError, TypeError, DecodeError) as error:
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
        if state is None:  # of a shard that ended before its first
            return
        td = np.frombuffer(_read(self.directory, f"td-{snapshot['number']}.bin", files), np.float32)
        self._shard.set_state(state, _segments(self.directory, state["first_key"], files), td)
        if self._shard.storage.size:
            self.restored = Restored(self._shard.storage.size, max(0.0, time.time() - snapshot["time"]))


def stored_segments(directory: Path) -> tuple[ObservationSpec, Iterator[Kept]]:
    """What the snapshot in ``directory`` holds, oldest segments first, for a reader beside the shard: nothing is locked.

    Raises BadInput, the iterator too, when there is none, it is damaged, or a newer one replaces it meanwhile.
    """
    try:
        snapshot = _read_manifest(directory / MANIFEST)
        spec = snapshot["spec"]
        observation = ObservationSpec(tuple(spec["frame_shape"]), spec["dtype"], spec["stack"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unreadable(directory, error) from error

    def segments() -> Iterator[Kept]:
        try:
            if snapshot["state"] is not None:
                yield from _segments(directory, snapshot["state"]["first_key"], snapshot["files"])
        except (OSError, ValueError, KeyError, TypeError, DecodeError) as error:
            raise _unreadable(directory, error) from error

    return observation, segments()


def _unreadable(directory: Path, error: Exception) -> BadInput:
    return BadInput(f"{directory} holds no snapshot that can be read ({' '.join(str(error).split())}): write another")


def _segments(directory: Path, first_key: int, files: Files) -> Iterator[Kept]:
    for name in _chunks(files):
        data, at, key = _read(directory, name, files), 0, _keys(name)[0]
        while at < len(data):
            (size,) = struct.unpack_from("<I", data, at)
            request = pb.InsertRequest.FromString(data[at + 4 : at + 4 + size])
            if key >= first_key:  # a chunk may begin with segments that were evicted before the snapshot
                yield Kept(request.writer, key, request.segment)
            at, key = at + 4 + size, key + _items(request.segment)


def _items(segment: pb.Segment) -> int:
    return len(segment.item_step) // 4


def _record(kept: Kept) -> bytes:
    data = pb.InsertRequest(writer=kept.writer, segment=kept.message).SerializeToString()
    return struct.pack("<I", len(data)) + data


def _chunks(files: Files) -> list[str]:
    """The names of the chunks, oldest items first."""
    return sorted((name for name in files if name.startswith("segments-")), key=_keys)


def _keys(chunk: str) -> tuple[int, int]:
    """First and end key of a chunk."""
    first, end = chunk.removesuffix(".bin").split("-")[2:]
    return int(first), int(end)


def _is_ours(name: str) -> bool:
    return name.lstrip(".").startswith(("segments-", "td-", MANIFEST))


def _words(spec: dict[str, Any]) -> str:
    return f"{spec['dtype']} {'x'.join(map(str, spec['frame_shape']))} in stacks of {spec['stack']}"


def _put(path: Path, pieces: list[bytes]) -> dict[str, Any]:
    """Write a file aside, sync it and rename it into place; returns its size and checksum. Raises OSError."""
    data = b"".join(pieces)
    aside = path.with_name(f".{path.name}")
    with aside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _sync(directory: Path) -> None:
    """See to it that files renamed in ``directory`` stay so."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _read(directory: Path, name: str, files: Files) -> bytes:
    """A file's content. Raises ValueError, OSError, KeyError when it is not what the manifest names."""
    data = (directory / name).read_bytes()
    if len(data) != files[name]["bytes"]:
        raise ValueError(f"{name} has {len(data)} bytes, not {files[name]['bytes']}")
    if hashlib.sha256(data).hexdigest() != files[name]["sha256"]:
        raise ValueError(f"{name} does not match its checksum")
    return data


def _manifest(snapshot: dict[str, Any]) -> bytes:
    text = json.dumps(snapshot)
    checksum = hashlib.sha256(text.encode()).hexdigest()
    return f'{{"format": {FORMAT}, "sha256": "{checksum}", "snapshot":\n{text}}}\n'.encode()


def _read_manifest(file: Path) -> dict[str, Any]:
    """What `_manifest` wrote. Raises BadInput on another format, ValueError, KeyError and TypeError on damage."""
    data = json.loads(file.read_bytes())
    if data["format"] != FORMAT:
        raise BadInput(f"{file} is of format {data['format']}, this Qfleet reads {FORMAT}: use the one that wrote it")
    snapshot: dict[str, Any] = data["snapshot"]
    if hashlib.sha256(json.dumps(snapshot).encode()).hexdigest() != data["sha256"]:
        raise ValueError(f"{file.name} does not match its checksum")
    return snapshot


def _locked(directory: Path) -> IO[str]:
    """The lock of ``directory``, which is made where it is missing. Raises BadInput when another process holds it."""
    with contextlib.ExitStack() as stack:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context((directory / LOCK).open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BadInput(
                f"{directory} is in use by another replay shard: write a directory of this one's own"
            ) from error
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise BadInput(f"{directory} cannot be written: {error.strerror}") from error
            log.warning("%s: this file system has no locks; see that no other shard uses it", directory)
        stack.pop_all()
    return lock
