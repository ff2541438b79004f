"""Causes the faults of `qfleet bench chaos`, and waits until the run has recovered from them."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

from benchmarks.chaos_audit import Death
from benchmarks.chaos_recovery import Floor, recovered_at
from benchmarks.chaos_run import ChaosRun
from benchmarks.chaos_schedule import Fault, Kind
from learner.checkpoint import MANIFEST as CHECKPOINT
from learner.checkpoint import SAVE_NAME
from replay.store.snapshot_files import MANIFEST, PREVIOUS, read_manifest
from rl.errors import RunFault

GIVE_UP = 60.0  # seconds from a fault after which the part counts as not recovered
PARTS: dict[Kind, int] = {"actor": 3, "shard": 2, "learner": 1, "evaluator": 1, "board": 1, "weight_store": 1}
STATUS_LAG = 1.5  # seconds by which the counts of a status may be older than its time
DAMAGE_TIMEOUT = 30.0  # seconds until there is a snapshot of which some files are its own


@dataclass
class Struck:
    """A fault that was caused, and what came of it."""

    fault: Fault
    part: str
    """What the run calls it."""
    at: float
    """Unix time."""
    before: list[int]
    """Processes of this kind before the fault."""
    evaluations: int = 0
    floor: Floor | None = None
    restored: float = 0.0
    """Unix time of the snapshot that a shard can restore."""
    address: str = ""
    """Of a shard."""
    new: int | None = None
    """Id of the part's next process."""
    new_at: float = 0.0
    """When that was first seen."""
    new_version: int | None = None
    """The version of the weights that the run had published some time later."""
    works_at: float | None = None
    recovered_at: float | None = None

    @property
    def seconds(self) -> float | None:
        """From the fault to the recovery; None if there was none."""
        return None if self.recovered_at is None else self.recovered_at - self.at

    @property
    def why_not(self) -> str:
        """What has not recovered."""
        if not self.before:
            return "the fault was left out, because a part of this kind is missing"
        if self.new is None:
            return "its process was not started again"
        return "its new process does not work" if self.works_at is None else "updates/s stay low"

    @property
    def death(self) -> Death:
        """What the fault of a shard explains."""
        return Death(self.address, self.restored, self.new_at or time.time())


def strike(run: ChaosRun, fault: Fault) -> Struck:
    """Cause the fault, once all parts of its kind are there; without them, after GIVE_UP seconds, there is no recovery.

    Raises RunFault if the run ends.
    """
    kind, how = fault.kind, fault.how
    if not run.wait(GIVE_UP, lambda: _all_named(run, kind)):
        return Struck(fault, kind, time.time(), before=[])
    before = run.parts(kind)
    pid = before[int(fault.choice * len(before))]
    struck = Struck(fault, run.name(kind, pid), time.time(), before)
    if kind == "shard":
        struck.address = run.addresses[int(struck.part.rpartition("-")[2])]
    folder = run.directory / "replay" / struck.part
    checkpoints = run.directory / "checkpoints"
    struck.floor = (
        Floor(struck.at, newest_checkpoint(checkpoints, skip=how == "corrupt")) if kind == "learner" else None
    )
    if how == "corrupt" and kind == "learner":
        flip_bytes(_newest_saves(checkpoints)[-1] / "online.safetensors")
    if how == "corrupt" and kind == "shard":
        damage_snapshot(run, pid, folder, fault.choice)
    struck.at = time.time()
    os.kill(pid, signal.SIGSTOP if how == "freeze" else signal.SIGKILL)
    if kind == "shard":
        if how != "freeze":
            _await_death(pid)
        struck.restored = read_manifest(folder / (PREVIOUS if how == "corrupt" else MANIFEST))["time"]
    run.look()
    struck.evaluations = run.evaluations
    return struck


def _all_named(run: ChaosRun, kind: Kind) -> bool:
    """Whether all parts of this kind live, and it is known which is which."""
    pids = run.parts(kind)
    with contextlib.suppress(psutil.NoSuchProcess):
        return len(pids) == PARTS[kind] and len({run.name(kind, pid) for pid in pids}) == len(pids)
    return False


def _await_death(pid: int) -> None:
    """Wait until a killed process can write nothing more. Raises RunFault after 10 s."""
    deadline = time.monotonic() + 10.0
    with contextlib.suppress(psutil.NoSuchProcess):
        while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            if time.monotonic() > deadline:
                raise RunFault(f"process {pid} still lives 10 s after SIGKILL")
            time.sleep(0.01)


