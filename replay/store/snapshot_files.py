"""The files of a snapshot.

    <directory>/segments-<number>-<first key>-<end key>.bin ... td-<number>.bin MANIFEST.json .lock

Chunks of segments: each record is its length (uint32, little-endian) and a serialized InsertRequest with writer and
segment. One file of the items' |TD error| (float32). The manifest: counts, writers' sequences, size and SHA-256 of
every file. Each file is written under a temporary name, synced and renamed; its name holds the number of its snapshot.
The snapshot exists once its manifest does, which is written last. Nothing is ever unpickled.
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
MANIFEST, LOCK = "MANIFEST.json", ".lock"

Files = dict[str, dict[str, Any]]  # name -> {bytes, sha256}


def stored_segments(directory: Path) -> tuple[ObservationSpec, Iterator[StoredSegment]]:
    """The observations' spec and the segments, oldest first, of the snapshot in ``directory``; takes no lock.

    Raises BadInput, the iterator too, when there is none, it is damaged, or a newer one replaces it meanwhile.
    """
    try:
        snapshot = read_manifest(directory / MANIFEST)
        spec = snapshot["spec"]
        observation = ObservationSpec(tuple(spec["frame_shape"]), spec["dtype"], spec["stack"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unreadable(directory, error) from error

    def segments() -> Iterator[StoredSegment]:
        try:
            if snapshot["state"] is not None:
                yield from segments_of(directory, snapshot["state"]["first_key"], snapshot["files"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _unreadable(directory, error) from error

    return observation, segments()


def _unreadable(directory: Path, error: Exception) -> BadInput:
    return BadInput(f"{directory} holds no snapshot that can be read ({' '.join(str(error).split())}): write another")


def segments_of(directory: Path, first_key: int, files: Files) -> Iterator[StoredSegment]:
    """The segments in ``files`` from the item ``first_key`` on, oldest first.

    Raises OSError, ValueError and KeyError where a file is missing or damaged.
    """
    for name in chunks(files):
        data, at, key = read(directory, name, files), 0, key_range(name)[0]
        while at < len(data):
            (size,) = struct.unpack_from("<I", data, at)
            writer, segment = segment_from_record(data[at + 4 : at + 4 + size])
            stored = StoredSegment(writer, key, segment)
            if key >= first_key:  # a chunk may begin with segments that were evicted before the snapshot
                yield stored
            at, key = at + 4 + size, stored.end_key


def record(stored: StoredSegment) -> bytes:
    """A segment as a record of a chunk: its length in bytes, then its content."""
    data = segment_to_record(stored.writer, stored.segment)
    return struct.pack("<I", len(data)) + data


def chunks(files: Files) -> list[str]:
    """The names of the chunks, oldest items first."""
    return sorted((name for name in files if name.startswith("segments-")), key=key_range)


def key_range(chunk: str) -> tuple[int, int]:
    """First key of a chunk, and the key after its last item."""
    first, end = chunk.removesuffix(".bin").split("-")[2:]
    return int(first), int(end)


def is_ours(name: str) -> bool:
    """Whether a file of that name belongs to a snapshot, complete or not."""
    return name.lstrip(".").startswith(("segments-", "td-", MANIFEST))


def spec_words(spec: dict[str, Any]) -> str:
    """A spec in words, such as ``uint8 84x84 in stacks of 4``; for messages."""
    return f"{spec['dtype']} {'x'.join(map(str, spec['frame_shape']))} in stacks of {spec['stack']}"


def put(path: Path, pieces: list[bytes]) -> dict[str, Any]:
    """Write and sync a file; returns its bytes and SHA-256 for the manifest. Raises OSError."""
    data = b"".join(pieces)
    write_synced(path, data)
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def read(directory: Path, name: str, files: Files) -> bytes:
    """A file's content. Raises OSError, KeyError and ValueError when it is missing or does not match the manifest."""
    data = (directory / name).read_bytes()
    if len(data) != files[name]["bytes"]:
        raise ValueError(f"{name} has {len(data)} bytes, not {files[name]['bytes']}")
    if hashlib.sha256(data).hexdigest() != files[name]["sha256"]:
        raise ValueError(f"{name} does not match its checksum")
    return data


def manifest_bytes(snapshot: dict[str, Any]) -> bytes:
    """The content of a manifest: format number, checksum and ``snapshot`` as JSON."""
    text = json.dumps(snapshot)
    checksum = hashlib.sha256(text.encode()).hexdigest()
    return f'{{"format": {FORMAT}, "sha256": "{checksum}", "snapshot":\n{text}}}\n'.encode()


def read_manifest(file: Path) -> dict[str, Any]:
    """The snapshot in a manifest.

    Raises BadInput when its format is newer; OSError, ValueError, KeyError and TypeError when it is missing or damaged.
    """
    data = json.loads(file.read_bytes())
    format_of(data, FORMAT, str(file))
    snapshot: dict[str, Any] = data["snapshot"]
    if hashlib.sha256(json.dumps(snapshot).encode()).hexdigest() != data["sha256"]:
        raise ValueError(f"{file.name} does not match its checksum")
    return snapshot


def locked(directory: Path) -> IO[str]:
    """The open lock file of ``directory``, which is created where it is missing; closing it releases the lock.

    Raises BadInput when another process holds the lock, or the directory cannot be written.
    """
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
