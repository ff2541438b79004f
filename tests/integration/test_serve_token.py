"""`qfleet replay serve` creates its token file and requires the token."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from types import SimpleNamespace

import grpc
import pytest

from protos import replay_pb2 as pb
from protos import replay_pb2_grpc as rpc
from replay.security import Access, SecurityConfig
from replay.wire.connection import open_channel
from tests.conftest import make_message


def insert(stub, rng, *sequences, writer="w", **kwargs):
    requests = [pb.InsertRequest(writer=writer, sequence=s, segment=make_message(rng)) for s in sequences]
    return list(stub.Insert(iter(requests), timeout=5.0, **kwargs))


SERVE = ["replay", "serve", "--port", "0", "--frame-shape", "2", "--dtype", "float32", "--stack", "1"]


def test_serve_creates_a_token_and_requires_it(tmp_path, rng):
    path = tmp_path / "token"
    command = [sys.executable, "-m", "qfleet", *SERVE, "--host", "0.0.0.0", "--security.token-file", str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    lines = [process.stdout.readline() for _ in range(2)]
    assert f"wrote a new token to {path}" in lines[0]
    port = int(re.match(r"replay shard on 0\.0\.0\.0:(\d+): ", lines[1])[1])
    server = SimpleNamespace(address=f"127.0.0.1:{port}")
    access = Access.load(SecurityConfig(token_file=str(path)))
    with open_channel(server.address, access) as channel:
        assert insert(rpc.ReplayStub(channel), rng, 1, metadata=access.metadata)
        with pytest.raises(grpc.RpcError, match="token"):
            insert(rpc.ReplayStub(channel), rng, 2)
    process.send_signal(signal.SIGTERM)
    rest = process.communicate(timeout=20)
    assert process.returncode == 143
    assert access.token not in "".join([*lines, *rest])
    assert os.environ.get("QFLEET_TOKEN") is None