def _newest_saves(checkpoints: Path) -> list[Path]:
    """The complete checkpoints, the newest last."""
    entries = os.listdir(checkpoints) if checkpoints.is_dir() else []
    names = [m for m in map(SAVE_NAME.fullmatch, entries) if m]
    names.sort(key=lambda m: (int(m[1]), int(m[2] or 0)))
    return [checkpoints / m[0] for m in names if (checkpoints / m[0] / CHECKPOINT).exists()]


def newest_checkpoint(checkpoints: Path, skip: bool = False) -> int:
    """Updates of the newest checkpoint, or with ``skip`` of the one before it; 0 if there is none."""
    saves = _newest_saves(checkpoints)[: -1 if skip else None]
    return int(saves[-1].name[:12]) if saves else 0


def flip_bytes(file: Path) -> None:
    """Invert 16 bytes in the middle of ``file``."""
    with file.open("r+b") as opened:
        opened.seek(file.stat().st_size // 2)
        data = opened.read(16)
        opened.seek(-len(data), os.SEEK_CUR)
        opened.write(bytes(b ^ 0xFF for b in data))


def damage_snapshot(run: ChaosRun, pid: int, folder: Path, choice: float) -> None:
    """Stop the shard's process ``pid``, and damage a file that only its newest snapshot in ``folder`` lists.

    So the snapshot before it is whole. ``choice`` in [0, 1) is which of these files. Raises RunFault if there was none for
    DAMAGE_TIMEOUT seconds.
    """

    def own_files() -> list[str]:
        newest, older = (read_manifest(folder / name)["files"] for name in (MANIFEST, PREVIOUS))
        return sorted(newest.keys() - older.keys())

    deadline = time.monotonic() + DAMAGE_TIMEOUT
    while time.monotonic() < deadline:
        os.kill(pid, signal.SIGSTOP)  # so that it writes no other snapshot meanwhile
        with contextlib.suppress(OSError, ValueError, KeyError):  # it was stopped between two files
            if files := own_files():
                flip_bytes(folder / files[int(choice * len(files))])
                return
        os.kill(pid, signal.SIGCONT)
        run.wait(1.0)
    raise RunFault(f"{folder} has had no second snapshot for {DAMAGE_TIMEOUT:g} s")


def await_recovery(run: ChaosRun, struck: Struck, fault_free: float) -> None:
    """Wait until the run has recovered, at most GIVE_UP seconds from the fault; the result is in ``struck``.

    Raises RunFault if the run ends.
    """

    def recovered() -> bool:
        now = time.time()
        if struck.new is None:
            struck.new = next((p for p in run.parts(struck.fault.kind) if p not in struck.before), None)
            struck.new_at = now
        elif struck.new_version is None and run.samples[-1].time > struck.new_at + STATUS_LAG:
            struck.new_version = run.samples[-1].weights_version
        if struck.works_at is None and struck.new is not None and works(run, struck):
            struck.works_at = now
        if struck.works_at is not None:
            struck.recovered_at = recovered_at(run.samples, struck.at, struck.works_at, fault_free)
        return struck.recovered_at is not None

    if not struck.before:
        return
    run.wait(struck.at + GIVE_UP - time.time(), recovered)
    if struck.new is None:
        struck.new_at = time.time()


def works(run: ChaosRun, struck: Struck) -> bool:
    """Whether the part's new process does its work.

    An actor: replay has acknowledged a segment of it. A shard: it has acknowledged a segment. The learner: the updates
    grow. The evaluator: an evaluation has ended. The board: it shows a status of after its start. The weight store: a
    segment was played with weights that were published after its start.
    """
    kind, new_at = struck.fault.kind, struck.new_at
    later = [s for s in run.samples if s.time > new_at]
    checks: dict[str, Any] = {
        "actor": lambda: any(pid == struck.new for _, pid in run.acknowledged),
        "shard": lambda: run.answers.get(_address(run, struck), 0.0) > new_at,
        "learner": lambda: any(b.updates > a.updates for a, b in pairwise(later)),
        "evaluator": lambda: run.evaluations > struck.evaluations,
        "board": lambda: run.board_at > new_at,
        "weight_store": lambda: struck.new_version is not None and run.newest_version > struck.new_version,
    }
    return bool(checks[kind]())


def _address(run: ChaosRun, struck: Struck) -> str:
    """The shard's address now: it may have got another port."""
    return run.addresses[int(struck.part.rpartition("-")[2])]
