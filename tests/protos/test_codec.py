"""Segments and samples through the wire and back."""

from __future__ import annotations

import dataclasses

import lz4.block
import lz4.frame
import numpy as np
import pytest

from protos import codec
from protos import replay_pb2 as pb
from replay.store.selectors import SelectorConfig
from replay.store.shard import Shard
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
    enclosed = codec._enclosed([data], len(frames), FRAMES)
    np.testing.assert_array_equal(codec.decompress_frames(enclosed, len(frames), FRAMES), frames)


BIG = ObservationSpec((5_000_000,), "uint8")  # above the LZ4 frame format's largest block


@pytest.mark.parametrize("noise", [True, False])
@pytest.mark.parametrize("spec", [FRAMES, BIG])
def test_frames_of_any_size_and_content_pass_the_check(rng, spec, noise):
    """Noise does not compress and rests as it is; a large frame takes several blocks."""
    frames = rng.integers(0, 256 if noise else 1, (2, *spec.frame_shape), dtype=np.uint8)
    data, sizes = codec.compress_frames(frames)
    codec._check_frames(sizes, data, 1, spec)
    np.testing.assert_array_equal(codec.decompress_frames(codec._enclosed([data], 2, spec), 2, spec), frames)


def test_sampled_frames_are_a_standard_lz4_frame(rng):
    shard = Shard(10, FRAMES, SelectorConfig(), limited=False)
    shard.insert("w", 1, codec.pack_segment(make_segment(rng, FRAMES)))
    reply = shard.sample(5)
    assert len(lz4.frame.decompress(reply.frames)) == 5 * 2 * FRAMES.stack * FRAMES.frame_bytes


def break_frames(m):
    m.frames = m.frames[:-1]


def break_sizes(m):
    sizes = np.frombuffer(m.frame_sizes, "<u4").copy()
    sizes[0] += 1
    m.frame_sizes = sizes.tobytes()


def first_block(change):
    """Change the content of the first frame's block, its length kept."""

    def apply(m):
        size = int(np.frombuffer(m.frame_sizes, "<u4")[0])
        block = change(m.frames[4:size])
        assert len(block) == size - 4
        m.frames = m.frames[:4] + block + m.frames[size:]

    return apply


def first_frame(change):
    """Replace the first frame's blocks."""

    def apply(m):
        sizes = np.frombuffer(m.frame_sizes, "<u4").copy()
        blocks = change(m.frames[: sizes[0]])
        m.frames = blocks + m.frames[sizes[0] :]
        sizes[0] = len(blocks)
        m.frame_sizes = sizes.tobytes()

    return apply


def block_of(size):
    data = lz4.block.compress(bytes(size), store_size=False)
    return len(data).to_bytes(4, "little") + data


def stored(size):
    return (size | 2**31).to_bytes(4, "little") + bytes(size)


def cut_last(m):
    sizes = np.frombuffer(m.frame_sizes, "<u4").copy()
    sizes[-1] -= 2
    m.frame_sizes, m.frames = sizes.tobytes(), m.frames[:-2]


def set_array(name, dtype, index, value):
    def change(m):
        x = np.frombuffer(getattr(m, name), dtype).copy()
        x[index] = value
        setattr(m, name, x.tobytes())

    return change


