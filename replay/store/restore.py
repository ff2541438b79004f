"""Restores a shard from the newest of its snapshots that is undamaged."""

from __future__ import annotations

import errno
import secrets
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from replay.store.shard import Shard, random_generation
from replay.store.snapshot_files import (
    DAMAGE,
    MANIFEST,
    PREVIOUS,
    chunk_names,
    describe_spec,
    is_snapshot_file,
    key_range,
    read_file,
    read_manifest,
    read_segments,
    write_file,
)
from rl.errors import BadInput
from rl.types import Float32, ObservationSpec

ASIDE = "damaged-"  # how the names of folders begin into which damaged snapshots are moved


class Restored(NamedTuple):
    """How much a shard has restored from a snapshot, and the snapshot's age; `str` gives a line for the log."""

    items: int
    seconds_old: float

    def __str__(self) -> str:
        return f"restored {self.items:,} transitions from a snapshot {self.seconds_old:,.0f} seconds old"


class Restoration(NamedTuple):
    """What `restore` has found."""

    what: Restored | None
    damage: str
    """What is damaged, and what was done about it, as one line; "" if nothing is."""
    snapshot: dict[str, Any]
    """Content of the manifest of the restored snapshot, with the next generation of keys; an empty one if none."""
    older: dict[str, Any]
    """The same of the snapshot before it; the same again if there is none."""


def restore(directory: Path, shard: Shard, set_aside: bool) -> Restoration:
    """Restore ``shard``, which is empty, from ``directory``. Writes no manifest.

    The first that is possible: the last snapshot, the one before it, or the newest part of either that is whole. If none
    of these is, then with ``set_aside`` the files are moved into a folder, else BadInput is raised. It is also raised if
    the snapshot has other observations or does not fit, or if a file cannot be read that may be whole. Raises OSError if
    the directory cannot be written.
    """
    try:
        found, faults = _read_manifests(directory, shard.spec)
        snapshot = _load_whole(directory, shard, found, faults)
        damage = f"the newest snapshot is damaged ({faults[0]})" if faults else ""
        part = _load_part(directory, shard, found) if snapshot is None and faults else None
    except BadInput as error:
        raise BadInput(f"the snapshot in {directory} cannot be restored: {error}") from error
    if part is not None:
        snapshot = _with_td_errors(directory, shard, part)
        damage += ", and only a part of it is whole"
    if snapshot is None and faults and not set_aside:
        raise BadInput(
            f"the snapshot in {directory} cannot be restored ({faults[0]}): write another directory, or move this one away "
            "to start with an empty shard"
        )
    if snapshot is None and faults:
        damage += f" and was moved to {_move_away(directory)}"
    if snapshot is None:
        # A manifest that was lost may have had any generation.
        had_files = any(is_snapshot_file(file.name) or file.name.startswith(ASIDE) for file in directory.iterdir())
        generation = random_generation() if had_files else 0
        snapshot, found = {"number": 0, "time": 0.0, "spec": _described(shard.spec), "state": None, "files": {}}, []
    else:
        # A restored shard writes its generation into both manifests before it uses it, so either knows the last one.
        generation = 1 + max(manifest["generation"] for manifest in found)
    older = next((manifest for manifest in found if manifest["number"] < snapshot["number"]), snapshot)
    shard.generation = generation
    size, age = shard.storage.size, max(0.0, time.time() - snapshot["time"])
    what = Restored(size, age) if size else None
    return Restoration(what, damage, {**snapshot, "generation": generation}, {**older, "generation": generation})


def _fault(error: Exception) -> str:
    """What is wrong with a file, as one line. Raises BadInput if it may be whole, but cannot be read now."""
    line = f"{error} is missing" if isinstance(error, KeyError) else " ".join(str(error).split())
    if isinstance(error, OSError) and error.errno not in (errno.ENOENT, errno.EIO):
        raise BadInput(f"{line}: make it readable") from error
    return line


