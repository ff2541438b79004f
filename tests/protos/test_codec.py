"""Round trips of segments and samples through messages, and malformed messages."""

from __future__ import annotations

import dataclasses

import lz4.block
import lz4.frame
import numpy as np
import pytest

from protos import codec, frames
from protos import replay_pb2 as pb
from protos.types import InvalidMessage
from replay.store.selectors import SelectorConfig
from replay.store.shard import Shard
from rl.types import ObservationSpec, Segment
from tests.conftest import FRAMES, SMALL, make_message, make_segment


def serialize_and_parse(segment):
    message = pb.Segment.FromString(codec.segment_to_message(segment).SerializeToString())
    return codec.segment_from_message(message)


def drawn_from(shard, *draws):
    """A shard's reply and the sizes of its draws."""
    return codec.sampled_to_message(shard.sample(draws), shard.spec), draws


@pytest.mark.parametrize("spec", [SMALL, FRAMES, ObservationSpec((300,), "float32")])
@pytest.mark.parametrize("first_step", [0, 5])
def test_segment_round_trip_through_a_message(rng, spec, first_step):
    segment = make_segment(rng, spec, first_step=first_step)
    segment = dataclasses.replace(segment, lost_life=rng.random(len(segment.actions)) < 0.5)
    back = codec.unpack_segment(serialize_and_parse(codec.pack_segment(segment)), spec)
    for field in dataclasses.fields(Segment):
        np.testing.assert_array_equal(getattr(back, field.name), getattr(segment, field.name), err_msg=field.name)


def test_sampled_frames_are_a_standard_lz4_frame(rng):
    shard = Shard(10, FRAMES, SelectorConfig(), limited=False)
    shard.insert("w", 1, codec.pack_segment(make_segment(rng, FRAMES)))
    reply = codec.sampled_to_message(shard.sample([5]), FRAMES)
    assert len(lz4.frame.decompress(reply.frames)) == 5 * 2 * FRAMES.stack * FRAMES.frame_bytes


def break_frames(m):
    m.frames = m.frames[:-1]


def break_sizes(m):
    sizes = np.frombuffer(m.frame_sizes, "<u4").copy()
    sizes[0] += 1
    m.frame_sizes = sizes.tobytes()


