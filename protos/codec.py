"""Converts messages to plain types (`types.py`) and back. `frames.py` compresses the frames in them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from protos import replay_pb2 as pb
from protos.frames import check_frames, compress_frames, decompress_frames, unwrap_blocks, wrap_blocks
from protos.types import (
    LOST_LIFE,
    TERMINATED,
    TRUNCATED,
    Counts,
    Drained,
    InvalidMessage,
    LimiterState,
    PackedSegment,
    Sampled,
    ShardInfo,
    SnapshotResult,
)
from rl.types import Array, Float32, Float64, ObservationSpec, Segment, TransitionBatch, UInt64

MAX_STEPS = 10_000  # largest number of steps, and of items, in a segment

_U1, _I4, _U4, _U8, _F4, _F8 = map(np.dtype, ("u1", "<i4", "<u4", "<u8", "<f4", "<f8"))
STEP_ARRAYS = {"actions": _I4, "rewards": _F4, "flags": _U1, "versions": _U4}
_ITEM_ARRAYS = {"item_step": _U4, "item_length": _U4, "r_t": _F4, "discount_t": _F4, "td_abs": _F4}
_SEGMENT_ARRAYS = {"frame_sizes": _U4, **STEP_ARRAYS, **_ITEM_ARRAYS}
_SAMPLE_ARRAYS = {"keys": _U8, "probability": _F8, "a_tm1": _I4, "r_t": _F4, "discount_t": _F4}

Draw = tuple[TransitionBatch, UInt64, Float64]  # transitions, keys [B] and draw probabilities [B]


def _read_array(message: Any, field: str, dtype: np.dtype[Any]) -> Array:
    """Return the array in a bytes field, read-only. Raises InvalidMessage if the length does not fit ``dtype``."""
    data = getattr(message, field)
    if len(data) % dtype.itemsize:
        raise InvalidMessage(f"{field} has {len(data)} bytes, not a whole number of {dtype.name} elements")
    return np.frombuffer(data, dtype=dtype)


def pack_segment(segment: Segment) -> PackedSegment:
    """Compress the segment's frames, ready to be sent or stored."""
    frames, sizes = compress_frames(segment.frames)
    flags = (
        segment.terminated * np.uint8(TERMINATED)
        + segment.truncated * np.uint8(TRUNCATED)
        + segment.lost_life * np.uint8(LOST_LIFE)
    )
    step_arrays = {"actions": segment.actions, "rewards": segment.rewards, "flags": flags, "versions": segment.versions}
    return PackedSegment(
        episode_id=segment.episode_id,
        first_step=segment.first_step,
        frames=frames,
        frame_sizes=sizes,
        **{name: np.ascontiguousarray(x, STEP_ARRAYS[name]) for name, x in step_arrays.items()},
        **{name: np.ascontiguousarray(getattr(segment, name), dtype) for name, dtype in _ITEM_ARRAYS.items()},
    )


def unpack_segment(segment: PackedSegment, spec: ObservationSpec) -> Segment:
    """Inverse of `pack_segment`; returns the segment with frames [S + 1, *frame].

    Raises InvalidMessage if the segment violates the specification.
    """
    check_segment(segment, spec, trusted=True)  # decompressing the frames checks them
    count = segment.steps + 1
    return Segment(
        episode_id=segment.episode_id,
        first_step=segment.first_step,
        frames=decompress_frames(wrap_blocks([segment.frames], count, spec), count, spec),
        actions=segment.actions,
        rewards=segment.rewards,
        terminated=(segment.flags & TERMINATED) != 0,
        truncated=(segment.flags & TRUNCATED) != 0,
        lost_life=(segment.flags & LOST_LIFE) != 0,
        versions=segment.versions,
        **{name: getattr(segment, name) for name in _ITEM_ARRAYS},
    )


def segment_to_message(segment: PackedSegment) -> pb.Segment:
    """Return the segment as a message."""
    return pb.Segment(
        episode_id=segment.episode_id,
        first_step=segment.first_step,
        frames=segment.frames,
        **{name: getattr(segment, name).tobytes() for name in _SEGMENT_ARRAYS},
    )


