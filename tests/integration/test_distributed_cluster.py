"""A run that joins a Ray cluster of several nodes."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
import ray
import torch
from ray.util.state import list_actors

from protos.replay_pb2 import InfoRequest
from protos.replay_pb2_grpc import ReplayStub
from qfleet.cluster.board import RunBoard
from qfleet.cluster.connect import start_ray
from qfleet.cluster.topology import _await_ready, place_in_cluster
from qfleet.placement import PlacementConfig
from qfleet.presets import cartpole
from replay.security import Access, SecurityConfig, make_token_file
from replay.wire.connection import open_channel
from rl.errors import BadInput, RunFault
from tests.integration.runs import SLOW_ENV, newest_checkpoint_state, run_command, start_qfleet, wait_for_output


def start_cluster(tries=3, **head):
    """A Ray cluster with a head node; tries again when one of its processes takes more than 30 seconds to start."""
    from ray.cluster_utils import Cluster

    for left in reversed(range(tries)):
        try:
            return Cluster(initialize_head=True, head_node_args=head)
        except Exception:  # a RuntimeError, or an Exception without a class of its own
            if not left:
                raise


GPU_NODE, OTHER = "127.0.0.2", "127.0.0.3"


@pytest.fixture(scope="module")
def three_nodes():
    """A Ray cluster on this machine, of three nodes with 4 CPUs each: the head, one that declares a GPU, and OTHER.

    The learner's label is on the node with the GPU, which this machine need not have.
    """
    # The process of the dashboard answers Ray's state API; without a port it takes a free one.
    cluster = start_cluster(num_cpus=4, include_dashboard=True, dashboard_port=None)
    cluster.add_node(num_cpus=4, num_gpus=1, labels={"qfleet": "learner"}, node_ip_address=GPU_NODE)
    cluster.add_node(num_cpus=4, node_ip_address=OTHER)
    yield cluster
    cluster.shutdown()


def status_without_token(address, security):
    """The gRPC status with which a shard answers a client that has the certificates but not the token."""
    with open_channel(address, Access(security)) as channel, pytest.raises(grpc.RpcError) as caught:
        ReplayStub(channel).Info(InfoRequest(), timeout=10.0)
    return caught.value.code()


def secure_flags(pem, token_file):
    """(flags, settings) of a run with mutual TLS and the token in ``token_file``."""
    files = {"certificate": "shard.pem", "key": "shard.key", "authority": "authority.pem"}
    files = {name: pem(file) for name, file in files.items()}
    flags = [f"--replay.security.{name}={path}" for name, path in files.items()]
    flags += ["--replay.security.mutual", "--replay.security.name=shard.qfleet"]
    return [*flags, f"--replay.security.token-file={token_file}"], SecurityConfig(**files, name="shard.qfleet")


def placed(run):
    """{name of an actor of ``run``: the address of its node}, from Ray's state API."""
    addresses = {n["NodeID"]: n["NodeManagerAddress"] for n in ray.nodes()}
    actors = list_actors(filters=[("ray_namespace", "=", run), ("state", "=", "ALIVE")])
    return {actor.name: addresses[actor.node_id] for actor in actors}


def wait_until_it_trains_again(run, output_file):
    """Wait until a part was started again, and weights of 50 later updates have reached the actors, which play on."""
    status = lambda: json.loads((run / "status.json").read_text())  # noqa: E731
    before, deadline = status(), time.monotonic() + 90
    while True:
        now = status()
        advanced = all(now[name] > before[name] + 50 for name in ("updates", "agent_steps"))
        if now["restarts"] == 1 and advanced:
            return
        assert time.monotonic() < deadline, output_file.read_text()
        time.sleep(0.2)


