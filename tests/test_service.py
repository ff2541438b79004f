"""The replay service for real: shards in processes of their own, gRPC between them and the clients."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
import time

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from protos import replay_pb2 as pb
from protos import replay_pb2_grpc as rpc
from protos.codec import pack_segment
from replay.rate_limiter import LimiterConfig, RateLimiter
from replay.sampler import Sampler
from replay.weights import BetaConfig
from replay.writer import Writer
from rl.errors import RunFault
from rl.types import ObservationSpec
from tests.conftest import FRAMES, SMALL, make_segment

FREE = LimiterConfig(samples_per_insert=0, min_size=1)


class ShardProcess:
    """One `benchmarks.shard_process`."""

    def __init__(self, *args, port=0):
        command = [sys.executable, "-m", "benchmarks.shard_process", "--port", str(port), *map(str, args)]
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


@pytest.fixture
def shards():
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
        assert time.monotonic() < deadline, "did not come about in time"
        time.sleep(0.02)


def test_what_is_written_is_sampled_whole(shards, rng):
    (shard,) = shards(1, "--shape", 20, 20, "--dtype", "uint8", "--stack", 4)
    writer = Writer([shard.address])
    for k in range(5):
        writer.write(make_segment(rng, FRAMES, first_step=0 if k == 0 else 4 * k, mark=10 * k))
    writer.flush(10.0)
    source = sampler([shard], spec=FRAMES)
    batch = source.sample(10.0)
    t = batch.transitions
    assert t.s_tm1.shape == t.s_t.shape == (32, 4, 20, 20)
    assert t.s_tm1.dtype == np.uint8
    newest = t.s_tm1[:, -1, 0, 0].astype(int)
    np.testing.assert_array_equal(t.s_t[:, -1, 0, 0], newest + 3)  # n = 3 steps on
    for i, value in enumerate(newest):
        expected = [max(0, value - k) if value >= 10 or k <= value else 0 for k in (3, 2, 1, 0)]
        assert t.s_tm1[i, :, 0, 0].tolist() == expected
    assert batch.weights.max() == 1.0
    writer.close()
    source.close()


def test_health_answers(shards):
    (shard,) = shards(1)
    stub = health_pb2_grpc.HealthStub(grpc.insecure_channel(shard.address))
    reply = stub.Check(health_pb2.HealthCheckRequest(service="qfleet.replay.v1.Replay"), timeout=5.0)
    assert reply.status == health_pb2.HealthCheckResponse.SERVING


def test_shards_of_unequal_fill_sample_as_one_would(shards, rng):
    """Marks of all items, their total priority shares over shards 1:1:1:100, against one buffer's distribution."""
    four = shards(4, "--capacity", 4000)
    priorities = {}
    for index, (shard, scale, count) in enumerate(zip(four, (1.0, 1.0, 1.0, 100.0), (2, 4, 8, 6), strict=True)):
        writer = Writer([shard.address])
        for k in range(count):
            mark = 1000 * index + 100 * k
            priority = scale * (1 + rng.random(4))
            for i in range(4):
                priorities[mark + i] = float(priority[i])
            writer.write(make_segment(rng, mark=mark, priority=priority))
        writer.flush(10.0)
        writer.close()
    source = sampler(four, batch=500)
    batches = [source.sample(10.0) for _ in range(60)]
    marks = np.concatenate([b.transitions.s_tm1[:, 0].astype(int) for b in batches])
    keys = sorted(priorities)
    expected = np.array([priorities[k] for k in keys])
    probability = expected / expected.sum()
    counts = np.array([(marks == k).sum() for k in keys])
    assert counts.sum() == len(marks)
    likely = probability * len(marks) > 10
    chi2 = ((counts - probability * len(marks)) ** 2 / (probability * len(marks)))[likely].sum()
    assert chi2 < likely.sum() + 6 * np.sqrt(2 * likely.sum())
    # weights: (N * P)^-beta over the batch's maximum, P as one buffer would have it
    batch = batches[0]
    p = np.array([priorities[int(m)] for m in batch.transitions.s_tm1[:, 0]]) / expected.sum()
    w = (len(keys) * p) ** -0.4
    np.testing.assert_allclose(batch.weights, w / w.max(), rtol=1e-4)
    source.close()