BROKEN = {
    "frames cut": (break_frames, "add up"),
    "sizes wrong": (break_sizes, "add up"),
    "block of zeros": (first_block(lambda block: bytes(len(block))), "unpacks to|damaged"),
    "stored block too short": (first_frame(lambda blocks: stored(399)), "unpacks to 399"),
    "stored block too long": (first_frame(lambda blocks: stored(401)), "unpacks to 401"),
    "blocks of nothing": (first_frame(lambda blocks: (b"\1\0\0\0\0" * 9) + blocks), "unpacks to 0"),
    "last frame cut": (lambda m: cut_last(m), "cut short"),
    "block cut": (first_frame(lambda blocks: blocks[:-3]), "cut short"),
    "no block": (first_frame(lambda blocks: b""), "lacks its last 400"),
    "end mark inside": (first_frame(lambda blocks: bytes(4) + blocks), "empty"),
    "a block twice": (first_frame(lambda blocks: blocks * 2), "damaged|where 0"),
    "frame too short": (first_frame(lambda blocks: block_of(399)), "unpacks to 399"),
    "frame too long": (first_frame(lambda blocks: block_of(60_000)), "damaged"),
    "half an action": (lambda m: setattr(m, "actions", m.actions[:-1]), "whole number"),
    "a reward less": (lambda m: setattr(m, "rewards", m.rewards[:-4]), "rewards has"),
    "a priority more": (lambda m: setattr(m, "td_abs", m.td_abs + b"\0" * 4), "td_abs has"),
    "no items": (
        lambda m: [setattr(m, f, b"") for f in ("item_step", "item_length", "r_t", "discount_t", "td_abs")],
        "needs",
    ),
    "item outside": (set_array("item_step", "<u4", 0, 10_000), "outside"),
    "length 0": (set_array("item_length", "<u4", 0, 0), "outside"),
    "NaN return": (set_array("r_t", "<f4", 0, np.nan), "finite"),
    "negative priority": (set_array("td_abs", "<f4", 0, -1), "at least 0"),
    "infinite priority": (set_array("td_abs", "<f4", 0, np.inf), "finite"),
    "discount above 1": (set_array("discount_t", "<f4", 0, 1.5), "within"),
    "flags of nothing": (set_array("flags", "u1", 0, 8), "0 to 7"),
    "a negative action": (set_array("actions", "<i4", 0, -1), "actions at least 0"),
    "no context": (lambda m: setattr(m, "first_step", 9), "context"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_segment_is_refused_with_a_sentence(rng, how):
    message = codec.pack_segment(make_segment(rng, FRAMES, mark=1))
    change, words = BROKEN[how]
    change(message)
    with pytest.raises(codec.InvalidMessage, match=words):
        codec.segment_arrays(message, FRAMES)


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("side", [256, 512])
def test_a_block_that_the_format_refuses_is_refused_at_once(rng, side, compressed):
    """Noise that fills the largest block grows when it is compressed; two blocks' worth in one block."""
    spec = ObservationSpec((side, side * (1 if compressed else 17)), "uint8")
    noise = rng.bytes(spec.frame_bytes)
    block = lz4.block.compress(noise, store_size=False) if compressed else noise
    data = (len(block) | (0 if compressed else 2**31)).to_bytes(4, "little") + block
    most = codec._block_bytes(spec.frame_bytes)
    if len(block) > most:
        with pytest.raises(codec.InvalidMessage, match=f"above {most}"):
            codec._check_blocks(data, 0, len(data), spec.frame_bytes)
    else:
        codec._check_blocks(data, 0, len(data), spec.frame_bytes)


@pytest.mark.parametrize("spec", [SMALL, FRAMES])
@pytest.mark.parametrize("draws", [[3, 0], [0, 3], [2, 0, 1], [0, 0, 2, 0]])
def test_a_draw_of_no_items_stands_among_the_others(rng, spec, draws):
    """What a shard gets that has a small share of several batches."""
    shard = Shard(10, spec, SelectorConfig(), limited=False)
    shard.insert("w", 1, codec.pack_segment(make_segment(rng, spec, mark=1)))
    drawn = list(codec.unpack_samples([(shard.sample(*draws), draws)], spec))
    assert [len(keys) for _, keys, _ in drawn] == draws
    assert [len(transition.s_t) for transition, _, _ in drawn] == draws


REPLIES = {
    "cut": lambda data: data[:-9],
    "without its end mark": lambda data: data[:-4],
    "followed by something": lambda data: data + b"more",
    "of another header": lambda data: b"\0" * 15 + data[15:],
    "of one item": lambda data: codec._enclosed([codec.blank_frames(FRAMES, 8)], 8, FRAMES),
    "ended early": lambda data: codec._enclosed([codec.blank_frames(FRAMES, 8), codec.END_MARK, data[15:]], 40, FRAMES),
    "damaged": lambda data: data[:30] + b"\xff" * 40 + data[70:],
    "empty": lambda data: b"",
}


@pytest.mark.parametrize("sized", [True, False])
@pytest.mark.parametrize("others", [0, 1])
@pytest.mark.parametrize("how", REPLIES)
def test_a_broken_reply_is_refused_with_a_sentence(rng, how, others, sized):
    """By itself, and as part of a batch out of several shards; whether it says its new size or not."""
    shard = Shard(10, FRAMES, SelectorConfig(), limited=False)
    shard.insert("w", 1, codec.pack_segment(make_segment(rng, FRAMES, mark=1)))
    reply = shard.sample(5)
    replies = [(reply, [5])] + [(shard.sample(3), [3])] * others
    assert len(list(codec.unpack_samples(replies, FRAMES))) == 1
    reply.frames = REPLIES[how](reply.frames)
    if sized:
        reply.draw_bytes[:] = [len(reply.frames)]
    with pytest.raises(codec.InvalidMessage, match="frames"):
        list(codec.unpack_samples(replies, FRAMES))


@pytest.mark.parametrize("spec", [SMALL, FRAMES])
def test_a_batch_of_several_shards_is_their_parts_one_after_the_other(rng, spec):
    shards = [Shard(10, spec, SelectorConfig(), limited=False, seed=k) for k in range(3)]
    for k, shard in enumerate(shards):
        shard.insert("w", 1, codec.pack_segment(make_segment(rng, spec, mark=50 * k)))
    draws = [[3, 0, 2], [1, 4, 0], [0, 2, 5]]
    replies = [(shard.sample(*own), own) for shard, own in zip(shards, draws, strict=True)]
    alone = [list(codec.unpack_samples([one], spec)) for one in replies]
    for j, (transition, keys, probability) in enumerate(codec.unpack_samples(replies, spec)):
        parts = [own[j] for own in alone]
        for column, *pieces in zip(transition, *(part[0] for part in parts), strict=True):
            np.testing.assert_array_equal(column, np.concatenate(pieces))
        np.testing.assert_array_equal(keys, np.concatenate([part[1] for part in parts]))
        np.testing.assert_array_equal(probability, np.concatenate([part[2] for part in parts]))