def segment_from_message(message: pb.Segment) -> PackedSegment:
    """Inverse of `segment_to_message`. Does not check the content; raises InvalidMessage if an array is cut short."""
    return PackedSegment(
        episode_id=message.episode_id,
        first_step=message.first_step,
        frames=message.frames,
        **{name: _read_array(message, name, dtype) for name, dtype in _SEGMENT_ARRAYS.items()},
    )


def check_segment(segment: PackedSegment, spec: ObservationSpec, trusted: bool = False) -> None:
    """Raise InvalidMessage if a segment violates the specification.

    Pass ``trusted=True`` to skip the check of the frames: if this process has packed them, or has checked them before.
    """
    steps, items = segment.steps, segment.items
    if steps == 0 or items == 0:
        raise InvalidMessage(f"a segment needs at least one step and one item, this one has {steps} and {items}")
    if max(steps, items) > MAX_STEPS:
        raise InvalidMessage(
            f"a segment has at most {MAX_STEPS} steps and {MAX_STEPS} items, this one has {steps} and {items}"
        )
    for names, count, things in ((STEP_ARRAYS, steps, "steps"), (_ITEM_ARRAYS, items, "items")):
        for name in names:
            if (length := len(getattr(segment, name))) != count:
                raise InvalidMessage(f"{name} has {length} elements, expected {count}: one for each of the {things}")
    if (segment.flags > (TERMINATED | TRUNCATED | LOST_LIFE)).any() or (segment.actions < 0).any():
        raise InvalidMessage("flags must be from 0 to 7, and actions at least 0")
    if not trusted:
        check_frames(segment.frame_sizes, segment.frames, steps, spec)
    _check_items(segment, spec)


def _check_items(segment: PackedSegment, spec: ObservationSpec) -> None:
    start, length = segment.item_step.astype(np.int64), segment.item_length.astype(np.int64)
    if (length < 1).any() or (start + length > segment.steps).any():
        raise InvalidMessage(
            f"items must lie within the segment's {segment.steps} steps, and item_length must be at least 1"
        )
    if segment.first_step > 0 and (start < spec.stack - 1).any():
        raise InvalidMessage(
            f"item_step must be at least {spec.stack - 1} if first_step is above 0, so that each item has all frames of "
            "its stack"
        )
    for name in ("r_t", "discount_t", "td_abs", "rewards"):
        if not np.isfinite(getattr(segment, name)).all():
            raise InvalidMessage(f"{name} must hold finite numbers only")
    if (segment.td_abs < 0).any() or ((segment.discount_t < 0) | (segment.discount_t > 1)).any():
        raise InvalidMessage("td_abs must be at least 0, and discount_t within [0, 1]")


def segment_to_record(writer: str, segment: PackedSegment) -> bytes:
    """Serialize a segment for storage on disk, as an InsertRequest with writer and segment."""
    request = pb.InsertRequest(writer=writer, segment=segment_to_message(segment))
    return bytes(request.SerializeToString())


def segment_from_record(data: bytes) -> tuple[str, PackedSegment]:
    """Inverse of `segment_to_record`; returns writer and segment. Raises InvalidMessage if it cannot be parsed."""
    try:
        request = pb.InsertRequest.FromString(data)
    except DecodeError as error:
        raise InvalidMessage(f"a stored segment cannot be parsed: {error}") from error
    return request.writer, segment_from_message(request.segment)


def sampled_to_message(sampled: Sampled, spec: ObservationSpec) -> pb.SampleReply:
    """Return a shard's draws as a message. The frames of each draw form one LZ4 frame (`wrap_blocks`)."""
    frames, at = [], 0
    for draw in sampled.draws:
        frames.append(wrap_blocks(sampled.stacks[at : at + 2 * draw], 2 * spec.stack * draw, spec))
        at += 2 * draw
    return pb.SampleReply(
        counts=counts_to_message(sampled.counts),
        frames=b"".join(frames),
        draw_bytes=[len(data) for data in frames],
        **{name: getattr(sampled, name).tobytes() for name in _SAMPLE_ARRAYS},
    )


