"""Checkpoints: a directory a step, whole once its MANIFEST.json is there; nothing is ever unpickled.

    <root>/<step>/online.safetensors target.safetensors optimizer.safetensors state.json MANIFEST.json

state.json has a format number. The manifest, written last, holds each file's SHA-256. Locally the directory is filled under
a temporary name and renamed.
The root may be any fsspec URL (s3://..., gs://..., memory://...).
"""

from __future__ import annotations

import hashlib
import json
import logging
import posixpath
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import fsspec

from rl.formats import KEY as FORMAT_KEY
from rl.formats import upgraded
from rl.parameters import from_bytes, to_bytes
from rl.types import Array

log = logging.getLogger("qfleet.checkpoint")

MANIFEST = "MANIFEST.json"
# What a checkpoint's state calls otherwise since format 0, 1, ...
RENAMED = ({"judge": "evaluation"},)


class DamagedCheckpoint(Exception):
    """A checkpoint whose files are missing or do not match its manifest."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds: groups of named arrays, and plain data (counters, RNG states)."""

    arrays: Mapping[str, Mapping[str, Array]]
    state: Mapping[str, Any]


class CheckpointStore:
    """The checkpoints under one root, the newest ``keep`` of them."""

    def __init__(self, root: str, keep: int = 3) -> None:
        self.fs, self.path = fsspec.core.url_to_fs(root)
        self._keep = keep
        self._local = "file" in _as_tuple(self.fs.protocol)

    def save(self, step: int, checkpoint: Checkpoint) -> str:
        """Write a checkpoint under ``step``; returns its path. An older one of the same step is replaced."""
        final = posixpath.join(self.path, f"{step:012d}")
        folder = posixpath.join(self.path, f".{step:012d}-{uuid.uuid4().hex[:8]}") if self._local else final
        if not self._local and self.fs.exists(final):
            self.fs.rm(final, recursive=True)
        self.fs.makedirs(folder, exist_ok=True)
        files = {f"{name}.safetensors": to_bytes(group) for name, group in checkpoint.arrays.items()}
        state = {FORMAT_KEY: len(RENAMED), **checkpoint.state}
        files["state.json"] = json.dumps(state, indent=1).encode()
        for name, data in files.items():
            self.fs.pipe_file(posixpath.join(folder, name), data)
        manifest = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        self.fs.pipe_file(posixpath.join(folder, MANIFEST), json.dumps({"sha256": manifest}, indent=1).encode())
        if self._local:
            if self.fs.exists(final):
                self.fs.rm(final, recursive=True)
            self.fs.mv(folder, final, recursive=True)
        self._drop_old(step)
        return str(final)

    def steps(self) -> list[int]:
        """Steps that have a directory with a manifest, oldest first."""
        self.fs.invalidate_cache()
        if not self.fs.exists(self.path):
            return []
        names = [posixpath.basename(str(p).rstrip("/")) for p in self.fs.ls(self.path, detail=False)]
        whole = [n for n in names if n.isdigit() and self.fs.exists(posixpath.join(self.path, n, MANIFEST))]
        return sorted(int(n) for n in whole)

    def load(self, step: int) -> Checkpoint:
        """The checkpoint of ``step``. Raises DamagedCheckpoint, and BadInput where a newer Qfleet wrote it."""
        folder = posixpath.join(self.path, f"{step:012d}")
        try:
            sums = json.loads(self.fs.cat_file(posixpath.join(folder, MANIFEST)))["sha256"]
            files = {name: self.fs.cat_file(posixpath.join(folder, name)) for name in sums}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DamagedCheckpoint(f"{folder}: {error}") from error
        for name, data in files.items():
            if hashlib.sha256(data).hexdigest() != sums[name]:
                raise DamagedCheckpoint(f"{folder}/{name} does not match its checksum")
        try:
            state = json.loads(files.pop("state.json"))
            arrays = {name.removesuffix(".safetensors"): from_bytes(data) for name, data in files.items()}
            return Checkpoint(arrays, upgraded(state, RENAMED, f"{folder}/state.json"))
        except (ValueError, KeyError) as error:
            raise DamagedCheckpoint(f"{folder}: {error}") from error

    def load_newest(self) -> Checkpoint | None:
        """The newest whole checkpoint, or None; damaged ones are skipped with a warning. Raises BadInput as `load` does."""
        for step in reversed(self.steps()):
            try:
                return self.load(step)
            except DamagedCheckpoint as error:
                log.warning("skipping a damaged checkpoint: %s", error)
        return None

    def _drop_old(self, written: int) -> None:
        """Keep the step just written, whatever its number, and the newest others; nothing of saves that were killed."""
        for path in self.fs.ls(self.path, detail=False) if self._local else ():
            if posixpath.basename(path).startswith("."):
                self.fs.rm(path, recursive=True)
        others = [step for step in self.steps() if step != written]
        for step in others[: max(0, len(others) - (self._keep - 1))]:
            self.fs.rm(posixpath.join(self.path, f"{step:012d}"), recursive=True)


def _as_tuple(protocol: str | tuple[str, ...]) -> tuple[str, ...]:
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)
