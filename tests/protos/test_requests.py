"""The sampler's requests: arrays are converted to the types in the specification."""

from __future__ import annotations

import struct

import numpy as np

from protos import codec
from protos import replay_pb2 as pb
from protos.types import LimiterState


def test_priorities_are_sent_as_uint64_and_float32():
    request = codec.priorities_request(np.array([7, 2**63]), np.array([0.5, 2.0], np.float64)[::-1])
    assert request.keys == struct.pack("<2Q", 7, 2**63)
    assert request.td_abs == struct.pack("<2f", 2.0, 0.5)


def test_a_sample_request_has_a_limiter_only_if_one_is_given():
    assert not codec.sample_request([3, 0], 9, None).HasField("limiter")
    request = codec.sample_request([3, 0], 9, LimiterState(min_size=5, diff=-1.5))
    assert (list(request.counts), request.insert_credit) == ([3, 0], 9)
    assert request.limiter == pb.Limiter(min_size=5, diff=-1.5)
