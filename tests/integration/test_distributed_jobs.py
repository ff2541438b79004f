"""Runs that are submitted to a cluster as Ray jobs, through the job server of a real head node."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from qfleet.cli import main as cli
from qfleet.cluster import jobs as jobs_module
from qfleet.cluster.jobs import RUN, JobServer
from qfleet.cluster.upload import upload_of
from rl.errors import RunFault
from tests.conftest import ROOT
from tests.integration.runs import newest_checkpoint_state, run_command

TRAIN = ["--actors.count", 1, "--learner.device", "cpu", "--replay.limiter.min-size", 300, "--evaluation.period", 0]


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def head():
    """(URL of the job server, folder of the checkout) of a Ray head with 5 CPUs.

    Ray's supervisor of a job looks for the head's address in the file that `ray start` writes, so the Ray of this test
    has a folder of its own with such a file.
    """
    from ray.cluster_utils import Cluster

    folder, checkout = (Path(tempfile.mkdtemp(prefix=name, dir="/tmp")) for name in ("qf-ray-", "qf-head-"))
    (checkout / ".venv").symlink_to(sys.prefix)
    before, os.environ["PYTHONPATH"] = os.environ.get("PYTHONPATH"), str(ROOT)
    port = free_port()
    args = {"num_cpus": 5, "include_dashboard": True, "dashboard_port": port, "temp_dir": str(folder)}
    args["dashboard_agent_listen_port"] = free_port()  # by default the same for every Ray of a machine
    cluster = Cluster(initialize_head=True, head_node_args=args)
    (folder / "ray_current_cluster").write_text(cluster.address)
    yield f"http://127.0.0.1:{port}", checkout
    cluster.shutdown()
    shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(checkout, ignore_errors=True)
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


@pytest.fixture
def qfleet(head):
    """``qfleet(command, *args, after=())`` is (exit status, output) of a command on the head."""
    url, checkout = head

    def run(command, *args, after=()):
        return run_command(command, *args, "--jobs", url, "--checkout", checkout, *after)

    return run


@pytest.fixture
def server(head):
    with JobServer(head[0]) as server:
        yield server


class InterruptAfter(io.StringIO):
    """Standard output that presses Ctrl-C when ``text`` appears in it."""

    def __init__(self, text):
        super().__init__()
        self._text = text

    def write(self, text):
        written = super().write(text)
        if self._text and self._text in self.getvalue():
            self._text = ""
            os.kill(os.getpid(), signal.SIGINT)
        return written


@pytest.mark.slow  # `make cluster-test` does the same over ssh
@pytest.mark.timeout(400)
def test_a_run_is_submitted_watched_stopped_and_resumed(head, qfleet, tmp_path):
    url, checkout = head
    run = checkout / "runs" / "first"
    endless = ["train", "cartpole", *TRAIN, "--evaluation.goal", "inf", "--max-steps", 1_000_000]
    status, output = qfleet("submit", "--name", "first", "--detach", after=["--", *endless])
    assert status == 0, output
    assert "first is submitted as job first\n" in output
    assert f"qfleet stop first --jobs {url} --checkout {checkout}" in output
    out, err = InterruptAfter("updates"), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        assert cli.main(["logs", "first", "--jobs", url]) == 130
    assert (
        f"qfleet: no longer watching; the run goes on\n  watch it      qfleet logs first --jobs {url}" in err.getvalue()
    )
    deadline = time.monotonic() + 120
    while json.loads((run / "status.json").read_text())["updates"] < 10:
        assert time.monotonic() < deadline, out.getvalue()
        time.sleep(0.2)
    status, output = qfleet("submit", "--name", "first", after=["--", *endless])
    assert (status, "qfleet: first is running as job first: write another --name" in output) == (2, True), output
    status, output = qfleet("status", "first", after=["--json"])
    assert status == 0, output
    assert "Running entrypoint" not in output
    assert json.loads(output.splitlines()[-1])["env"] == "CartPole-v1"
    status, output = qfleet("status")
    assert (status, bool(re.search(r"first +running ", output))) == (0, True), output
    status, output = qfleet("stop", "first")
    assert status == 0, output
    assert "first has ended after" in output
    assert json.loads((run / "summary.json").read_text())["updates"] == newest_checkpoint_state(run)["updates"] > 0
    status, output = qfleet("logs", "first")
    assert status == 0, output
    lines = output.splitlines()
    assert lines[0] == "Qfleet CartPole-v1  runs/first"
    assert "stopping: writing a last checkpoint ..." in lines
    assert lines[-1] == "qfleet: job first: stopped"
    status, output = qfleet("stop", "first")
    assert (status, "qfleet: first does not run: its last job, first, has ended (stopped)" in output) == (2, True)
    status, output = qfleet("submit", "--name", "first", after=["--", *endless])
    assert status == 2, output
    assert "qfleet: runs/first already holds a run: write another directory" in output
    steps = newest_checkpoint_state(run)["agent_steps"] + 500
    status, output = qfleet("submit", after=["--", "train", "--resume", "first", "--max-steps", steps, "--json"])
    assert status == 0, output
    assert "first is submitted as job first-3\n" in output
    assert '"agent_steps": ' in output
    assert newest_checkpoint_state(run)["agent_steps"] >= steps
    assert qfleet("fetch", "first")[0] == 2


def test_a_stopped_job_has_time_for_its_last_checkpoint(server):
    """Ray kills a job 3 seconds after SIGTERM, unless it is told otherwise."""
    server.submit(
        "slow-end", "trap 'sleep 5; echo saved; exit 0' TERM; echo ready; while :; do sleep 0.1; done", {}, {}
    )
    deadline = time.monotonic() + 120
    while "ready" not in server.log("slow-end"):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    server.stop("slow-end")
    assert server.await_end("slow-end", 30.0).exit_status() == 143
    assert "saved" in server.log("slow-end").splitlines()


@pytest.mark.parametrize(("command", "status"), [("exit 3", 3), ("kill -KILL $$", 137), ("exec nothing", 127)])
def test_the_exit_status_is_that_of_the_command(server, command, status):
    server.submit(f"status-{status}", command, {RUN: "other"}, {})
    assert server.follow(f"status-{status}", lambda text: None).exit_status() == status


def test_an_upload_is_first_on_the_path_and_leaves_out_what_gitignore_names(server, tmp_path):
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "qfleet"\n')
    (tmp_path / ".gitignore").write_text("secret.txt\n")
    for name in ("qfleet/__init__.py", "runs/a/config.yaml", ".venv/bin/python", "secret.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    # -P: without the current directory, in which Python would find the upload anyway.
    command = f"ls -A; exec {sys.executable} -P -c 'import qfleet, os; print(os.path.relpath(qfleet.__file__))'"
    server.submit("uploaded", command, {}, upload_of(tmp_path))
    output = []
    assert server.follow("uploaded", output.append).exit_status() == 0
    assert "".join(output) == ".gitignore\npyproject.toml\nqfleet\nqfleet/__init__.py\n"


class Relay:
    """Forwards TCP connections from ``port`` to ``to`` until `cut`, which also closes those that are open."""

    def __init__(self, to, port=0):
        self._to, self._open = to, []
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                client = self._listener.accept()[0]
                server = socket.create_connection(("127.0.0.1", self._to))
                self._open += [client, server]
                for source, target in ((client, server), (server, client)):
                    threading.Thread(target=self._copy, args=(source, target), daemon=True).start()

    def _copy(self, source, target):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def cut(self):
        for one in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


def test_a_broken_connection_is_made_again_and_nothing_is_shown_twice(head, monkeypatch):
    relay = Relay(int(head[0].rpartition(":")[2]))
    output, relays = [], [relay]
    with JobServer(f"http://127.0.0.1:{relay.port}") as server:
        server.submit("counting", "for i in 1 2 3 4 5 6 7 8; do echo line $i; sleep 1; done", {}, {})

        def write(text):
            output.append(text)
            if "line 2" in text:
                relays[0].cut()
                threading.Timer(2.0, lambda: relays.append(Relay(relays[0]._to, relays[0].port))).start()

        assert server.follow("counting", write).exit_status() == 0
        assert "".join(output) == "".join(f"line {i}\n" for i in range(1, 9))
        assert len(relays) == 2
        relays[1].cut()
        monkeypatch.setattr(jobs_module, "RECONNECT_TIMEOUT", 2.0)
        started = time.monotonic()
        with pytest.raises(RunFault, match="does not answer|no job server answers"):
            server.follow("counting", output.append)
        assert time.monotonic() - started < 10
