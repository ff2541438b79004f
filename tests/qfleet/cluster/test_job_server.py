"""Job servers that cannot be used, and why a command over ssh failed: one line each."""

from __future__ import annotations

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest
import ray
from ray._private.runtime_env import packaging

from qfleet.cluster import job_client, jobs
from qfleet.cluster.head import reason
from qfleet.cluster.job_client import NoJobServer
from qfleet.cluster.jobs import JobServer, free_id
from qfleet.cluster.upload import upload_of, uploaded_sizes
from rl.errors import BadInput, RunFault
from tests.conftest import ROOT
from tests.qfleet.job_server import JobServerStub

SSH = "Attempting to establish dashboard locally at http://localhost:1/ connected to remote port 8265\n{}Error: "
FAILED = (
    "Failed to forward dashboard from remote port 8265 to local port 1. There are a couple possibilities: \n"
    " 1. The remote port is incorrectly specified \n 2. The local port 1 is already in use.\n The exception is: {}\n"
)


@pytest.mark.parametrize(
    ("ssh", "exception", "expected"),
    [
        (
            "Warning: Permanently added '10.0.0.1' (ED25519) to the list of known hosts.\r\n"
            "root@10.0.0.1: Permission denied (publickey).\r\n",
            "Command failed:\n\n  ssh -tt root@10.0.0.1\n",
            "root@10.0.0.1: Permission denied (publickey).",
        ),
        (
            "ssh: connect to host 10.0.0.1 port 22: Connection refused\r\n",
            "Command failed:\n\n  ssh -tt\n",
            "ssh: connect to host 10.0.0.1 port 22: Connection refused",
        ),
        ("", "Head node of cluster (pong) not found!", "Head node of cluster (pong) not found!"),
    ],
)
def test_the_reason_is_the_last_line_of_ssh_or_the_message_of_ray(ssh, exception, expected):
    assert reason(SSH.format(ssh) + FAILED.format(exception)) == expected


def test_a_command_that_says_nothing():
    assert reason("") == "it ended without a message"


OWNER = """
import sys, tempfile, time
from qfleet.cluster.head import start_group
process = start_group(["sh", "-c", "sleep 100 & sleep 100"], tempfile.TemporaryFile())
print(process.pid, flush=True)
time.sleep(100)
"""


def test_a_tunnel_ends_with_its_command_even_if_that_is_killed():
    command = [sys.executable, "-c", OWNER]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    ) as owner:
        tunnel = psutil.Process(int(owner.stdout.readline()))
        deadline = time.monotonic() + 10
        while len(sleeping := [p for p in tunnel.children(recursive=True) if p.name() == "sleep"]) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        owner.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs([tunnel, *sleeping], timeout=10)
    assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]  # nobody may collect orphans in a container


@pytest.fixture
def answers():
    """``answers(status, body)`` is the URL of an HTTP server that gives this answer to every GET."""
    servers = []

    def start(status, body):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *args):
                pass

        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (
            200,
            json.dumps({"version": "4", "ray_version": "2.9.9"}),
            f"runs Ray 2.9.9, and here is Ray {ray.__version__}: ",
        ),
        (401, "no token", "Ray's token"),
        (403, "wrong token", "Ray's token"),
        (404, "not found", "is no job server of Ray"),
        (200, "<html>", "is no job server of Ray"),
    ],
)
def test_a_server_that_cannot_be_used_is_named_in_one_line(answers, status, body, words):
    url = answers(status, body)
    with pytest.raises(BadInput) as refused, JobServer(url):
        pass
    message = str(refused.value)
    assert message.startswith(url)
    assert words in message
    assert "\n" not in message


def test_a_head_node_that_cannot_start_jobs_yet_is_tried_again(monkeypatch):
    monkeypatch.setattr(jobs, "RETRY_PAUSE", 0.05)
    lines = []
    with JobServerStub(busy=2) as stub, JobServer(stub.url) as server:
        server.submit("a", "true", {}, {}, lines.append)
        assert (list(stub.jobs), stub.busy) == (["a"], 0)
    assert lines == ["the head node does not accept jobs yet; trying again for 60 s ..."]
    monkeypatch.setattr(jobs, "AGENT_TIMEOUT", 1.0)
    with JobServerStub(busy=1000) as stub, JobServer(stub.url) as server:
        with pytest.raises(RunFault, match="No available agent"):
            server.submit("a", "true", {}, {})
        assert 900 < stub.busy < 998


def test_a_submission_whose_answer_was_lost_counts_if_the_job_is_there():
    with JobServerStub(lose_answer=True) as stub, JobServer(stub.url) as server:
        server.submit("a", "true", {}, {})
        assert list(stub.jobs) == ["a"]
        stub.accept = False
        with pytest.raises(NoJobServer, match="does not answer"):
            server.submit("b", "true", {}, {})


def test_an_upload_may_take_longer_than_other_requests(tmp_path, monkeypatch):
    monkeypatch.setattr(job_client, "REQUEST_TIMEOUT", 0.5)
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "qfleet"\n')
    (tmp_path / "data").write_bytes(os.urandom(12 << 20))  # more than the buffers of the sockets hold
    with JobServerStub(upload_seconds=1.0) as stub, JobServer(stub.url) as server:
        server.submit("a", "true", {}, upload_of(tmp_path))
        assert stub.uploaded > 12 << 20


def test_a_connection_that_has_held_may_break_again(monkeypatch):
    """The log of a run that prints nothing for hours, as while it waits for nodes, breaks twice; then the run ends."""
    monkeypatch.setattr(jobs, "RECONNECT_TIMEOUT", 0.5)
    monkeypatch.setattr(jobs, "FOLLOW_PAUSE", 0.05)
    with JobServerStub(holds=[0.0, 0.8]) as stub, JobServer(stub.url) as server:
        stub.add("a")
        assert server.follow("a", print).exit_status() == 0
        assert not stub.holds


def test_a_server_that_breaks_each_connection_at_once_is_given_up(monkeypatch):
    monkeypatch.setattr(jobs, "RECONNECT_TIMEOUT", 0.5)
    monkeypatch.setattr(jobs, "FOLLOW_PAUSE", 0.05)
    with JobServerStub(holds=[0.0] * 1000) as stub, JobServer(stub.url) as server:
        stub.add("a")
        with pytest.raises(NoJobServer):
            server.follow("a", print)
        assert 900 < len(stub.holds) < 998


def test_an_upload_above_rays_limit_names_the_largest_folders(tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "qfleet"\n')
    (tmp_path / ".gitignore").write_text("big/\n")
    for name, size in {"big/a": 9000, "data/x/b": 3000, "docs/c": 2000, ".git/d": 9000, "runs/e": 9000}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"0" * size)
    assert uploaded_sizes(tmp_path)["data"] == 3000
    assert set(uploaded_sizes(tmp_path)) == {"pyproject.toml", ".gitignore", "data", "docs"}
    assert upload_of(tmp_path)["working_dir"] == str(tmp_path)
    monkeypatch.setattr(packaging, "GCS_STORAGE_MAX_SIZE", 4000)
    with pytest.raises(BadInput, match=r"^--upload: .* the largest are data \(0.0 MiB\), docs \(0.0 MiB\), "):
        upload_of(tmp_path)


def test_an_upload_needs_a_checkout(tmp_path):
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "other"\n')
    with pytest.raises(BadInput, match="no checkout of Qfleet"):
        upload_of(tmp_path)


def test_later_jobs_of_a_run_are_numbered():
    assert [free_id("a", taken) for taken in ({"b"}, {"a"}, {"a", "a-2", "a-4"})] == ["a", "a-2", "a-3"]
