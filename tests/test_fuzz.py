"""Malformed requests, made from valid ones by mutation, against a live shard: a sentence each, and no trace."""

from __future__ import annotations

import random
from types import SimpleNamespace

import grpc
import numpy as np
import pytest

from protos import replay_pb2 as pb
from protos.codec import pack_segment
from replay.selectors import SelectorConfig
from replay.service import SERVICE_NAME, ShardServer
from replay.shard import Shard
from replay.writer import Writer
from tests.conftest import FRAMES, make_segment
from tests.shards import sampler

CAPACITY = 60
REFUSED = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION}
NASTY_FLOATS = (float("nan"), float("inf"), -1.0, 1e38, -0.0)
NASTY_INTEGERS = (0, 1, 2**31 - 1, 2**31, 2**32 - 1)


def mutate_bytes(data: bytes, r: random.Random) -> bytes:
    """Cut, lengthened, overwritten or with a nasty number somewhere."""
    how = r.randrange(5)
    if how == 0:
        return data[: r.randrange(len(data) + 1)]
    if how == 1:
        return data + r.randbytes(r.randrange(1, 9))
    if how == 2 or len(data) < 4:
        return r.randbytes(len(data))
    at = r.randrange(len(data) // 4) * 4
    if how == 3:
        nasty = np.array(r.choice(NASTY_FLOATS), "<f4").tobytes()
    else:
        nasty = np.array(r.choice(NASTY_INTEGERS), "<u4").tobytes()
    return data[:at] + nasty + data[at + 4 :]


def mutate_message(message, r: random.Random) -> bytes:
    """One or two fields of the message changed, or bytes of its serialization."""
    if r.random() < 0.2:
        return mutate_bytes(message.SerializeToString(), r)
    for _ in range(r.randrange(1, 3)):
        inner = message.segment if isinstance(message, pb.InsertRequest) and r.random() < 0.9 else message
        field = r.choice(inner.DESCRIPTOR.fields)
        value = getattr(inner, field.name)
        if isinstance(value, bytes):
            setattr(inner, field.name, mutate_bytes(value, r))
        elif isinstance(value, str):
            setattr(inner, field.name, r.choice(["", "w" * 100_000, value + "x"]))
        elif isinstance(value, int):
            setattr(inner, field.name, r.choice(NASTY_INTEGERS))
        else:
            inner.ClearField(field.name)
    return message.SerializeToString()


@pytest.mark.parametrize(
    "requests", [1_500, pytest.param(100_000, marks=[pytest.mark.slow, pytest.mark.timeout(3000)])]
)
def test_malformed_requests_leave_no_trace_and_disturb_nobody(rng, requests):
    shard = Shard(CAPACITY, FRAMES, SelectorConfig(), limited=False)
    server = ShardServer(shard)
    address = f"127.0.0.1:{server.port}"
    channel = grpc.insecure_channel(address)
    insert, update, sample = (
        getattr(channel, kind)(f"/{SERVICE_NAME}/{method}")
        for kind, method in (
            ("stream_stream", "Insert"),
            ("unary_unary", "UpdatePriorities"),
            ("stream_stream", "Sample"),
        )
    )
    healthy, source = Writer([address]), sampler([SimpleNamespace(address=address)], spec=FRAMES)
    r = random.Random(7)
    refused = stored = 0
    for i in range(requests):
        if i % 50 == 0:
            healthy.write(make_segment(rng, FRAMES, mark=1 + i % 200))
            healthy.flush(10.0)
            assert source.sample(10.0) is not None
            shard.check_valid()
        before, writers = server.counts(), len(shard._last)
        kind = r.randrange(10)
        try:
            if kind < 7:
                segment = pack_segment(make_segment(rng, FRAMES, mark=3, first_step=r.choice([0, 9])))
                request = pb.InsertRequest(writer=f"w{i}", sequence=1, segment=segment)
                list(insert(iter([mutate_message(request, r)]), timeout=10.0))
                stored += 1
            elif kind < 9:
                keys = np.arange(shard.storage.first_key, shard.storage.first_key + 4, dtype="<u8")
                request = pb.UpdatePrioritiesRequest(keys=keys.tobytes(), td=np.ones(4, "<f4").tobytes())
                update(mutate_message(request, r), timeout=10.0)
            else:
                request = pb.SampleRequest(counts=[r.randrange(5)], insert_credit=r.randrange(5))
                list(sample(iter([mutate_bytes(request.SerializeToString(), r)]), timeout=10.0))
            continue
        except grpc.RpcError as error:
            code, words = error.code(), error.details()
        refused += 1
        assert code in REFUSED, f"{i}: {code} {words}"
        assert words, f"{i}: refused without a word"
        after = server.counts()
        after.sampled = before.sampled  # the healthy reader goes on meanwhile
        assert after == before, f"{i}: a refused request left a trace"
        assert len(shard._last) == writers
    assert refused > requests / 3
    assert stored > requests / 100
    shard.check_valid()
    healthy.close()
    source.close()
    channel.close()
    server.stop()
