"""Segments and samples through the wire and back."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from protos import codec
from protos import replay_pb2 as pb
from rl.types import ObservationSpec, Segment
from tests.conftest import FRAMES, SMALL, make_segment


@pytest.mark.parametrize("spec", [SMALL, FRAMES, ObservationSpec((300,), "float32")])
@pytest.mark.parametrize("first_step", [0, 5])
def test_a_segment_survives_the_wire(rng, spec, first_step):
    segment = make_segment(rng, spec, first_step=first_step)
    segment = dataclasses.replace(segment, lost_life=rng.random(len(segment.actions)) < 0.5)
    back = codec.unpack_segment(pb.Segment.FromString(codec.pack_segment(segment).SerializeToString()), spec)
    for field in dataclasses.fields(Segment):
        np.testing.assert_array_equal(getattr(back, field.name), getattr(segment, field.name), err_msg=field.name)


def test_frames_compress_without_loss(rng):
    frames = np.repeat(rng.integers(0, 3, (5, 20, 5), dtype=np.uint8), 4, axis=2)
    data, sizes = codec.compress_frames(frames)
    assert len(data) == sizes.sum() < frames.nbytes
    np.testing.assert_array_equal(codec.decompress_frames(data, sizes, FRAMES), frames)


def break_frames(m):
    m.frames = m.frames[:-1]


def break_sizes(m):
    sizes = np.frombuffer(m.frame_sizes, "<u4").copy()
    sizes[0] += 1
    m.frame_sizes = sizes.tobytes()


def set_array(name, dtype, index, value):
    def change(m):
        x = np.frombuffer(getattr(m, name), dtype).copy()
        x[index] = value
        setattr(m, name, x.tobytes())

    return change


BROKEN = {
    "frames cut": (break_frames, "add up"),
    "sizes wrong": (break_sizes, "add up"),
    "half an action": (lambda m: setattr(m, "actions", m.actions[:-1]), "whole number"),
    "a reward less": (lambda m: setattr(m, "rewards", m.rewards[:-4]), "rewards has"),
    "a priority more": (lambda m: setattr(m, "priority", m.priority + b"\0" * 4), "priority has"),
    "no items": (
        lambda m: [setattr(m, f, b"") for f in ("item_step", "item_length", "r_t", "discount_t", "priority")],
        "needs",
    ),
    "item outside": (set_array("item_step", "<u4", 0, 10_000), "outside"),
    "length 0": (set_array("item_length", "<u4", 0, 0), "outside"),
    "NaN return": (set_array("r_t", "<f4", 0, np.nan), "finite"),
    "negative priority": (set_array("priority", "<f4", 0, -1), "at least 0"),
    "infinite priority": (set_array("priority", "<f4", 0, np.inf), "finite"),
    "discount above 1": (set_array("discount_t", "<f4", 0, 1.5), "within"),
    "no context": (lambda m: setattr(m, "first_step", 9), "context"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_segment_is_refused_with_a_sentence(rng, how):
    message = codec.pack_segment(make_segment(rng, FRAMES))
    change, words = BROKEN[how]
    change(message)
    with pytest.raises(codec.InvalidMessage, match=words):
        codec.segment_arrays(message, FRAMES)


def test_a_damaged_block_is_refused(rng):
    message = codec.pack_segment(make_segment(rng, FRAMES))
    message.frames = bytes(len(message.frames))
    with pytest.raises(codec.InvalidMessage, match="LZ4|unpack"):
        codec.unpack_segment(message, FRAMES)
