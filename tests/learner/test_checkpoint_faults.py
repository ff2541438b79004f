"""Saves that are killed at any moment: the old or the new checkpoint is complete, and the next save cleans up."""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from learner.checkpoint import Checkpoint, CheckpointStore
from tests.conftest import ROOT

KILLED = """
import logging, os, signal, sys
import numpy as np
from learner.checkpoint import Checkpoint, CheckpointStore

root, again, keep = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"}  # audit events; the n-th kills the process
logging.disable(logging.NOTSET)
warnings = []
logging.getLogger("qfleet.checkpoint").addFilter(lambda record: warnings.append(record.getMessage()) or True)

def checkpoint(mark):
    return Checkpoint({"online": {"w": np.full(3, mark, np.float32)}, "optimizer": {"s": np.array(mark)}}, {"mark": mark})

def save_and_die(path, at):
    seen = 0
    def hook(event, args):
        nonlocal seen
        if event in EVENTS and path in str(args[0]):
            seen += 1
            if seen == at:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    CheckpointStore(path, keep).save(again, checkpoint(2))
    os._exit(0)

at, found = 0, []
while True:
    at += 1
    path = f"{root}/{at}"
    CheckpointStore(path, keep).save(5, checkpoint(1))
    child = os.fork()
    if child == 0:
        save_and_die(path, at)
    done = os.waitpid(child, 0)[1] == 0
    loaded = CheckpointStore(path, keep).load_newest()
    assert loaded is not None, at
    assert loaded.arrays["online"]["w"].tolist() == [loaded.state["mark"]] * 3, at
    found.append(loaded.state["mark"])
    store = CheckpointStore(path, keep)
    store.save(again, checkpoint(3))
    assert store.load_newest().state == {"mark": 3}, at
    assert len(os.listdir(path)) == min(keep, len({5, again})), (at, os.listdir(path))
    if done:
        break
assert not warnings, warnings
print(*found)
"""


@pytest.mark.parametrize(
    ("again", "keep"), [(5, 2), (6, 1), (6, 2)], ids=["same step", "next step, keep 1", "next step, keep 2"]
)
def test_a_save_that_is_killed_at_any_moment_leaves_a_complete_checkpoint(tmp_path, again, keep):
    words = [sys.executable, "-c", KILLED, str(tmp_path), str(again), str(keep)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    marks = done.stdout.split()
    assert len(marks) > 8
    assert (marks[0], marks[-1]) == ("1", "2")
    assert marks == sorted(marks)  # the old checkpoint up to some moment, then the new one


class Died(BaseException):
    """Stands for the death of the process: no handler of Exception catches it."""


@pytest.mark.parametrize("again", [5, 6])
def test_an_interrupted_save_to_a_url_is_never_loaded_and_is_cleaned_up(tmp_path, monkeypatch, caplog, again):
    def checkpoint(mark):
        return Checkpoint({"online": {"w": np.full(3, mark, np.float32)}}, {"mark": mark})

    calls = {name: getattr(MemoryFileSystem, name) for name in ("pipe_file", "rm_file", "rm")}
    left = 0

    def dying(name):
        def call(self, *args, **kwargs):
            nonlocal left
            left -= 1
            if left == 0:
                raise Died
            return calls[name](self, *args, **kwargs)

        return call

    marks = []
    for at in range(1, 30):
        store = CheckpointStore(f"memory://{tmp_path.name}/{at}", keep=1)
        store.save(5, checkpoint(1))
        left = at
        with monkeypatch.context() as patch:
            for name in calls:
                patch.setattr(MemoryFileSystem, name, dying(name))
            try:
                store.save(again, checkpoint(2))
                died = False
            except Died:
                died = True
        marks.append(store.load_newest().state["mark"])
        store.save(again, checkpoint(3))
        assert store.load_newest().state == {"mark": 3}
        assert len(store.fs.ls(store.path)) == 1
        if not died:
            break
    assert len(marks) > 4
    assert (marks[0], marks[-1]) == (1, 2)
    assert marks == sorted(marks)
    assert "damaged" not in caplog.text


def test_a_checkpoint_is_synced_before_it_is_renamed(tmp_path, monkeypatch):
    import os

    synced, renamed = [], []
    fsync, rename = os.fsync, os.rename
    monkeypatch.setattr(
        os, "fsync", lambda handle: (synced.append(os.readlink(f"/proc/self/fd/{handle}")), fsync(handle))
    )
    monkeypatch.setattr(os, "rename", lambda a, b: (renamed.append((b, list(synced))), rename(a, b)))
    store = CheckpointStore(str(tmp_path))
    folder = store.save(7, Checkpoint({"online": {"w": np.ones(3, np.float32)}}, {}))
    ((name, before),) = renamed
    assert str(name) == folder
    files = {*("online.safetensors", "state.json", "MANIFEST.json"), os.path.basename(folder)}
    assert {re.sub(r"^\.|\.[0-9a-f]{32}$", "", os.path.basename(path)) for path in before} == files
    assert synced[-1] == str(tmp_path)