def test_priority_updates_reach_their_shard_and_steer_the_draws(shards, rng):
    two = shards(2)
    for index, shard in enumerate(two):
        writer = Writer([shard.address])
        writer.write(make_segment(rng, items=8, mark=100 * (index + 1)))
        writer.flush(10.0)
        writer.close()
    source = sampler(two, prefetch=1)
    before = [s.counts().total_priority for s in two]
    for _ in range(8):
        batch = source.sample(10.0)
        chosen = batch.transitions.s_tm1[:, 0] == 105  # one item of the first shard
        source.update_priorities(batch, np.where(chosen, 1000.0, 0.001).astype(np.float32))
        time.sleep(0.05)
    wait_for(lambda: two[0].counts().total_priority > 100 * before[0])
    assert two[1].counts().total_priority < before[1]
    drawn = np.concatenate([source.sample(10.0).transitions.s_tm1[:, 0] for _ in range(4)])
    assert (drawn == 105).mean() > 0.9
    source.close()


def test_the_limiter_holds_the_ratio_of_the_whole_service(shards, rng):
    """A writer and a sampler as fast as they can over 4 shards: neither stalls, the ratio stays within its bounds."""
    four = shards(4, "--capacity", 2000, "--limited")
    limiter = LimiterConfig(samples_per_insert=4.0, min_size=100, slack=4.0 * 10 * 4)
    source = sampler(four, limiter, batch=64)
    stop = threading.Event()

    def write():
        writer, own = Writer([s.address for s in four]), np.random.default_rng(5)
        while not stop.is_set():
            writer.write(make_segment(own, items=8, priority=own.random(8) * (100 if own.random() < 0.2 else 1)))
        writer.close()

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    rule = RateLimiter(limiter, 10, 64, 4)
    for _ in range(400):
        batch = source.sample(10.0)
        assert batch is not None, "stalled"
        source.update_priorities(batch, np.ones(64, np.float32))
    stats = source.stats()
    stop.set()
    thread.join(timeout=20)
    d = 4.0 * stats["inserted"] - stats["sampled"]
    assert rule.min_diff - 64 * 8 <= d <= rule.max_diff + 4.0 * 64
    source.close()


def test_a_writer_without_credit_fails_with_a_reason_and_never_hangs(shards, rng):
    (shard,) = shards(1, "--limited", "--insert-timeout", 0.5)
    writer = Writer([shard.address], write_timeout=2.0)
    began = time.monotonic()
    with pytest.raises(RunFault, match="credit"):
        for _ in range(10):
            writer.write(make_segment(rng))
    assert time.monotonic() - began < 10
    assert shard.counts().inserted == 0
    writer.close()


def test_a_shard_that_is_gone_makes_the_clients_say_so(shards, rng):
    (shard,) = shards(1)
    writer = Writer([shard.address], give_up_after=1.0, write_timeout=30.0)
    source = sampler([shard], give_up_after=1.0)
    writer.write(make_segment(rng))
    writer.flush(10.0)
    assert source.sample(5.0) is not None
    shard.kill()
    began = time.monotonic()
    with pytest.raises(RunFault, match=shard.address):
        for _ in range(100):
            writer.write(make_segment(rng))
            time.sleep(0.05)
    with pytest.raises(RunFault, match=shard.address):
        for _ in range(100):
            source.sample(0.2)
    assert time.monotonic() - began < 20
    writer.close()
    source.close()


def test_the_others_take_over_from_a_shard_that_is_gone(shards, rng):
    two = shards(2)
    writer = Writer([s.address for s in two], give_up_after=1.0)
    for k in range(6):
        writer.write(make_segment(rng, mark=100 * k))
    writer.flush(10.0)
    source = sampler(two, give_up_after=1.0)
    assert source.sample(5.0) is not None
    two[0].kill()
    before = two[1].counts().inserted
    for k in range(20):
        writer.write(make_segment(rng, mark=1000 + k))
        time.sleep(0.1)
    writer.flush(20.0)
    assert two[1].counts().inserted >= before + 20 * 4  # all of them, also those first sent to the dead shard
    got = [source.sample(0.5) for _ in range(20)]
    assert got[-1] is not None
    assert set(got[-1].shards.tolist()) == {1}
    assert source.stats()["shards_gone"] == 1
    writer.close()
    source.close()


def test_a_restarted_shard_takes_the_writer_back(shards, rng):
    """A shard killed and restarted empty on its port: writing goes on, and what was never acknowledged arrives."""
    (shard,) = shards(1)
    writer = Writer([shard.address], give_up_after=30.0)
    for _ in range(3):
        writer.write(make_segment(rng))
    writer.flush(10.0)
    shard.kill()
    writer.write(make_segment(rng))
    (again,) = shards(1, port=shard.port)
    wait_for(lambda: again.counts().inserted == 4, 20.0)
    writer.close()


