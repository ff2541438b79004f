"""The format of a snapshot's files.

    segments-<number>-<first key>-<end key>.bin  a chunk: for each segment a record, its length (uint32, little-endian)
                                                 and a serialized InsertRequest with writer and segment
    td-<number>.bin                              |TD error| of all items (float32, little-endian)
    MANIFEST.json                                counts, writers' sequence numbers, and size and SHA-256 of every file
    PREVIOUS.json                                the same of the snapshot before
    .lock                                        locked while a shard uses the directory

<number> is the number of the snapshot that wrote the file. Each file is written under a temporary name, synced and
renamed. The manifest is written last: a snapshot without its manifest does not count. Nothing is pickled.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from protos.codec import segment_from_record, segment_to_record
from replay.store.storage import StoredSegment
from rl.errors import BadInput
from rl.files import write_synced
from rl.formats import format_of
from rl.types import ObservationSpec

log = logging.getLogger("qfleet.snapshot")

FORMAT = 1
MANIFEST, PREVIOUS, LOCK = "MANIFEST.json", "PREVIOUS.json", ".lock"
DAMAGE = (OSError, ValueError, KeyError, TypeError)  # what reading a damaged or missing file raises

Files = dict[str, dict[str, Any]]  # name -> {bytes, sha256}


def open_snapshot(directory: Path) -> tuple[ObservationSpec, Iterator[StoredSegment]]:
    """Return the observation spec and an iterator over the segments, oldest first, of the snapshot in ``directory``.

    Does not lock the directory. The function and the iterator raise BadInput if there is no snapshot, it is damaged, or
    a newer snapshot replaces it in the meantime.
    """
    try:
        snapshot = read_manifest(directory / MANIFEST)
        spec = snapshot["spec"]
        observation = ObservationSpec(tuple(spec["frame_shape"]), spec["dtype"], spec["stack"])
    except DAMAGE as error:
        raise _unreadable(directory, error) from error

    def segments() -> Iterator[StoredSegment]:
        try:
            if snapshot["state"] is not None:
                yield from read_segments(directory, snapshot["state"]["first_key"], snapshot["files"])
        except DAMAGE as error:
            raise _unreadable(directory, error) from error

    return observation, segments()


def _unreadable(directory: Path, error: Exception) -> BadInput:
    return BadInput(
        f"{directory} has no readable snapshot ({' '.join(str(error).split())}): write the directory of another one"
    )


def read_segments(directory: Path, first_key: int, files: Files) -> Iterator[StoredSegment]:
    """Yield the segments in ``files`` whose keys are at least ``first_key``, oldest first.

    Raises OSError, ValueError or KeyError if a file is missing or damaged.
    """
    for name in chunk_names(files):
        data, at, key = read_file(directory, name, files), 0, key_range(name)[0]
        while at < len(data):
            (size,) = struct.unpack_from("<I", data, at)
            writer, segment = segment_from_record(data[at + 4 : at + 4 + size])
            stored = StoredSegment(writer, key, segment)
            if key >= first_key:  # a reused chunk may begin with segments evicted before this snapshot
                yield stored
            at, key = at + 4 + size, stored.end_key


def encode_record(stored: StoredSegment) -> bytes:
    """Return the segment as a record of a chunk: the length in bytes, then the serialized segment."""
    data = segment_to_record(stored.writer, stored.segment)
    return struct.pack("<I", len(data)) + data


def chunk_names(files: Files) -> list[str]:
    """Return the names of the chunks in ``files``, oldest items first."""
    return sorted((name for name in files if name.startswith("segments-")), key=key_range)


def key_range(chunk: str) -> tuple[int, int]:
    """Return the first key of a chunk and the key after its last item, from its name."""
    first, end = chunk.removesuffix(".bin").split("-")[2:]
    return int(first), int(end)


def is_snapshot_file(name: str) -> bool:
    """Return whether ``name`` is the name of a snapshot's file, finished or temporary."""
    return name.lstrip(".").startswith(("segments-", "td-", MANIFEST, PREVIOUS))


def describe_spec(spec: dict[str, Any]) -> str:
    """Return a spec as text for messages, such as ``uint8 84x84 in stacks of 4``."""
    return f"{spec['dtype']} {'x'.join(map(str, spec['frame_shape']))} in stacks of {spec['stack']}"


def write_file(path: Path, pieces: list[bytes]) -> dict[str, Any]:
    """Write and sync a file; returns its entry for the manifest: size and SHA-256. Raises OSError."""
    data = b"".join(pieces)
    write_synced(path, data)
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def read_file(directory: Path, name: str, files: Files) -> bytes:
    """Return a file's content. Raises OSError, KeyError or ValueError if it is missing or not as in the manifest."""
    data = (directory / name).read_bytes()
    if len(data) != files[name]["bytes"]:
        raise ValueError(f"{name} has {len(data)} bytes, expected {files[name]['bytes']}")
    if hashlib.sha256(data).hexdigest() != files[name]["sha256"]:
        raise ValueError(f"{name} does not match its checksum")
    return data


def manifest_bytes(snapshot: dict[str, Any]) -> bytes:
    """Return the content of a manifest file: format number, checksum and ``snapshot``, as JSON."""
    text = json.dumps(snapshot)
    checksum = hashlib.sha256(text.encode()).hexdigest()
    return f'{{"format": {FORMAT}, "sha256": "{checksum}", "snapshot":\n{text}}}\n'.encode()


def read_manifest(file: Path) -> dict[str, Any]:
    """Return the ``snapshot`` in a manifest file.

    Raises BadInput if a newer Qfleet wrote it; OSError, ValueError, KeyError or TypeError if it is missing or damaged.
    """
    data = json.loads(file.read_bytes())
    format_of(data, FORMAT, str(file))
    snapshot: dict[str, Any] = data["snapshot"]
    if hashlib.sha256(json.dumps(snapshot).encode()).hexdigest() != data["sha256"]:
        raise ValueError(f"{file.name} does not match its checksum")
    return snapshot


def lock_directory(directory: Path) -> IO[str]:
    """Lock ``directory``, which is created if it is missing; returns the open lock file. Closing it releases the lock.

    On a file system without locks, logs a warning instead. Raises BadInput if another process has locked the directory,
    or it cannot be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context((directory / LOCK).open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BadInput(
                f"{directory} is in use by another replay shard: write another directory for this one"
            ) from error
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise BadInput(f"{directory} cannot be written ({error.strerror}): write another directory") from error
            log.warning("%s cannot be locked on this file system: make sure that no other shard uses it", directory)
        stack.pop_all()
    return lock
