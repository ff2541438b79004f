"""A run at a URL whose store is slow, hangs or fails at a chosen call. tests/integration/test_url_runs.py has a server."""

from __future__ import annotations

import gc
import json
import os
import signal
import tempfile
import threading
import time

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from learner.checkpoint import Checkpoint, CheckpointStore
from qfleet.api import train
from qfleet.run import remote, uploads
from qfleet.run.directory import RunDir
from rl.errors import BadInput, RunFault
from tests.qfleet.configs import short

URL = "store://bucket/run"


class Store(MemoryFileSystem):
    """A store in the memory of this process; a test's ``on_call(method, path)`` comes before each call on a file."""

    protocol = "store"

    @classmethod
    def _strip_protocol(cls, path):
        return MemoryFileSystem._strip_protocol(path.replace("store://", "memory://"))

    def cat_file(self, path, **kwargs):
        self.on_call("cat", path)
        return super().cat_file(path, **kwargs)

    def pipe_file(self, path, value, **kwargs):
        self.on_call("pipe", path)
        super().pipe_file(path, value, **kwargs)

    def rm_file(self, path):
        self.on_call("rm", path)
        super().rm_file(path)


@pytest.fixture
def store(tmp_path, monkeypatch):
    """An empty store, and a driver that is quick to renew, copy, and try again."""
    content = {"store": {}, "pseudo_dirs": [""], "on_call": staticmethod(lambda method, path: None)}
    fresh = type("FreshStore", (Store,), content)  # threads that an earlier test has left have another one
    fsspec.register_implementation("store", fresh, clobber=True)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name, seconds in {"PERIOD": 0.05, "RETRY": 0.05}.items():
        monkeypatch.setattr(uploads, name, seconds)
    return fresh(skip_instance_cache=True)


@pytest.fixture
def calls(store):
    """``calls(function)`` is told of each call from now on, as `on_call`."""
    return lambda function: setattr(type(store), "on_call", staticmethod(function))


@pytest.fixture
def hang(calls):
    """``hang(part)`` lets all writes of paths with ``part`` hang, until the event that it returns is set."""
    events = []

    def start(part):
        events.append(release := threading.Event())
        calls(lambda method, path: release.wait(60) if method == "pipe" and part in path else None)
        return release

    yield start
    for event in events:
        event.set()


