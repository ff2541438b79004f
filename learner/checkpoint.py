"""Checkpoints: one directory per save. A save is complete once its MANIFEST.json exists. Nothing is unpickled.

    <root>/<step>/online.safetensors target.safetensors optimizer.safetensors state.json MANIFEST.json

A second save of the same step is named <step>-1, a third <step>-2, so a save never overwrites an earlier one.
state.json has a format number. The manifest contains the SHA-256 of each file and is written last. On a local disk a
save is written under a temporary name, synced and renamed: after a power cut either the old save is there, or both. The
root may be any fsspec URL (s3://..., gs://..., memory://...).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import posixpath
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import fsspec

from rl.files import sync, write_synced
from rl.formats import KEY as FORMAT_KEY
from rl.formats import upgraded
from rl.parameters import from_bytes, to_bytes
from rl.types import Array

log = logging.getLogger("qfleet.checkpoint")

MANIFEST = "MANIFEST.json"
SAVE_NAME = re.compile(r"(\d{12})(?:-(\d+))?")  # step, number of earlier saves of that step
# {old name: new name} of the keys of state.json that were renamed after format 0, after format 1, ...
RENAMED = ({"judge": "evaluation"}, {"rng": "replay"})


class DamagedCheckpoint(Exception):
    """A checkpoint whose files are missing or do not match its manifest."""


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint."""

    arrays: Mapping[str, Mapping[str, Array]]  # named arrays by group; one .safetensors file for each group
    state: Mapping[str, Any]  # counters and other data that fit into JSON


class CheckpointStore:
    """The checkpoints in the directory or at the URL ``root``. Saving deletes all but the ``keep`` newest.

        store = CheckpointStore("runs/a/checkpoints", keep=3)
        store.save(step, checkpoint)
        checkpoint = store.load_newest()  # None if there is none

    ``options`` are passed to the file system of a URL. Only one process at a time may write to a root.
    """

    def __init__(self, root: str, keep: int = 3, options: Mapping[str, Any] = MappingProxyType({})) -> None:
        self.fs, self.path = fsspec.core.url_to_fs(root, **options)
        self._keep = keep
        self._local = "file" in _as_tuple(self.fs.protocol)

    def save(self, step: int, checkpoint: Checkpoint) -> str:
        """Write a checkpoint for ``step``. Returns its path.

        Once it is complete, older saves beyond ``keep`` and other saves of the same step are deleted. Raises OSError if
        the checkpoint cannot be written.
        """
        name = self._unused_name(step)
        folder = posixpath.join(self.path, f".{name}" if self._local else name)
        if self.fs.exists(folder):  # from a process that was killed during a save
            self.fs.rm(folder, recursive=True)
        self.fs.makedirs(folder)
        files = {f"{group}.safetensors": to_bytes(arrays) for group, arrays in checkpoint.arrays.items()}
        state = {FORMAT_KEY: len(RENAMED), **checkpoint.state}
        files["state.json"] = json.dumps(state, indent=1).encode()
        manifest = {file: hashlib.sha256(data).hexdigest() for file, data in files.items()}
        files[MANIFEST] = json.dumps({"sha256": manifest}, indent=1).encode()  # written last
        final = posixpath.join(self.path, name)
        try:
            for file, data in files.items():
                self._write(posixpath.join(folder, file), data)
            if self._local:
                sync(Path(folder))
                os.rename(folder, final)
                sync(Path(self.path))
        except OSError:
            if self._local:  # a part of it would keep a full disk full
                shutil.rmtree(folder, ignore_errors=True)
            raise
        self._delete_others(step, name)
        return str(final)

    def steps(self) -> list[int]:
        """The steps with a complete save, lowest first."""
        return sorted({step for step, _, _ in self._saves()})

    def load(self, step: int) -> Checkpoint:
        """Load the newest save of ``step``.

        Raises DamagedCheckpoint if it is missing or damaged, BadInput if a newer Qfleet wrote it.
        """
        names = [name for found, _, name in self._saves() if found == step]
        return self._load(posixpath.join(self.path, names[-1] if names else f"{step:012d}"))

    def load_newest(self) -> Checkpoint | None:
        """Load the newest undamaged checkpoint, or return None if there is none. Logs a warning for damaged ones.

        Raises BadInput if a newer Qfleet wrote it, and OSError if a file exists but cannot be read.
        """
        for _, _, name in reversed(self._saves()):
            try:
                return self._load(posixpath.join(self.path, name))
            except DamagedCheckpoint as error:
                log.warning("skipping a damaged checkpoint: %s", error)
        return None

    def _load(self, folder: str) -> Checkpoint:
        try:
            sums = json.loads(self.fs.cat_file(posixpath.join(folder, MANIFEST)))["sha256"]
            files = {name: self.fs.cat_file(posixpath.join(folder, name)) for name in sums}
        except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
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

    def _names(self) -> list[str]:
        """The names of all entries in the root, including interrupted saves."""
        self.fs.invalidate_cache()
        if not self.fs.exists(self.path):
            return []
        return [posixpath.basename(str(path).rstrip("/")) for path in self.fs.ls(self.path, detail=False)]

    def _saves(self) -> list[tuple[int, int, str]]:
        """(step, number of earlier saves of that step, name) of every complete save, oldest first."""
        found = [(int(m[1]), int(m[2] or 0), m[0]) for m in map(SAVE_NAME.fullmatch, self._names()) if m]
        return sorted(save for save in found if self.fs.exists(posixpath.join(self.path, save[2], MANIFEST)))

    def _unused_name(self, step: int) -> str:
        """A name for a new save of ``step``. It sorts after the other saves of that step."""
        used = [int(m[2] or 0) for m in map(SAVE_NAME.fullmatch, self._names()) if m and int(m[1]) == step]
        return f"{step:012d}-{max(used) + 1}" if used else f"{step:012d}"

    def _write(self, path: str, data: bytes) -> None:
        if self._local:
            write_synced(Path(path), data)
        else:
            self.fs.pipe_file(path, data)

    def _delete_others(self, step: int, written: str) -> None:
        """Delete all saves except ``written`` and the newest saves of the ``keep`` - 1 newest earlier steps.

        Interrupted saves are deleted too. So are saves of later steps: they were skipped as damaged by the resume, and
        the run has taken another course since.
        """
        newest = {number: name for number, _, name in self._saves() if number < step}
        kept = {written, *list(newest.values())[max(0, len(newest) - (self._keep - 1)) :]}
        for name in self._names():
            if (SAVE_NAME.fullmatch(name) or name.startswith(".")) and name not in kept:
                self._delete(name)

    def _delete(self, name: str) -> None:
        """Delete a save. The manifest is deleted first, so that a partly deleted save is not complete."""
        folder = posixpath.join(self.path, name)
        if self.fs.exists(posixpath.join(folder, MANIFEST)):
            self.fs.rm_file(posixpath.join(folder, MANIFEST))
        self.fs.rm(folder, recursive=True)


def _as_tuple(protocol: str | tuple[str, ...]) -> tuple[str, ...]:
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)