def unpack_draw(sampled: Sampled, spec: ObservationSpec) -> Draw:
    """Return the batch of ``sampled``, a single draw of a shard in this process.

    The result is the same as that of `unpack_replies` for its message.
    """
    count = len(sampled.stacks) * spec.stack
    columns = [getattr(sampled, name) for name in _SAMPLE_ARRAYS]
    return _build_draw(columns, wrap_blocks(sampled.stacks, count, spec), spec)


def unpack_replies(replies: Sequence[tuple[pb.SampleReply, Sequence[int]]], spec: ObservationSpec) -> Iterator[Draw]:
    """Merge the draws of several shards into batches; each batch is unpacked when it is asked for.

    ``replies`` pairs each shard's reply with the number of items of each of its draws. Batch j consists of draw j of
    every reply. Yields transitions ready for training, keys [B] and draw probabilities [B], with the items in the order
    of the replies. s_tm1 and s_t are interleaved views of one buffer. Raises InvalidMessage if a reply is malformed.
    """
    for pieces in zip(*(_split_draws(message, draws, spec) for message, draws in replies), strict=True):
        *parts, data = zip(*([piece for piece in pieces if len(piece[0])] or pieces[:1]), strict=True)
        columns = [c[0] if len(c) == 1 else np.concatenate(c) for c in parts]
        frames = data[0]
        if len(data) > 1:
            blocks = [unwrap_blocks(d, 2 * spec.stack * len(k), spec) for d, k in zip(data, parts[0], strict=True)]
            frames = wrap_blocks(blocks, 2 * spec.stack * len(columns[0]), spec)
        yield _build_draw(columns, frames, spec)


def _build_draw(columns: Sequence[Array], frames: bytes | memoryview, spec: ObservationSpec) -> Draw:
    """Return a batch from the columns of _SAMPLE_ARRAYS and the frames of its stacks, a result of `wrap_blocks`."""
    keys, probability, a_tm1, r_t, discount_t = columns
    pairs = decompress_frames(frames, 2 * spec.stack * len(keys), spec).reshape(len(keys), 2, *spec.shape)
    return TransitionBatch(pairs[:, 0], a_tm1.astype(np.int64), r_t, discount_t, pairs[:, 1]), keys, probability


def _split_draws(message: pb.SampleReply, draws: Sequence[int], spec: ObservationSpec) -> Iterator[tuple[Any, ...]]:
    """Yield the columns and the frames of each draw of a reply. Raises InvalidMessage if a length is wrong."""
    columns = [_read_array(message, name, dtype) for name, dtype in _SAMPLE_ARRAYS.items()]
    items, frames = sum(draws), memoryview(message.frames)
    if {len(column) for column in columns} != {items}:
        raise InvalidMessage(f"keys has {len(columns[0])} elements; {items} items were requested, in every array")
    if len(message.draw_bytes) != len(draws) or sum(message.draw_bytes) != len(frames):
        raise InvalidMessage(
            f"draw_bytes has {len(message.draw_bytes)} elements that add up to {sum(message.draw_bytes)}; expected "
            f"{len(draws)} elements that add up to the {len(frames)} bytes of frames"
        )
    at = byte = 0
    for draw, size in zip(draws, message.draw_bytes, strict=True):
        yield *(column[at : at + draw] for column in columns), frames[byte : byte + size]
        at, byte = at + draw, byte + size


def priorities_from_message(message: pb.UpdatePrioritiesRequest) -> tuple[UInt64, Float32]:
    """Return keys, uint64 [B], and |TD error|, float32 [B]. Raises InvalidMessage if an array is cut short."""
    return _read_array(message, "keys", _U8), _read_array(message, "td_abs", _F4)


def limiter_from_message(message: pb.SampleRequest) -> LimiterState | None:
    """Return the limiter's state in a request, or None. Raises InvalidMessage if a number is not finite."""
    if not message.HasField("limiter"):
        return None
    state = _limiter_state(message.limiter)
    if not all(map(math.isfinite, state)):
        raise InvalidMessage("limiter must hold finite numbers only")
    return state


