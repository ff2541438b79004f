"""Copies what a person needs of a run: configuration, curves, summary, best weights and the newest checkpoint."""

from __future__ import annotations

import hashlib
import json
import posixpath
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from learner.checkpoint import MANIFEST, SAVE_NAME
from qfleet.run.directory import BEST, CHECKPOINTS, CONFIG, EVALS, HISTORY, METRICS, SCALE, STATUS, SUMMARY, RunDir
from qfleet.run.remote import Remote, is_url, last_part, local_path
from qfleet.run.uploads import LOCK
from rl.errors import BadInput, RunFault

FETCHED = "fetched.json"  # in a copy: where it came from, and the names of its checkpoints
BOARD = "tensorboard"
FILES = (CONFIG, HISTORY, METRICS, EVALS, SUMMARY)
# What a new copy replaces: what a fetch writes, and what a run that trained in the copy has left.
REPLACED = {*FILES, CHECKPOINTS, BEST, BOARD, FETCHED, STATUS, f".{STATUS}", SCALE, LOCK, "replay"}
TRIES = 3  # a run that goes on may delete a checkpoint while it is copied


@dataclass(frozen=True)
class Copied:
    """What a copy of a run holds."""

    names: list[str]
    """Files and folders."""
    checkpoint: str | None
    """Name of the newest checkpoint."""
    best: str | None
    """Name of the best weights' checkpoint."""


def copy_run(source: str, target: Path) -> Copied:
    """Copy the run in the directory or at the URL ``source`` into the new directory ``target``.

    The run may go on meanwhile. Raises BadInput if there is no run, or it cannot be read; then ``target`` may hold a
    part of it. Raises OSError if ``target`` cannot be made.
    """
    target.mkdir(parents=True)
    try:
        fs, path = _files_of(source)
        if not fs.isdir(path):
            raise BadInput(f"{source} is not a directory: write the directory or the URL of a run")
        fs.invalidate_cache()
        # Before the curves, so that these reach at least as far.
        checkpoint = _copy_newest(fs, posixpath.join(path, CHECKPOINTS), target / CHECKPOINTS)
        best = _copy_newest(fs, posixpath.join(path, BEST), target / BEST)
        names = [name for name in FILES if _copy_file(fs, posixpath.join(path, name), target / name)]
        if CONFIG not in names and checkpoint is None:
            raise BadInput(f"{source} holds no run ({CONFIG} is missing): write the directory or the URL of a run")
        boards = posixpath.join(path, BOARD)
        for file in fs.find(boards) if fs.isdir(boards) else []:
            _copy_file(fs, file, target / BOARD / posixpath.relpath(file, boards))
    except OSError as error:
        why = " ".join(str(error).split())
        raise BadInput(f"{source} cannot be read ({why}): check the address and the keys") from error
    names += [BOARD] if (target / BOARD).is_dir() else []
    (target / FETCHED).write_text(json.dumps({"from": source, "checkpoints": _saves(target)}, indent=1) + "\n")
    return Copied(names, checkpoint, best)


def check_copy(copy: Path) -> Copied:
    """What the copy holds. Raises RunFault if a checkpoint in it does not match its checksums."""
    for name in _saves(copy):
        if not _is_whole(copy / name):
            raise RunFault(f"{name} was damaged on its way: fetch the run again")
    names = [name for name in (*FILES, BOARD) if (copy / name).exists()]
    newest = {Path(name).parent.name: Path(name).name for name in _saves(copy)}
    return Copied(names, newest.get(CHECKPOINTS), newest.get(BEST))


def put_in_place(copy: Path, target: Path, source: str) -> None:
    """Rename the whole ``copy`` to ``target``, in place of an earlier copy of the same run there.

    What a user has added to that one, such as videos, stays. ``source`` says where the copy came from. Raises BadInput as
    `check_place` does.
    """
    check_place(target)
    data = json.loads((copy / FETCHED).read_text())
    (copy / FETCHED).write_text(json.dumps({**data, "from": source}, indent=1) + "\n")
    old = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    if target.exists():
        target.rename(old)
    copy.rename(target)
    for added in [file for file in old.iterdir() if file.name not in REPLACED] if old.exists() else []:
        added.rename(target / added.name)
    shutil.rmtree(old, ignore_errors=True)


def check_place(target: Path) -> None:
    """Raise BadInput if a new copy must not replace ``target``: it is no copy, was trained further, or is being trained."""
    if not target.exists():
        return
    try:
        known = json.loads((target / FETCHED).read_text())["checkpoints"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{target} exists and is no fetched copy: write another folder with --to") from error
    if set(_saves(target)) - set(known):
        raise BadInput(f"{target} was trained further since it was fetched: write another folder with --to")
    if (target / LOCK).exists():  # also after a run there has ended
        run = RunDir(target)
        run.lock()
        run.unlock()


def _files_of(source: str) -> tuple[Any, str]:
    """The file system of the run in the directory or at the URL ``source``, and its path there. Raises BadInput."""
    if is_url(source):
        remote = Remote(source)
        return remote.files, remote.path
    return LocalFileSystem(), str(local_path(source).absolute())


def _saves(folder: Path) -> list[str]:
    """The complete saves in a run's directory on this machine, as checkpoints/NAME and best/NAME, oldest first."""
    found = [m.parent for kind in (CHECKPOINTS, BEST) for m in (folder / kind).glob(f"*/{MANIFEST}")]
    found = [save for save in found if SAVE_NAME.fullmatch(save.name)]
    return [f"{save.parent.name}/{save.name}" for save in sorted(found, key=lambda save: _order(save.name))]


def _order(name: str) -> tuple[int, int]:
    step, _, number = name.partition("-")
    return int(step), int(number or 0)


def _copy_newest(fs: Any, folder: str, target: Path) -> str | None:
    """Copy the newest complete and undamaged save in ``folder``; returns its name, None if there is none."""
    for _ in range(TRIES):
        fs.invalidate_cache()
        names = [last_part(entry) for entry in (fs.ls(folder, detail=False) if fs.isdir(folder) else [])]
        saves = sorted((name for name in names if SAVE_NAME.fullmatch(name)), key=_order, reverse=True)
        for name in saves:
            save = target / name
            try:
                if not fs.exists(posixpath.join(folder, name, MANIFEST)):
                    continue
                for file in fs.find(posixpath.join(folder, name)):
                    _copy_file(fs, file, save / posixpath.basename(file))
            except FileNotFoundError:  # the run has just deleted it
                pass
            if _is_whole(save):
                return name
            shutil.rmtree(save, ignore_errors=True)
        if not saves:
            return None
    return None


def _is_whole(save: Path) -> bool:
    """Whether all files of a save are there and match its manifest."""
    try:
        sums = json.loads((save / MANIFEST).read_bytes())["sha256"]
        return all(hashlib.sha256((save / name).read_bytes()).hexdigest() == digest for name, digest in sums.items())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _copy_file(fs: Any, source: str, target: Path) -> bool:
    """Copy a file; returns whether it exists. A CSV file loses a last row that is written only in part."""
    try:
        data = bytes(fs.cat_file(source))
    except FileNotFoundError:
        return False
    if source.endswith(".csv"):
        data = data[: data.rfind(b"\n") + 1]
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)
    return True