def test_a_shard_that_comes_back_is_sampled_again(shards, rng):
    two = shards(2)
    writers = [Writer([s.address]) for s in two]
    for writer in writers:
        writer.write(make_segment(rng))
        writer.flush(10.0)
    source = sampler(two, give_up_after=30.0)
    assert source.sample(5.0) is not None
    two[0].kill()
    (again,) = shards(1, port=two[0].port)
    late = Writer([again.address])
    late.write(make_segment(rng))
    late.flush(10.0)
    seen = set()
    deadline = time.monotonic() + 20
    while 0 not in seen:
        batch = source.sample(1.0)
        seen |= set() if batch is None else set(batch.shards.tolist())
        assert time.monotonic() < deadline, "the shard was never drawn from again"
    for client in (*writers, late, source):
        client.close()


def test_a_shard_that_fills_later_is_noticed_while_sampling(shards, rng):
    two = shards(2)
    first, second = Writer([two[0].address]), Writer([two[1].address])
    first.write(make_segment(rng))
    first.flush(10.0)
    source = sampler(two)
    assert source.sample(5.0) is not None
    for _ in range(20):
        second.write(make_segment(rng))
    second.flush(10.0)
    time.sleep(0.3)
    shares = [np.mean(source.sample(5.0).shards) for _ in range(200)]
    assert np.mean(shares[-50:]) == pytest.approx(20 / 21, abs=0.03)
    assert source.stats()["stored"] == 21 * 4
    for client in (first, second, source):
        client.close()


def test_an_idle_writer_survives_a_short_outage(shards, rng):
    (shard,) = shards(1)
    writer = Writer([shard.address], give_up_after=5.0)
    writer.write(make_segment(rng))
    writer.flush(10.0)
    time.sleep(6.0)  # idle for longer than give_up_after
    shard.kill()
    (again,) = shards(1, port=shard.port)
    writer.write(make_segment(rng))
    writer.flush(15.0)
    assert again.counts().inserted == 4
    writer.close()


def test_a_batch_too_large_for_a_message_is_a_fault(shards, rng):
    spec = ObservationSpec((1000, 1000), "uint8")
    (shard,) = shards(1, "--shape", 1000, 1000, "--dtype", "uint8")
    writer = Writer([shard.address])
    writer.write(make_segment(rng, spec))
    writer.flush(20.0)
    source = sampler([shard], spec=spec, batch=64)
    with pytest.raises(RunFault, match="larger than max"):
        for _ in range(50):
            source.sample(0.2)
    writer.close()
    source.close()


@pytest.mark.parametrize(
    ("field", "value"),
    [("frames", b"x"), ("priority", np.array([np.nan] * 4, "<f4").tobytes()), ("item_step", b"abc")],
)
def test_a_refused_segment_is_a_fault_not_a_loop(shards, rng, field, value):
    (shard,) = shards(1)
    message = pack_segment(make_segment(rng))
    setattr(message, field, value)
    with pytest.raises(grpc.RpcError) as caught:
        list(shard.stub.Insert(iter([pb.InsertRequest(writer="w", sequence=1, segment=message)]), timeout=5.0))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert shard.counts().inserted == 0


def test_a_writer_of_the_wrong_shape_stops_with_the_shards_words(shards, rng):
    (shard,) = shards(1)
    writer = Writer([shard.address])
    with pytest.raises(RunFault, match="refused"):
        for _ in range(50):
            writer.write(make_segment(rng, FRAMES))
            time.sleep(0.05)
    writer.close()


def test_sequences_are_stored_once_and_in_order(shards, rng):
    (shard,) = shards(1)

    def send(*sequences):
        requests = [
            pb.InsertRequest(writer="w", sequence=s, segment=pack_segment(make_segment(rng))) for s in sequences
        ]
        return [r.acknowledged for r in shard.stub.Insert(iter(requests), timeout=5.0)]

    assert send(1, 2, 2, 1, 3) == [1, 2, 2, 2, 3]
    assert shard.counts().inserted == 3 * 4
    with pytest.raises(grpc.RpcError) as caught:
        send(5)
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert "resend from 4" in caught.value.details()


def test_an_empty_shard_gives_nothing_within_the_timeout(shards):
    (shard,) = shards(1)
    source = sampler([shard])
    began = time.monotonic()
    assert source.sample(0.3) is None
    assert time.monotonic() - began < 3
    source.close()


def test_a_writer_pickles_as_its_addresses(shards):
    (shard,) = shards(1)
    writer = Writer([shard.address])
    twin = pickle.loads(pickle.dumps(writer))
    assert twin.addresses == writer.addresses
    assert twin.name != writer.name
    writer.close()
    twin.close()
