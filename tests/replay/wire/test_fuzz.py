"""Fuzzing: requests made from valid ones by mutation are rejected with an explanation and change nothing."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import random
import sys
from collections import Counter
from types import SimpleNamespace

import grpc
import numpy as np
import pytest

from protos import replay_pb2 as pb
from protos.types import UNLIMITED_CREDIT, ShardInfo
from replay.store.selectors import SelectorConfig
from replay.store.shard import Shard
from replay.wire.service import SERVICE_NAME, ShardServer
from replay.wire.writer import Writer
from tests.conftest import FRAMES, make_message, make_segment
from tests.integration.shards import sampler

CAPACITY = 60
METHODS, WEIGHTS = ("Insert", "UpdatePriorities", "Sample", "Drain", "SetLimited"), (12, 3, 3, 2, 1)
REFUSED = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION}
NASTY_FLOATS = (float("nan"), float("inf"), -1.0, 1e38, -0.0)
NASTY_INTEGERS = (0, 1, 2**31 - 1, 2**31, 2**32 - 1)


def mutate_bytes(data: bytes, r: random.Random) -> bytes:
    """Return the data cut, lengthened, overwritten or with a nasty number somewhere."""
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
    """Return the serialized message with one or two changed fields, or with changed bytes."""
    if r.random() < 0.2:
        return mutate_bytes(message.SerializeToString(), r)
    for _ in range(r.randrange(1, 3)):
        inner = message
        if isinstance(message, pb.InsertRequest) and r.random() < 0.8:
            inner = message.segment
        elif isinstance(message, pb.SampleRequest) and r.random() < 0.3:
            inner = message.limiter
        field = r.choice(inner.DESCRIPTOR.fields)
        value = getattr(inner, field.name)
        if isinstance(value, bytes):
            setattr(inner, field.name, mutate_bytes(value, r))
        elif isinstance(value, str):
            setattr(inner, field.name, r.choice(["", "w" * 100_000, value + "x"]))
        elif isinstance(value, int):
            setattr(inner, field.name, r.choice(NASTY_INTEGERS))
        elif isinstance(value, float):
            setattr(inner, field.name, r.choice(NASTY_FLOATS))
        elif field.name == "counts":
            value.extend(r.choice([[r.choice(NASTY_INTEGERS)], [0] * 70_000, [1] * 70_000]))
        else:
            inner.ClearField(field.name)
    return message.SerializeToString()


def valid_request(i: int, shard: Shard, rng: np.random.Generator, r: random.Random):
    """Return a random method and a request that the shard would accept."""
    method = r.choices(METHODS, WEIGHTS)[0]
    first = shard.storage.first_key
    if method == "Insert":
        segment = make_message(rng, FRAMES, mark=3, first_step=r.choice([0, 9]))
        origin, transferred = r.choice(["", "elsewhere"]), r.random() < 0.3
        return method, pb.InsertRequest(
            writer=f"w{i}", sequence=1, segment=segment, origin=origin, transferred=transferred
        )
    if method == "UpdatePriorities":
        keys = np.arange(first, first + 4, dtype="<u8").tobytes()
        return method, pb.UpdatePrioritiesRequest(keys=keys, td_abs=np.ones(4, "<f4").tobytes())
    if method == "Sample":
        counts = [r.randrange(5) for _ in range(r.randrange(4))]
        return method, pb.SampleRequest(counts=counts, insert_credit=r.randrange(5))
    if method == "Drain":
        return method, pb.DrainRequest(taken=first + r.randrange(3), segments=r.randrange(5))
    return method, pb.SetLimitedRequest(limited=r.random() < 0.5)


def state(server: ShardServer) -> tuple[ShardInfo, int]:
    """Return the shard's state that a request could change, without what healthy clients change."""

    async def read() -> tuple[ShardInfo, int]:
        info = server.shard.info()
        counts = info.counts._replace(sampled=0)
        return info._replace(counts=counts, limiter=None, limiter_age=0.0), len(server.shard._last_sequence)

    return asyncio.run_coroutine_threadsafe(read(), server._loop).result(timeout=10.0)


class Malloc(ctypes.Structure):
    """The result of glibc's mallinfo2."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keep",
        )
    ]


def footprint() -> dict[str, int]:
    """Return allocated memory, threads and open files of this process, which runs clients and shard.

    Resident memory is no measure of leaks: it also grows with fragmentation.
    """
    gc.collect()
    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = Malloc
    info = mallinfo()
    return {
        "bytes": info.uordblks + info.hblkhd,
        "python blocks": sys.getallocatedblocks(),
        "threads": len(os.listdir("/proc/self/task")),
        "files": len(os.listdir("/proc/self/fd")),
    }


@pytest.mark.parametrize("requests", [800, pytest.param(100_000, marks=[pytest.mark.slow, pytest.mark.timeout(3000)])])
def test_malformed_requests_change_nothing_and_disturb_no_client(rng, requests):
    shard = Shard(CAPACITY, FRAMES, SelectorConfig(), limited=False)
    server = ShardServer(shard)
    address = f"127.0.0.1:{server.port}"
    channel = grpc.insecure_channel(address)
    streams, unaries = (
        {m: getattr(channel, kind)(f"/{SERVICE_NAME}/{m}") for m in METHODS}
        for kind in ("stream_stream", "unary_unary")
    )
    healthy, source = Writer([address]), sampler([SimpleNamespace(address=address)], spec=FRAMES)
    r = random.Random(7)
    refused, stored, early = Counter(), 0, None
    for i in range(requests):
        if i % 50 == 0:
            healthy.write(make_segment(rng, FRAMES, mark=1 + i % 200))
            healthy.flush(10.0)
            assert source.sample(10.0) is not None
            shard.check_valid()
        if i == requests // 5:
            early = footprint()
        before, writers = state(server)
        method, request = valid_request(i, shard, rng, r)
        data = mutate_message(request, r)
        try:
            if method in ("Insert", "Sample"):
                list(streams[method](iter([data]), timeout=10.0))
            else:
                unaries[method](data, timeout=10.0)
            stored += method == "Insert"
            if method == "SetLimited":
                unaries[method](pb.SetLimitedRequest(limited=False).SerializeToString(), timeout=10.0)
            continue
        except grpc.RpcError as error:
            code, words = error.code(), error.details()
        refused[method] += 1
        assert code in REFUSED, f"{i}: {method} {code} {words}"
        assert words, f"{i}: {method} was rejected without an explanation"
        after = state(server)
        if after[0].insert_credit >= UNLIMITED_CREDIT:  # granted by the healthy sampler in the meantime
            before = before._replace(insert_credit=after[0].insert_credit)
        assert after == (before, writers), f"{i}: a rejected {method} changed the shard"
    late = footprint()
    assert refused.total() > requests / 3
    assert set(refused) == set(METHODS)
    assert stored > requests / 100
    shard.check_valid()
    for what, most in {"bytes": 2**23, "python blocks": 50_000, "threads": 2, "files": 2}.items():
        assert late[what] <= early[what] + most, f"{what} grow: {early} at first, {late} in the end"
    healthy.close()
    source.close()
    channel.close()
    server.stop()