def _read_manifests(directory: Path, spec: ObservationSpec) -> tuple[list[dict[str, Any]], list[str]]:
    """The readable manifests, the newer first; and what is wrong with the newer one, if it is not among them.

    Raises BadInput if they have other observations than ``spec``, or a newer Qfleet wrote them.
    """
    found: list[dict[str, Any]] = []
    faults: list[str] = []
    for name in (MANIFEST, PREVIOUS):
        try:
            found.append(read_manifest(directory / name))
        except FileNotFoundError:
            faults += [f"{name} is missing"] if name == MANIFEST else []
        except DAMAGE as error:
            faults += [f"{name}: {_fault(error)}"] if name == MANIFEST else []
        except BadInput:
            if name == MANIFEST:
                raise
    for manifest in found:
        if manifest["spec"] != _described(spec):
            raise BadInput(
                f"it has observations {describe_spec(manifest['spec'])}, not {describe_spec(_described(spec))}: write "
                "another directory, or start the shard with the observations of the snapshot"
            )
    has_content = any(manifest["state"] is not None for manifest in found) or (directory / MANIFEST).exists()
    return found, faults if has_content or any(directory.glob("segments-*")) else []


def _described(spec: ObservationSpec) -> dict[str, Any]:
    return {"frame_shape": list(spec.frame_shape), "dtype": spec.dtype, "stack": spec.stack}


def _load_whole(directory: Path, shard: Shard, found: list[dict[str, Any]], faults: list[str]) -> dict[str, Any] | None:
    """Restore the first snapshot that is whole; returns its manifest, or None. Adds what is wrong to ``faults``."""
    for manifest in found:
        state, files = manifest["state"], manifest["files"]
        if state is None:  # the shard ended before its first snapshot
            return None if faults else manifest
        try:
            shard.set_state(state, read_segments(directory, state["first_key"], files), _td(directory, manifest))
            return manifest
        except DAMAGE as error:
            faults.append(_fault(error))
    return None


def _td(directory: Path, manifest: dict[str, Any]) -> Float32:
    return np.frombuffer(read_file(directory, f"td-{manifest['number']}.bin", manifest["files"]), np.float32)


def _load_part(directory: Path, shard: Shard, found: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Restore the items that are newer than all damaged chunks, of the first snapshot that has some.

    Returns its manifest without the other items, and without its file of TD errors; None if there are none.
    """
    for manifest in (m for m in found if m["state"] is not None):
        state, files = manifest["state"], manifest["files"]
        first, chunks = state["first_key"], {}
        for name in chunk_names(files):
            try:
                read_file(directory, name, files)
                chunks[name] = files[name]
            except DAMAGE as error:
                _fault(error)
                first, chunks = key_range(name)[1], {}
        if not chunks:
            continue
        part = {**manifest, "state": {**state, "first_key": first}, "files": chunks}
        try:
            td = _td(directory, manifest)[first - state["first_key"] :]
        except DAMAGE as error:
            _fault(error)
            td = None
        try:
            shard.set_state(part["state"], read_segments(directory, first, chunks), td)
            return part
        except DAMAGE as error:
            _fault(error)
    return None


def _with_td_errors(directory: Path, shard: Shard, part: dict[str, Any]) -> dict[str, Any]:
    """The manifest of the part that ``shard`` has restored, with a new file of its TD errors. Raises OSError."""
    numbers = [int(file.name.split("-")[1].split(".")[0]) for file in directory.glob("*-[0-9]*.bin")]
    number, storage = 1 + max(numbers), shard.storage
    name = f"td-{number}.bin"
    written = write_file(directory / name, [storage.td_errors(storage.first_key, storage.next_key).tobytes()])
    state = {**part["state"], "first_key": storage.first_key}
    return {**part, "number": number, "state": state, "files": {**part["files"], name: written}}


def _move_away(directory: Path) -> Path:
    """Move all files of snapshots into a new folder in ``directory``, the manifests last; returns it."""
    folder = directory / f"{ASIDE}{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    folder.mkdir()
    for file in sorted(directory.iterdir(), key=lambda file: file.name in (MANIFEST, PREVIOUS)):
        if is_snapshot_file(file.name):
            file.rename(folder / file.name)
    return folder
