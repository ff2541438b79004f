"""Helpers for tests of the protocol: replay shards in processes of their own, and a sampler for them."""

from __future__ import annotations

import subprocess
import sys
import time

import grpc
import pytest

from protos import replay_pb2 as pb
from protos import replay_pb2_grpc as rpc
from replay.importance_weights import BetaConfig
from replay.rate_limiter import LimiterConfig, RateLimiter
from replay.wire.sampler import Sampler
from tests.conftest import SMALL

FREE = LimiterConfig(samples_per_insert=0, min_size=1)  # no ratio: sampling starts with the first item


class ShardProcess:
    """One shard, run by `benchmarks.processes.shard` with ``args``; the constructor returns when it listens."""

    def __init__(self, *args, port=0):
        command = [sys.executable, "-m", "benchmarks.processes.shard", "--port", str(port), *map(str, args)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        assert line, "the shard did not start"
        self.port = int(line)
        self.address = f"127.0.0.1:{self.port}"
        self.stub = rpc.ReplayStub(grpc.insecure_channel(self.address))

    def counts(self):
        return self.stub.Info(pb.InfoRequest(), timeout=5.0).counts

    def kill(self):
        self.process.kill()
        self.process.wait(timeout=10)
        self.process.stdout.close()


@pytest.fixture(name="shards")
def shards_fixture():
    """``shards(count, *args)`` starts ``count`` shards, which are killed after the test; returns a list."""
    running = []

    def start(count, *args, **kwargs):
        new = [ShardProcess(*args, **kwargs) for _ in range(count)]
        running.extend(new)
        return new

    yield start
    for shard in running:
        shard.kill()


def sampler(shards, limiter=FREE, batch=32, spec=SMALL, give_up_after=5.0, **kwargs):
    rule = RateLimiter(limiter, kwargs.pop("max_insert", 10), batch, len(shards))
    return Sampler([s.address for s in shards], spec, rule, BetaConfig(), give_up_after=give_up_after, **kwargs)


def wait_for(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"the condition was not met within {seconds} s"
        time.sleep(0.02)