def _limiter_state(message: pb.Limiter) -> LimiterState:
    return LimiterState(*(getattr(message, name) for name in LimiterState._fields))


def counts_to_message(counts: Counts) -> pb.Counts:
    """Return a shard's counters as a message."""
    return pb.Counts(**counts._asdict())


def counts_from_message(message: pb.Counts) -> Counts:
    """Inverse of `counts_to_message`."""
    return Counts(*(getattr(message, name) for name in Counts._fields))


def info_to_message(info: ShardInfo) -> pb.InfoReply:
    """Return a shard's counts and settings as a message."""
    return pb.InfoReply(
        counts=counts_to_message(info.counts),
        capacity=info.capacity,
        insert_credit=info.insert_credit,
        limited=info.limited,
        selector=info.selector,
        frame_shape=info.spec.frame_shape,
        dtype=info.spec.dtype,
        stack=info.spec.stack,
        limiter=None if info.limiter is None else pb.Limiter(**info.limiter._asdict()),
        limiter_age=info.limiter_age,
        capacity_bytes=info.capacity_bytes,
    )


def info_from_message(message: pb.InfoReply) -> ShardInfo:
    """Inverse of `info_to_message`."""
    return ShardInfo(
        counts=counts_from_message(message.counts),
        capacity=message.capacity,
        insert_credit=message.insert_credit,
        limited=message.limited,
        selector=message.selector,
        spec=ObservationSpec(tuple(message.frame_shape), message.dtype, message.stack),
        limiter=_limiter_state(message.limiter) if message.HasField("limiter") else None,
        limiter_age=message.limiter_age,
        capacity_bytes=message.capacity_bytes,
    )


def drained_to_message(drained: Drained) -> pb.DrainReply:
    """Return the segments of a drained shard as a message."""
    segments = [insert_request(segment, origin) for origin, segment in drained.segments]
    return pb.DrainReply(segments=segments, next=drained.next, left=drained.left)


def drained_from_message(message: pb.DrainReply) -> Drained:
    """Inverse of `drained_to_message`. Does not check the segments; raises InvalidMessage if an array is cut short."""
    segments = [(request.origin, segment_from_message(request.segment)) for request in message.segments]
    return Drained(segments, message.next, message.left)


def snapshot_to_message(written: SnapshotResult) -> pb.SnapshotReply:
    """Return the statistics of a snapshot as a message."""
    return pb.SnapshotReply(items=written.items, bytes_written=written.bytes, seconds=written.seconds)


def snapshot_from_message(message: pb.SnapshotReply) -> SnapshotResult:
    """Inverse of `snapshot_to_message`."""
    return SnapshotResult(message.items, message.bytes_written, message.seconds)


def insert_request(segment: PackedSegment, origin: str, transferred: bool = False) -> pb.InsertRequest:
    """Return the message that inserts a segment of the writer ``origin``; the sender adds `writer` and `sequence`."""
    return pb.InsertRequest(segment=segment_to_message(segment), origin=origin, transferred=transferred)


def count_request_items(message: pb.InsertRequest) -> int:
    """Return the number of items in a request to insert, without unpacking it."""
    return len(message.segment.td_abs) // _F4.itemsize


def count_reply_items(message: pb.SampleReply) -> int:
    """Return the number of items in a reply, without unpacking it."""
    return len(message.keys) // _U8.itemsize


def sample_request(counts: Sequence[int], insert_credit: int, limiter: LimiterState | None) -> pb.SampleRequest:
    """Return a request for draws of ``counts`` items, with the shard's credit and, if given, the limiter's state."""
    state = None if limiter is None else pb.Limiter(**limiter._asdict())
    return pb.SampleRequest(counts=counts, insert_credit=insert_credit, limiter=state)


def priorities_request(keys: UInt64, td_abs: Array) -> pb.UpdatePrioritiesRequest:
    """Return a request that sets |TD error| [B] of the items with ``keys`` [B]."""
    keys, td_abs = np.asarray(keys, _U8), np.asarray(td_abs, _F4)
    return pb.UpdatePrioritiesRequest(keys=keys.tobytes(), td_abs=td_abs.tobytes())
