"""Runs as a user starts them, in processes of their own, and what tests ask of them."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import subprocess
import sys
import time

import psutil

from qfleet.cli import main as cli
from replay.store.snapshot_files import open_snapshot

FAST = ["--learner.device", "cpu", "--learner.threads", "1"]


def qfleet(*args, **kwargs):
    command = [sys.executable, "-m", "qfleet", *map(str, args)]
    kwargs.setdefault("stdout", subprocess.PIPE)
    return subprocess.Popen(command, stderr=subprocess.STDOUT, text=True, **kwargs)


def said(*args):
    """Status and output of a short command, made in this process: another would import for five seconds first."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        status = cli.main([str(a) for a in args])
    return status, out.getvalue()


def finish(process, seconds):
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(f"still running after {seconds} s:\n{process.communicate()[0]}") from None
    return output


def rows(file):
    with file.open() as opened:
        return list(csv.DictReader(opened))


def evaluation(run):
    return json.loads(said("eval", run, "--weights", "last", "--episodes", 20, "--json")[1].splitlines()[-1])


def wait_for_checkpoint(process, run):
    deadline = time.monotonic() + 100
    while not list(run.glob("checkpoints/*/MANIFEST.json")) or newest_state(run)["updates"] < 50:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "no checkpoint within 100 s"
        time.sleep(0.2)


def newest_state(run):
    newest = sorted(p for p in (run / "checkpoints").iterdir() if p.name[0].isdigit())[-1]
    return json.loads((newest / "state.json").read_text())


def child(process, name):
    """The Ray worker of that class below ``process``, or None; one that has just ended is none."""
    for c in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if c.name().startswith(f"ray::{name}"[:15]) and name in "".join(c.cmdline()):
                return c
    return None


def wait_until(process, condition, seconds=90):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"did not come about within {seconds} s"
        time.sleep(0.1)


def versions_acted_on(run):
    """Of the learner's weights, by the steps in the last snapshot of a run's only shard."""
    _, stored = open_snapshot(run / "replay" / "shard-0")
    return {int(v) for s in stored for v in s.segment.versions}


def saved_state(run):
    manifest = json.loads((run / "replay" / "shard-0" / "MANIFEST.json").read_text())
    return manifest["snapshot"]["state"] or {"end_key": 0}  # none was written yet
