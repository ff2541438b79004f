"""Job servers that cannot be used, and why a command over ssh failed: one line each."""

from __future__ import annotations

import http.server
import json
import threading

import pytest
import ray
from ray._private.runtime_env import packaging

from qfleet.cluster import jobs
from qfleet.cluster.head import reason
from qfleet.cluster.jobs import JobServer, free_id
from qfleet.cluster.upload import upload_of, uploaded_sizes
from rl.errors import BadInput, RunFault

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


@pytest.fixture
def answers():
    """``answers(status, body)`` is the URL of an HTTP server that gives this answer to every GET.

    ``submissions``: its answers to the POSTs, in turn; the list loses those that were given.
    """
    servers = []

    def start(status, body, submissions=()):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body.encode())

            def do_POST(self):
                status, body = submissions.pop(0)
                self.rfile.read(int(self.headers["Content-Length"]))
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


def test_a_head_node_that_cannot_start_jobs_yet_is_tried_again(answers, monkeypatch):
    monkeypatch.setattr(jobs, "RETRY_PAUSE", 0.05)
    busy = (500, "No available agent to submit job, please try again later.")
    there = (200, json.dumps({"version": "4", "ray_version": ray.__version__}))
    taken = [busy, busy, (200, json.dumps({"job_id": "a", "submission_id": "a"}))]
    never = [busy] * 1000
    with JobServer(answers(*there, taken)) as server:
        server.submit("a", "true", {}, {})
    assert not taken
    monkeypatch.setattr(jobs, "AGENT_TIMEOUT", 1.0)
    with JobServer(answers(*there, never)) as server, pytest.raises(RunFault, match="No available agent"):
        server.submit("a", "true", {}, {})
    assert 900 < len(never) < 998


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
