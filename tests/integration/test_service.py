"""The replay service over gRPC, with shards in processes of their own."""

from __future__ import annotations

import pickle
import re
import signal
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
from replay.rate_limiter import LimiterConfig, RateLimiter
from replay.wire.writer import Writer
from rl.errors import RunFault
from tests.conftest import FRAMES, ROOT, make_message, make_segment
from tests.integration.shards import sampler, shards_fixture, wait_for  # noqa: F401


def test_written_segments_are_sampled_with_complete_stacks(shards, rng):
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


def test_the_health_service_answers(shards):
    (shard,) = shards(1)
    stub = health_pb2_grpc.HealthStub(grpc.insecure_channel(shard.address))
    reply = stub.Check(health_pb2.HealthCheckRequest(service="qfleet.replay.v1.Replay"), timeout=5.0)
    assert reply.status == health_pb2.HealthCheckResponse.SERVING


def test_shards_with_unequal_content_sample_like_one_buffer(shards, rng):
    """4 shards whose priorities are scaled 1:1:1:100. A chi-square test compares the draws with those of one buffer."""
    four = shards(4, "--capacity", 4000)
    priorities = {}
    for index, (shard, scale, count) in enumerate(zip(four, (1.0, 1.0, 1.0, 100.0), (2, 4, 8, 6), strict=True)):
        writer = Writer([shard.address])
        for k in range(count):
            mark = 1000 * index + 100 * k
            priority = scale * (1 + rng.random(4))
            for i in range(4):
                priorities[mark + i] = float(priority[i])
            writer.write(make_segment(rng, mark=mark, td_abs=priority))
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
    # the weights are (N * P)^-beta, divided by the maximum over the batch, with P as in one buffer
    batch = batches[0]
    p = np.array([priorities[int(m)] for m in batch.transitions.s_tm1[:, 0]]) / expected.sum()
    w = (len(keys) * p) ** -0.4
    np.testing.assert_allclose(batch.weights, w / w.max(), rtol=1e-4)
    # the state in a checkpoint is the number of batches drawn; beta goes from 0.4 to 1 over 200,000 of them
    assert source.get_state() == {"drawn": 60}
    source.set_state({"drawn": 200_000})
    batch = source.sample(10.0)
    w = 1 / np.array([priorities[int(m)] for m in batch.transitions.s_tm1[:, 0]])
    np.testing.assert_allclose(batch.weights, w / w.max(), rtol=1e-4)
    source.close()


def test_priority_updates_reach_their_shard_and_change_the_draws(shards, rng):
    two = shards(2)
    for index, shard in enumerate(two):
        writer = Writer([shard.address])
        writer.write(make_segment(rng, items=8, mark=100 * (index + 1)))
        writer.flush(10.0)
        writer.close()
    source = sampler(two, batches_ahead=1)
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


@pytest.mark.parametrize(
    ("batches", "slack"),
    [(400, 160), pytest.param(100_000, 112, marks=[pytest.mark.slow, pytest.mark.timeout(3000)])],
)
def test_the_limiter_holds_the_ratio_of_the_whole_service(shards, rng, batches, slack):
    """A writer and a sampler run as fast as possible over 4 shards with priorities 1:1:1:100.

    Neither stalls, and the ratio stays within its bounds. 112 is the smallest valid slack.
    """
    four = shards(4, "--capacity", 2000, "--limited")
    limiter = LimiterConfig(samples_per_insert=4.0, min_size=100, slack=slack)
    source = sampler(four, limiter, batch=64)
    stop = threading.Event()

    def write():
        writer, own = Writer([s.address for s in four]), np.random.default_rng(5)
        while not stop.is_set():
            writer.write(make_segment(own, items=8))
        writer.close()

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    rule = RateLimiter(limiter, 10, 64, 4)
    seen = np.zeros(4, int)
    for i in range(batches):
        batch = source.sample(10.0)
        assert batch is not None, f"stalled after {i} batches"
        seen += np.bincount(batch.shards, minlength=4)
        source.update_priorities(batch, np.where(batch.shards == 3, 100.0, 1.0).astype(np.float32))
    stats = source.stats()
    stop.set()
    deadline = time.monotonic() + 20
    while thread.is_alive():  # its last segment waits for credit
        assert time.monotonic() < deadline
        source.sample(0.1)
    d = 4.0 * stats["inserted"] - stats["sampled"]
    assert rule.min_diff - 64 * 8 <= d <= rule.max_diff + 4.0 * 64
    assert seen[3] > 2 * seen[:3].max()
    source.close()


