"""A run that joins a Ray cluster of several nodes."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path

import grpc
import pytest
import ray

from protos.replay_pb2 import InfoRequest
from protos.replay_pb2_grpc import ReplayStub
from replay.security import Access, SecurityConfig, make_token_file
from replay.wire.connection import open_channel
from tests.integration.runs import (
    FAST,
    run_command,
    start_qfleet,
    wait_for_output,
)


def start_cluster(tries=3, **head):
    """A Ray cluster with a head node; tries again when Ray's control service takes more than 30 seconds to start."""
    from ray.cluster_utils import Cluster

    for left in reversed(range(tries)):
        try:
            return Cluster(initialize_head=True, head_node_args={**head, "include_dashboard": False})
        except RuntimeError:
            if not left:
                raise


@pytest.fixture(scope="module")
def two_nodes():
    """A Ray cluster on this machine, of two nodes with 4 CPUs each."""
    cluster = start_cluster(num_cpus=4)
    cluster.add_node(num_cpus=4)
    yield cluster
    cluster.shutdown()


def status_without_token(address, security):
    """The gRPC status with which a shard answers a client that has the certificates but not the token."""
    with open_channel(address, Access(security)) as channel, pytest.raises(grpc.RpcError) as caught:
        ReplayStub(channel).Info(InfoRequest(), timeout=10.0)
    return caught.value.code()


@pytest.mark.timeout(240)
def test_joining_a_cluster_of_two_nodes(tmp_path, two_nodes, pem):
    """With mutual TLS, and a token that is in no file but its own: no log, no configuration, no output."""
    run, output_file, token = tmp_path / "joined", tmp_path / "output", tmp_path / "token"
    make_token_file(str(token))
    files = {"certificate": "shard.pem", "key": "shard.key", "authority": "authority.pem"}
    security = SecurityConfig(**{k: pem(v) for k, v in files.items()}, name="shard.qfleet")
    flags = [f"--replay.security.{k}={pem(v)}" for k, v in files.items()]
    flags += [
        "--replay.security.mutual",
        "--replay.security.name=shard.qfleet",
        f"--replay.security.token-file={token}",
    ]
    args = ["train", "cartpole", "--address", two_nodes.address, "--actors.count", 2, "--replay.shards", 2, *FAST]
    flags += ["--replay.limiter.min-size", 300]
    with output_file.open("w") as output:
        process = start_qfleet(
            *(*args, *flags, "--run-dir", run, "--max-steps", 3000, "--json"),
            stdout=output,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
    status, refused = None, []
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if (
            (run / "status.json").exists()
            and json.loads((run / "status.json").read_text())["updates"] > 10
            and not status
        ):
            shards = re.findall(r"[\d.]+:\d+", output_file.read_text().partition("learner on")[0])
            refused = [status_without_token(address, security) for address in shards]
            status = run_command("status", "joined", "--address", two_nodes.address, "--json")[1]
            ray.shutdown()  # `status` has joined it
        time.sleep(0.2)
    wait_for_output(process, 60)
    output = output_file.read_text()
    assert process.returncode == 0, output
    assert json.loads(output.splitlines()[-1])["agent_steps"] >= 3000
    assert refused == [grpc.StatusCode.UNAUTHENTICATED] * 2
    logs = Path(two_nodes.head_node.get_session_dir_path())
    places = [p for folder in (run, logs) for p in folder.rglob("*") if p.is_file()]
    assert run / "config.yaml" in places
    assert not [p for p in [output_file, *places] if token.read_bytes().strip() in p.read_bytes()]
    assert status is not None
    assert json.loads(status.splitlines()[-1])["env"] == "CartPole-v1"


@pytest.mark.timeout(120)
def test_processes_that_do_not_fit_the_cluster_are_named(tmp_path, two_nodes):
    args = ["train", "cartpole", "--address", two_nodes.address, "--learner.device", "cpu", "--learner.threads", "20"]
    process = start_qfleet(*args, "--run-dir", tmp_path / "r", "--ready-timeout", "10")
    last = wait_for_output(process, 100).strip().splitlines()[-1]
    assert process.returncode == 1
    assert "not ready after 10 s: learner (needed: 40 CPU, 0 GPU" in last
    assert "`learner.threads`" in last