def wait(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "not met within 10 s"
        time.sleep(0.01)


def lock_of(store):
    return json.loads(store.cat_file("/bucket/run/.lock"))


def check_renewed(store):
    before = lock_of(store)["time"]
    wait(lambda: lock_of(store)["time"] > before)


def take(store):
    """Write the lock of another process, which it would renew: this one may write its own at the same moment."""
    store.pipe_file("/bucket/run/.lock", b'{"owner": "x", "where": "process 7 on b", "time": 1}')


def checkpoint(updates=1):
    return Checkpoint({"online": {"w": np.ones(3, np.float32)}}, {"updates": updates})


def test_lock_and_status_are_renewed_before_the_start_and_during_a_long_save(store, hang):
    run = RunDir.create(URL, short())
    check_renewed(store)  # as while a resume downloads its checkpoint
    run.start(lambda line: None)
    hang("checkpoints")
    run.checkpoints.save(1, checkpoint())
    check_renewed(store)
    run.write_status({"updates": 7})
    wait(lambda: store.exists("/bucket/run/status.json"))
    with pytest.raises(BadInput, match="is being trained by another process"):
        RunDir(URL).lock()
    with pytest.raises(RunFault, match="is now being trained by process 7 on b"):
        wait(lambda: take(store) or run.check())
    run.unlock()
    assert lock_of(store)["owner"] == "x"


def test_the_lock_is_gone_after_unlock_and_after_a_start_that_fails(store, calls):
    def fail(method, path):
        if method == "pipe" and path.endswith("config.yaml"):
            time.sleep(0.2)
            raise OSError("disk quota")

    RunDir.create(URL, short()).unlock()
    store.rm("/bucket/run", recursive=True)
    calls(fail)
    with pytest.raises(BadInput, match="cannot be written .disk quota"):
        RunDir.create(URL, short())
    time.sleep(0.2)
    assert store.find("/bucket/run") == []


def test_each_call_of_a_save_has_a_deadline_and_nothing_of_it_follows_later(store, calls, hang, monkeypatch):
    monkeypatch.setattr(remote, "SAVE_TIMEOUT", 0.4)
    saves = RunDir(URL).checkpoints
    calls(lambda method, path: time.sleep(0.15))  # the whole save takes longer than the deadline
    saves.save(1, checkpoint(1))
    assert saves.load_newest().state["updates"] == 1
    release = hang("/online.safetensors")
    with pytest.raises(OSError, match="no answer within 0.4 s"):
        saves.save(2, checkpoint(2))
    calls(lambda method, path: pytest.fail("a call after the end"))
    release.set()
    time.sleep(0.2)
    assert not store.exists("/bucket/run/checkpoints/000000000002/MANIFEST.json")


@pytest.mark.parametrize("part", ["checkpoints", "tensorboard"])  # which hangs during the run, or only at its end
def test_the_end_of_a_run_takes_no_longer_than_its_deadline(part, store, hang, monkeypatch):
    for name, seconds in {"FINISH": 0.5, "BOARD_PERIOD": 1e9}.items():
        monkeypatch.setattr(uploads, name, seconds)
    run = RunDir.create(URL, short())
    (run.path / "tensorboard").mkdir()
    (run.path / "tensorboard" / "events").write_text("")
    run.start(lambda line: None)
    hang(part)
    run.checkpoints.save(9, checkpoint(9))
    started = time.monotonic()
    with pytest.raises(RunFault, match="could not be written at the end of the run: no answer; copy the files in"):
        run.finish()
    run.unlock()
    assert time.monotonic() - started < 5
    saves = CheckpointStore(str(run.path / "checkpoints")) if part == "checkpoints" else run.checkpoints
    assert saves.load_newest().state["updates"] == 9


def test_what_waits_is_written_at_the_end_as_soon_as_the_store_answers_again(store, calls):
    run = RunDir.create(URL, short())
    heard = []
    run.start(heard.append)

    def fail(method, path):
        if time.monotonic() < until:
            raise OSError("away")

    until = time.monotonic() + 0.5
    calls(fail)
    run.checkpoints.save(9, checkpoint(9))
    wait(lambda: heard)
    run.finish()
    run.unlock()
    assert time.monotonic() > until
    assert run.checkpoints.load_newest().state["updates"] == 9
    assert not store.exists("/bucket/run/.lock")


def test_signals_while_the_last_files_are_written_change_nothing(store, calls):
    sent = []

    def interrupt(method, path):
        last = method == "pipe" and path.endswith("summary.json"), method == "rm" and path.endswith(".lock")
        if any(last):
            sent.append(path)
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            time.sleep(0.1)

    def stop(result):
        calls(interrupt)
        os.kill(os.getpid(), signal.SIGINT)

    summary = train(short(), run_dir=URL, serial=True, on_episode=stop)
    assert summary["interrupted_by"] == signal.SIGINT
    assert len(sent) == 2
    assert RunDir.open(URL).checkpoints.load_newest().state["agent_steps"] == summary["agent_steps"]
    assert not store.exists("/bucket/run/.lock")


def test_the_first_error_goes_through_when_the_end_of_the_run_fails_too(store, calls, monkeypatch, capsys):
    monkeypatch.setattr(uploads, "FINISH", 0.3)

    def refuse(method, path):
        raise OSError("full")

    def fail(result):
        calls(refuse)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train(short(), run_dir=URL, serial=True, on_episode=fail)
    error = capsys.readouterr().err
    assert error.count("warning: ") == 2  # one when it began
    assert f"\nwarning: {URL} could not be written at the end of the run: full; copy the files in /" in error
    wait(lambda: not [t for t in threading.enumerate() if t.name == "lock at a URL"])


@pytest.mark.parametrize("is_lost", [True, False])
def test_the_working_folder_stays_only_if_something_is_left_in_it(is_lost, store, calls, monkeypatch, tmp_path):
    monkeypatch.setattr(uploads, "FINISH", 0.3)

    def refuse(method, path):
        raise OSError("full")

    def end(result):
        if is_lost:
            take(store)
        else:
            calls(refuse)

    with pytest.raises(RunFault):
        train(short(max_steps=300), run_dir=URL, serial=True, on_episode=end)
    gc.collect()
    assert len(list(tmp_path.glob("qfleet-*"))) == (0 if is_lost else 1)
