"""A run on a Ray of several nodes that it joins."""

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
    finish,
    qfleet,
    said,
)


def started_cluster(tries=3, **head):
    """A Ray with a head node. Ray gives its control service 30 seconds to begin, which it now and then misses."""
    from ray.cluster_utils import Cluster

    for left in reversed(range(tries)):
        try:
            return Cluster(initialize_head=True, head_node_args={**head, "include_dashboard": False})
        except RuntimeError:
            if not left:
                raise


@pytest.fixture(scope="module")
def two_nodes():
    """A Ray of two nodes of 4 CPUs, started here."""
    cluster = started_cluster(num_cpus=4)
    cluster.add_node(num_cpus=4)
    yield cluster
    cluster.shutdown()


def refusal(address, security):
    """How a shard answers who has the certificates and not the token."""
    with open_channel(address, Access(security)) as channel, pytest.raises(grpc.RpcError) as caught:
        ReplayStub(channel).Info(InfoRequest(), timeout=10.0)
    return caught.value.code()


@pytest.mark.timeout(240)
def test_joining_a_cluster_of_two_nodes(tmp_path, two_nodes, pem):
    """With mutual TLS, and a token that nothing but its file ever holds."""
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
        process = qfleet(
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
            refused = [refusal(address, security) for address in shards]
            status = said("status", "joined", "--address", two_nodes.address, "--json")[1]
            ray.shutdown()  # which `status` had joined
        time.sleep(0.2)
    finish(process, 60)
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
def test_what_does_not_fit_a_cluster_is_named(tmp_path, two_nodes):
    args = ["train", "cartpole", "--address", two_nodes.address, "--learner.device", "cpu", "--learner.threads", "20"]
    process = qfleet(*args, "--run-dir", tmp_path / "r", "--ready-timeout", "10")
    last = finish(process, 100).strip().splitlines()[-1]
    assert process.returncode == 1
    assert "not ready after 10 s: learner (needed: 40 CPU, 0 GPU" in last
    assert "`learner.threads`" in last