@pytest.mark.timeout(300)
def test_a_run_joins_a_cluster_and_goes_on_when_its_weight_store_dies(tmp_path, three_nodes, pem):
    """With mutual TLS, and a token that is in no file but its own: no log, no configuration, no output.

    Learner, stores and shards are on the node with a GPU, actors and evaluator on the others.
    """
    run, output_file, token = tmp_path / "joined", tmp_path / "output", tmp_path / "token"
    make_token_file(str(token))
    flags, security = secure_flags(pem, token)
    flags += ["--actors.count", 2, "--replay.shards", 2, "--learner.threads", 1, "--replay.limiter.min-size", 300]
    flags += ["--replay.ports", "50051-50082", "--evaluation.goal", "inf", "--run-dir", run, "--env.id", SLOW_ENV]
    with output_file.open("w") as output:
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        command = ["train", "cartpole", "--address", three_nodes.address, *flags]
        process = start_qfleet(*command, stdout=output, env=environment)
    deadline = time.monotonic() + 200
    while not (run / "status.json").exists() or json.loads((run / "status.json").read_text())["updates"] <= 10:
        assert process.poll() is None, output_file.read_text()
        assert time.monotonic() < deadline, f"the run did not start to train: {output_file.read_text()}"
        time.sleep(0.2)
    words = " ".join(output_file.read_text().split())
    shards = re.search(r"replay shard\(s\) at (.*?), learner on", words)[1].split(", ")
    refused = [status_without_token(address, security) for address in shards]
    status = run_command("status", "joined", "--address", three_nodes.address, "--json")[1]
    parts = placed("joined")  # `status` has joined the Ray
    ray.kill(ray.get_actor("weight store", namespace="joined"))
    ray.shutdown()
    wait_until_it_trains_again(run, output_file)
    process.send_signal(signal.SIGINT)
    wait_for_output(process, 90)
    output = output_file.read_text()

    assert json.loads(status.splitlines()[-1])["env"] == SLOW_ENV
    assert refused == [grpc.StatusCode.UNAUTHENTICATED] * 2
    assert sorted(shards) == [f"{GPU_NODE}:50051", f"{GPU_NODE}:50052"]
    beside = {name for name, address in parts.items() if address == GPU_NODE}
    assert beside == {"learner", "board", "weight store", "shard-0", "shard-1"}
    assert set(parts) - beside == {"actor-0", "actor-1", "evaluator"}

    if not torch.cuda.is_available():
        missing = f"torch {torch.__version__} finds no CUDA there: the learner trains on the CPU"
        assert f"warning: Ray has a GPU on the node {GPU_NODE}, but {missing}" in words
        assert f"learner on {GPU_NODE} (cpu in float32)" in words
    assert f"warning: the learner on {GPU_NODE} has niceness" in words
    head = three_nodes.head_node.node_ip_address
    assert re.search(rf"`ssh -N -L (\d+):127.0.0.1:\1 {head}`", words)

    assert process.returncode == 130, output
    died = f"warning: the weight store has failed on the node {GPU_NODE} (its process was killed): it is started again"
    assert died in " ".join(output.split())
    assert newest_checkpoint_state(run)["updates"] > 10

    logs = Path(three_nodes.head_node.get_session_dir_path())
    files = [p for folder in (run, logs) for p in folder.rglob("*") if p.is_file()]
    assert run / "config.yaml" in files
    assert not [p for p in [output_file, *files] if token.read_bytes().strip() in p.read_bytes()]


@pytest.fixture
def joined(three_nodes):
    """This process is the driver of a run on the cluster, without any process of the run."""
    start_ray(cartpole(), three_nodes.address, "checks")
    yield
    ray.shutdown()


@pytest.mark.timeout(240)
def test_what_does_not_fit_the_cluster_is_named_before_the_run_starts(three_nodes, joined, tmp_path):
    base, notes = cartpole(), []

    def start(**settings):
        return place_in_cluster(replace(base, **settings), lambda: False, notes.append)

    with pytest.raises(BadInput, match=rf"need 41 CPU.* {GPU_NODE} has 4 CPU in all \(short of 37 CPU\): write fewer"):
        start(learner=replace(base.learner, threads=20))
    addresses = ", ".join(sorted([three_nodes.head_node.node_ip_address, GPU_NODE, OTHER]))
    with pytest.raises(BadInput, match=rf"write one of {addresses}, or auto$"):
        start(placement=PlacementConfig("10.0.0.9"))
    with pytest.raises(BadInput, match=f"^the learner's node {OTHER} has no GPU"):
        start(placement=PlacementConfig(OTHER), learner=replace(base.learner, device="cuda"))
    assert not notes
    start(actors=replace(base.actors, count=30))  # 8 CPUs on two nodes, of which the evaluator takes one
    assert notes[0].startswith("warning: the cluster has room for 7 of 30 actors now (short of 23 CPU)")

    torch_elsewhere = tmp_path / "torch-9.9.dist-info" / "METADATA"
    torch_elsewhere.parent.mkdir()
    torch_elsewhere.write_text("Metadata-Version: 2.1\nName: torch\nVersion: 9.9\n")
    other = {"node_ip_address": "127.0.0.4", "env_vars": {"PYTHONPATH": str(tmp_path)}}
    three_nodes.add_node(num_cpus=1, **other)
    with pytest.raises(RunFault) as caught:
        start()
    assert str(caught.value).startswith("the node 127.0.0.4 has torch 9.9, and `qfleet train` runs with torch ")


def test_processes_that_are_not_ready_are_named(joined):
    never = ray.remote(RunBoard).options(num_cpus=100).remote()
    with pytest.raises(RunFault, match=r"^not ready after 0.5 s: learner \(lack\)$"):
        _await_ready({"learner": never.status.remote()}, lambda: " (lack)", 0.5, lambda: False)
