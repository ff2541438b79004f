"""Restores a shard from the newest of its snapshots that is undamaged."""

from __future__ import annotations

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
    of these is, then with ``set_aside`` the files are moved into a folder, else BadInput is raised; so it is if the
    snapshot has observations of another shape or type. Raises OSError if the directory cannot be written.
    """
    found, faults = _read_manifests(directory, shard.spec)
    snapshot = None
    for manifest in found:
        if faults and manifest["state"] is None:  # of a shard that was still empty
            break
        try:
            _load(directory, shard, manifest)
            snapshot = manifest
            break
        except DAMAGE as error:
            faults.append(_line(error))
    damage = f"the newest snapshot is damaged ({faults[0]})" if faults else ""
    if snapshot is None and faults:
        snapshot = _load_part(directory, shard, found)
        if snapshot is not None:
            damage += ", and only a part of it is whole"
        elif set_aside:
            damage += f" and was moved to {_move_away(directory)}"
        else:
            raise BadInput(
                f"the snapshot in {directory} cannot be restored ({faults[0]}): write another directory, or move this one "
                "away to start with an empty shard"
            )
    if snapshot is None:
        generation = random_generation() if faults else 0  # that of a damaged manifest is not known
        snapshot, found = {"number": 0, "time": 0.0, "spec": _described(shard.spec), "state": None, "files": {}}, []
    else:
        # A restored shard writes its generation into both manifests before it uses it, so either knows the last one.
        generation = 1 + max(manifest["generation"] for manifest in found)
    older = next((manifest for manifest in found if manifest["number"] < snapshot["number"]), snapshot)
    shard.generation = generation
    size, age = shard.storage.size, max(0.0, time.time() - snapshot["time"])
    what = Restored(size, age) if size else None
    return Restoration(what, damage, {**snapshot, "generation": generation}, {**older, "generation": generation})


def _line(error: Exception) -> str:
    """A fault of a file as one line."""
    return f"{error} is missing" if isinstance(error, KeyError) else " ".join(str(error).split())


def _read_manifests(directory: Path, spec: ObservationSpec) -> tuple[list[dict[str, Any]], list[str]]:
    """The readable manifests, the newer first; and what is wrong with the others, if the newer is one of them.

    Raises BadInput if they have other observations than ``spec``.
    """
    found: list[dict[str, Any]] = []
    faults: dict[str, str] = {}
    for name in (MANIFEST, PREVIOUS):
        try:
            manifest = read_manifest(directory / name)
        except FileNotFoundError:
            faults[name] = f"{name} is missing"
        except DAMAGE as error:
            faults[name] = f"{name}: {_line(error)}"
        else:
            if manifest["spec"] != _described(spec):
                raise BadInput(
                    f"{directory / name} has observations {describe_spec(manifest['spec'])}, not "
                    f"{describe_spec(_described(spec))}: write another directory, or start the shard with the observations "
                    "of the snapshot"
                )
            found.append(manifest)
    was_empty = all(manifest["state"] is None for manifest in found) and not (directory / MANIFEST).exists()
    return found, [] if was_empty else [text for name, text in faults.items() if name == MANIFEST]


def _described(spec: ObservationSpec) -> dict[str, Any]:
    return {"frame_shape": list(spec.frame_shape), "dtype": spec.dtype, "stack": spec.stack}


def _load(directory: Path, shard: Shard, manifest: dict[str, Any]) -> None:
    """Restore the whole snapshot. Raises one of DAMAGE if a file is missing or damaged."""
    state, files = manifest["state"], manifest["files"]
    if state is not None:  # else the shard ended before its first snapshot
        shard.set_state(state, read_segments(directory, state["first_key"], files), _td(directory, manifest))


def _td(directory: Path, manifest: dict[str, Any]) -> Float32:
    return np.frombuffer(read_file(directory, f"td-{manifest['number']}.bin", manifest["files"]), np.float32)


def _load_part(directory: Path, shard: Shard, manifests: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Restore the items that are newer than all damaged chunks, of the first manifest that has some.

    Returns its manifest without the other items; None if there are none.
    """
    for manifest in (m for m in manifests if m["state"] is not None):
        try:
            part = _whole_part(directory, manifest)
            _load(directory, shard, part)
        except DAMAGE:
            continue
        if shard.storage.size:
            return part
    return None


def _whole_part(directory: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """A manifest without the damaged chunks and all older ones; writes a file of TD errors for it.

    Raises one of DAMAGE if nothing is left.
    """
    state, files, number = manifest["state"], manifest["files"], manifest["number"] + 1
    first, chunks = state["first_key"], {}
    for name in chunk_names(files):
        try:
            read_file(directory, name, files)
            chunks[name] = files[name]
        except DAMAGE:
            first, chunks = key_range(name)[1], {}
    if not chunks:
        raise ValueError("the newest chunk is damaged")
    td = _td(directory, manifest)[first - state["first_key"] :]
    chunks[f"td-{number}.bin"] = write_file(directory / f"td-{number}.bin", [td.tobytes()])
    return {**manifest, "number": number, "state": {**state, "first_key": first}, "files": chunks}


def _move_away(directory: Path) -> Path:
    """Move all files of snapshots into a new folder in ``directory``; returns it."""
    folder = directory / f"damaged-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    folder.mkdir()
    for file in directory.iterdir():
        if is_snapshot_file(file.name):
            file.rename(folder / file.name)
    return folder