def first_block(change):
    """Change the content of the first frame's block, but not its length."""

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
    "block of zeros": (first_block(lambda block: bytes(len(block))), "decompresses to|damaged"),
    "stored block too short": (first_frame(lambda blocks: stored(399)), "decompresses to 399"),
    "stored block too long": (first_frame(lambda blocks: stored(401)), "decompresses to 401"),
    "blocks of nothing": (first_frame(lambda blocks: (b"\1\0\0\0\0" * 9) + blocks), "decompresses to 0"),
    "last frame cut": (lambda m: cut_last(m), "cut short"),
    "block cut": (first_frame(lambda blocks: blocks[:-3]), "cut short"),
    "no block": (first_frame(lambda blocks: b""), "lacks its last 400"),
    "end mark inside": (first_frame(lambda blocks: bytes(4) + blocks), "empty"),
    "a block twice": (first_frame(lambda blocks: blocks * 2), "damaged|expected 0"),
    "frame too short": (first_frame(lambda blocks: block_of(399)), "decompresses to 399"),
    "frame too long": (first_frame(lambda blocks: block_of(60_000)), "damaged"),
    "half an action": (lambda m: setattr(m, "actions", m.actions[:-1]), "whole number"),
    "a reward less": (lambda m: setattr(m, "rewards", m.rewards[:-4]), "rewards has"),
    "a priority more": (lambda m: setattr(m, "td_abs", m.td_abs + b"\0" * 4), "td_abs has"),
    "no items": (
        lambda m: [setattr(m, f, b"") for f in ("item_step", "item_length", "r_t", "discount_t", "td_abs")],
        "needs",
    ),
    "item outside": (set_array("item_step", "<u4", 0, 10_000), "must lie within"),
    "length 0": (set_array("item_length", "<u4", 0, 0), "at least 1"),
    "NaN return": (set_array("r_t", "<f4", 0, np.nan), "finite"),
    "negative priority": (set_array("td_abs", "<f4", 0, -1), "at least 0"),
    "infinite priority": (set_array("td_abs", "<f4", 0, np.inf), "finite"),
    "discount above 1": (set_array("discount_t", "<f4", 0, 1.5), "within"),
    "flags of nothing": (set_array("flags", "u1", 0, 8), "0 to 7"),
    "a negative action": (set_array("actions", "<i4", 0, -1), "actions at least 0"),
    "no context": (lambda m: setattr(m, "first_step", 9), "all frames of its stack"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_malformed_segment_is_rejected_with_an_explanation(rng, how):
    message = make_message(rng, FRAMES, mark=1)
    change, words = BROKEN[how]
    change(message)
    with pytest.raises(InvalidMessage, match=words):
        codec.check_segment(codec.segment_from_message(message), FRAMES)


@pytest.mark.parametrize("spec", [SMALL, FRAMES])
@pytest.mark.parametrize("draws", [[3, 0], [0, 3], [2, 0, 1], [0, 0, 2, 0]])
def test_an_empty_draw_between_others_is_unpacked(rng, spec, draws):
    """A shard with few items gets such requests: some batches have no item from it."""
    shard = Shard(10, spec, SelectorConfig(), limited=False)
    shard.insert("w", 1, codec.pack_segment(make_segment(rng, spec, mark=1)))
    drawn = list(codec.unpack_replies([drawn_from(shard, *draws)], spec))
    assert [len(keys) for _, keys, _ in drawn] == draws
    assert [len(transition.s_t) for transition, _, _ in drawn] == draws


@pytest.mark.parametrize("spec", [SMALL, FRAMES])
def test_unpack_draw_equals_unpack_replies(rng, spec):
    shard = Shard(10, spec, SelectorConfig(), limited=False)
    shard.insert("w", 1, codec.pack_segment(make_segment(rng, spec, mark=1)))
    sampled = shard.sample([7])
    here, keys, probability = codec.unpack_draw(sampled, spec)
    (there,) = codec.unpack_replies([(codec.sampled_to_message(sampled, spec), [7])], spec)
    for mine, its in zip((*here, keys, probability), (*there[0], *there[1:]), strict=True):
        np.testing.assert_array_equal(mine, its)
        assert mine.dtype == its.dtype


REPLIES = {
    "cut": lambda data: data[:-9],
    "without its end mark": lambda data: data[:-4],
    "followed by something": lambda data: data + b"more",
    "of another header": lambda data: b"\0" * 15 + data[15:],
    "of one item": lambda data: frames.wrap_blocks([frames.blank_frames(FRAMES, 8)], 8, FRAMES),
    "ended early": lambda data: frames.wrap_blocks(
        [frames.blank_frames(FRAMES, 8), frames.END_MARK, data[15:]], 40, FRAMES
    ),
    "damaged": lambda data: data[:30] + b"\xff" * 40 + data[70:],
    "empty": lambda data: b"",
}


@pytest.mark.parametrize("sized", [True, False])
@pytest.mark.parametrize("others", [0, 1])
@pytest.mark.parametrize("how", REPLIES)
def test_a_malformed_reply_is_rejected_with_an_explanation(rng, how, others, sized):
    """Alone, and with the reply of another shard; with ``draw_bytes`` updated or not."""
    shard = Shard(10, FRAMES, SelectorConfig(), limited=False)
    shard.insert("w", 1, codec.pack_segment(make_segment(rng, FRAMES, mark=1)))
    replies = [drawn_from(shard, 5)] + [drawn_from(shard, 3)] * others
    reply = replies[0][0]
    assert len(list(codec.unpack_replies(replies, FRAMES))) == 1
    reply.frames = REPLIES[how](reply.frames)
    if sized:
        reply.draw_bytes[:] = [len(reply.frames)]
    with pytest.raises(InvalidMessage, match="frames"):
        list(codec.unpack_replies(replies, FRAMES))


@pytest.mark.parametrize("spec", [SMALL, FRAMES])
def test_a_batch_from_several_shards_concatenates_their_draws(rng, spec):
    shards = [Shard(10, spec, SelectorConfig(), limited=False, seed=k) for k in range(3)]
    for k, shard in enumerate(shards):
        shard.insert("w", 1, codec.pack_segment(make_segment(rng, spec, mark=50 * k)))
    draws = [[3, 0, 2], [1, 4, 0], [0, 2, 5]]
    replies = [drawn_from(shard, *own) for shard, own in zip(shards, draws, strict=True)]
    alone = [list(codec.unpack_replies([one], spec)) for one in replies]
    for j, (transition, keys, probability) in enumerate(codec.unpack_replies(replies, spec)):
        parts = [own[j] for own in alone]
        for column, *pieces in zip(transition, *(part[0] for part in parts), strict=True):
            np.testing.assert_array_equal(column, np.concatenate(pieces))
        np.testing.assert_array_equal(keys, np.concatenate([part[1] for part in parts]))
        np.testing.assert_array_equal(probability, np.concatenate([part[2] for part in parts]))
