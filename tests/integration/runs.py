"""Helpers for tests that start `qfleet` in a process of its own, as a user does."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

from qfleet.cli import main as cli
from replay.store.snapshot_files import open_snapshot

FAST = ["--learner.device", "cpu", "--learner.threads", "1"]
SLOW_ENV = "tests.integration.slow_env:SlowCartPole-v1"  # for a run whose speed a test does not need


def start_qfleet(*args, **kwargs):
    """The process of the command `qfleet ARGS`; its stderr goes to its stdout."""
    return start_process([sys.executable, "-m", "qfleet", *args], **kwargs)


def start_process(command, **kwargs):
    """The process of ``command``; its stderr goes to its stdout."""
    kwargs.setdefault("stdout", subprocess.PIPE)
    return subprocess.Popen([*map(str, command)], stderr=subprocess.STDOUT, text=True, **kwargs)


MARK = "QFLEET_TEST_MARK"


def marked_environment():
    """This process's environment with a mark, by which `processes_left` knows all processes that inherit it."""
    return {**os.environ, MARK: f"{os.getpid()}-{time.time_ns()}"}


def processes_left(environment, seconds=20):
    """Command lines of the processes with the mark of ``environment`` that still live after ``seconds``."""
    mark, deadline = f"{MARK}={environment[MARK]}".encode(), time.monotonic() + seconds
    while True:
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (folder / "environ").read_bytes():
                    found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        if not any(found) or time.monotonic() > deadline:
            return [line for line in found if line]
        time.sleep(0.2)


def run_command(*args):
    """(exit status, output) of a short `qfleet` command, run in this process, which saves five seconds of imports."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        status = cli.main([str(a) for a in args])
    return status, out.getvalue()


def wait_for_output(process, seconds):
    """The whole output of ``process``, once it has ended. Raises AssertionError after ``seconds``."""
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(f"still running after {seconds} s:\n{process.communicate()[0]}") from None
    return output


def read_rows(file):
    """The rows of a CSV file, each a dict by column."""
    with file.open() as opened:
        return list(csv.DictReader(opened))


def evaluate_last_weights(run):
    """The figures of `qfleet eval` for the weights of the newest checkpoint."""
    return json.loads(run_command("eval", run, "--weights", "last", "--episodes", 20, "--json")[1].splitlines()[-1])


def wait_for_checkpoint(process, run):
    """Wait until ``run`` has a checkpoint of at least 50 updates."""
    deadline = time.monotonic() + 100
    while not list(run.glob("checkpoints/*/MANIFEST.json")) or newest_checkpoint_state(run)["updates"] < 50:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "no checkpoint within 100 s"
        time.sleep(0.2)


def newest_checkpoint_state(run):
    newest = sorted(p for p in (run / "checkpoints").iterdir() if p.name[0].isdigit())[-1]
    return json.loads((newest / "state.json").read_text())


def worker_process(process, name):
    """The running Ray worker of the class ``name`` that ``process`` started, as a psutil.Process, or None."""
    for c in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if c.name().startswith(f"ray::{name}"[:15]) and name in "".join(c.cmdline()):
                return c
    return None


def wait_until(process, condition, seconds=90):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"the condition was not met within {seconds} s"
        time.sleep(0.1)


def snapshot_weights_versions(run):
    """Versions of the weights that chose the actions in the last snapshot of the run's only shard, a set of ints."""
    _, stored = open_snapshot(run / "replay" / "shard-0")
    return {int(v) for s in stored for v in s.segment.versions}


def snapshot_state(run):
    """The shard state in the last snapshot of the run's only shard."""
    manifest = json.loads((run / "replay" / "shard-0" / "MANIFEST.json").read_text())
    return manifest["snapshot"]["state"] or {"end_key": 0}  # before the first snapshot