@pytest.mark.parametrize(
    ("field", "value"),
    [("frames", b"x"), ("td_abs", np.array([np.nan] * 4, "<f4").tobytes()), ("item_step", b"abc")],
)
def test_an_invalid_segment_is_rejected(shards, rng, field, value):
    (shard,) = shards(1)
    message = make_message(rng)
    setattr(message, field, value)
    with pytest.raises(grpc.RpcError) as caught:
        list(shard.stub.Insert(iter([pb.InsertRequest(writer="w", sequence=1, segment=message)]), timeout=5.0))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert shard.counts().inserted == 0


def test_a_writer_with_the_wrong_frame_shape_fails_with_the_shards_message(shards, rng):
    (shard,) = shards(1)
    writer = Writer([shard.address])
    with pytest.raises(RunFault, match="rejected"):
        for _ in range(50):
            writer.write(make_segment(rng, FRAMES))
            time.sleep(0.05)
    writer.close()


def test_sequences_are_stored_once_and_in_order(shards, rng):
    (shard,) = shards(1)

    def send(*sequences):
        requests = [pb.InsertRequest(writer="w", sequence=s, segment=make_message(rng)) for s in sequences]
        return [r.acknowledged for r in shard.stub.Insert(iter(requests), timeout=5.0)]

    assert send(1, 2, 2, 1, 3) == [1, 2, 2, 2, 3]
    assert shard.counts().inserted == 3 * 4
    with pytest.raises(grpc.RpcError) as caught:
        send(5)
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert "sent sequence 5 after 3: continue under a new name" in caught.value.details()


def test_sampling_an_empty_shard_returns_none_after_the_timeout(shards):
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


def test_the_example_code_in_the_docs_runs(shards):
    """The Python code of docs/replay.md, with a stand-alone shard."""
    (shard,) = shards(1, "--shape", 84, 84, "--dtype", "uint8", "--stack", 4)
    text = (ROOT / "docs" / "replay.md").read_text()
    code = text.split("```python\n", 1)[1].split("```", 1)[0].replace("127.0.0.1:50051", shard.address)
    names: dict = {}
    exec(code, names)
    assert shard.counts().inserted == 1000
    assert names["s_tm1"].shape == (32, 4, 84, 84)


@pytest.fixture
def served():
    """(process, its command without the port, port) of `qfleet replay serve` on a free port."""
    command = [
        sys.executable,
        "-m",
        "qfleet",
        "replay",
        "serve",
        "--frame-shape",
        "2",
        "--dtype",
        "float32",
        "--port",
    ]
    process = subprocess.Popen([*command, "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    line = process.stdout.readline()
    yield (
        process,
        command,
        int(re.fullmatch(r"replay shard on 127.0.0.1:(\d+): up to 200,000 transitions .*\n", line)[1]),
    )
    process.kill()
    process.communicate(timeout=10)


def test_a_stand_alone_shard_listens_on_the_port_it_prints_and_stops_cleanly(served):
    process, command, port = served
    stub = rpc.ReplayStub(grpc.insecure_channel(f"127.0.0.1:{port}"))
    assert stub.Info(pb.InfoRequest(), timeout=5.0).capacity == 200_000
    second = subprocess.run([*command, str(port)], capture_output=True, text=True, timeout=60)
    assert second.returncode == 2
    assert second.stderr == (
        f"qfleet: --port {port}: Address already in use: write another port, or 0 for a free one\n"
    )
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (143, "")
