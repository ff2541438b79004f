"""Messages <-> plain types (`types.py`): the only codec. `frames.py` compresses the frames in them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from protos import replay_pb2 as pb
from protos.frames import blocks_of, check_frames, compress_frames, decompress_frames, enclosed
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
    SnapshotWritten,
)
from rl.types import Array, Float32, Float64, ObservationSpec, Segment, TransitionBatch, UInt64

MAX_STEPS = 10_000  # largest number of steps of a segment, and of its items

_U1, _I4, _U4, _U8, _F4, _F8 = map(np.dtype, ("u1", "<i4", "<u4", "<u8", "<f4", "<f8"))
STEP_ARRAYS = {"actions": _I4, "rewards": _F4, "flags": _U1, "versions": _U4}
_ITEM_ARRAYS = {"item_step": _U4, "item_length": _U4, "r_t": _F4, "discount_t": _F4, "td_abs": _F4}
_SEGMENT_ARRAYS = {"frame_sizes": _U4, **STEP_ARRAYS, **_ITEM_ARRAYS}
_SAMPLE_ARRAYS = {"keys": _U8, "probability": _F8, "a_tm1": _I4, "r_t": _F4, "discount_t": _F4}

Draw = tuple[TransitionBatch, UInt64, Float64]  # transitions, keys [B] and draw probabilities [B]


def _array(message: Any, field: str, dtype: np.dtype[Any]) -> Array:
    """The packed array in a bytes field; read-only. Raises InvalidMessage when it is cut short."""
    data = getattr(message, field)
    if len(data) % dtype.itemsize:
        raise InvalidMessage(f"{field} has {len(data)} bytes, not a whole number of {dtype.str}")
    return np.frombuffer(data, dtype=dtype)


def pack_segment(segment: Segment) -> PackedSegment:
    """The segment with its frames compressed, ready to be sent or stored."""
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
    """Inverse of `pack_segment`: the segment with frames [S + 1, *frame]. Raises InvalidMessage when it is invalid."""
    check_segment(segment, spec, trusted=True)  # unpacking its frames checks them
    count = segment.steps + 1
    return Segment(
        episode_id=segment.episode_id,
        first_step=segment.first_step,
        frames=decompress_frames(enclosed([segment.frames], count, spec), count, spec),
        actions=segment.actions,
        rewards=segment.rewards,
        terminated=(segment.flags & TERMINATED) != 0,
        truncated=(segment.flags & TRUNCATED) != 0,
        lost_life=(segment.flags & LOST_LIFE) != 0,
        versions=segment.versions,
        **{name: getattr(segment, name) for name in _ITEM_ARRAYS},
    )


def segment_to_message(segment: PackedSegment) -> pb.Segment:
    """The message that carries a segment."""
    return pb.Segment(
        episode_id=segment.episode_id,
        first_step=segment.first_step,
        frames=segment.frames,
        **{name: getattr(segment, name).tobytes() for name in _SEGMENT_ARRAYS},
    )


def segment_from_message(message: pb.Segment) -> PackedSegment:
    """Inverse of `segment_to_message`, not yet checked. Raises InvalidMessage where an array is cut short."""
    return PackedSegment(
        episode_id=message.episode_id,
        first_step=message.first_step,
        frames=message.frames,
        **{name: _array(message, name, dtype) for name, dtype in _SEGMENT_ARRAYS.items()},
    )


def check_segment(segment: PackedSegment, spec: ObservationSpec, trusted: bool = False) -> None:
    """Raise InvalidMessage where a segment contradicts the specification.

    Its frames are checked unless they are ``trusted``: packed in this process, or checked here before and unchanged
    since.
    """
    steps, items = segment.steps, segment.items
    if steps == 0 or items == 0:
        raise InvalidMessage(f"a segment needs steps and items, this one has {steps} and {items}")
    if max(steps, items) > MAX_STEPS:
        raise InvalidMessage(f"a segment has at most {MAX_STEPS} steps and items, this one has {steps} and {items}")
    for names, count, things in ((STEP_ARRAYS, steps, "steps"), (_ITEM_ARRAYS, items, "items")):
        for name in names:
            if (length := len(getattr(segment, name))) != count:
                raise InvalidMessage(f"{name} has {length} elements for {count} {things}")
    if (segment.flags > (TERMINATED | TRUNCATED | LOST_LIFE)).any() or (segment.actions < 0).any():
        raise InvalidMessage("flags must be 0 to 7 and actions at least 0")
    if not trusted:
        check_frames(segment.frame_sizes, segment.frames, steps, spec)
    _check_items(segment, spec)


def _check_items(segment: PackedSegment, spec: ObservationSpec) -> None:
    start, length = segment.item_step.astype(np.int64), segment.item_length.astype(np.int64)
    if (length < 1).any() or (start + length > segment.steps).any():
        raise InvalidMessage(f"an item reaches outside the segment's {segment.steps} steps")
    if segment.first_step > 0 and (start < spec.stack - 1).any():
        raise InvalidMessage(f"an item lacks its {spec.stack - 1} context frames")
    for name in ("r_t", "discount_t", "td_abs", "rewards"):
        if not np.isfinite(getattr(segment, name)).all():
            raise InvalidMessage(f"{name} is not finite")
    if (segment.td_abs < 0).any() or ((segment.discount_t < 0) | (segment.discount_t > 1)).any():
        raise InvalidMessage("td_abs must be at least 0 and discount_t within [0, 1]")


def segment_to_record(writer: str, segment: PackedSegment) -> bytes:
    """A segment as it is stored on disk: a serialized InsertRequest with writer and segment."""
    request = pb.InsertRequest(writer=writer, segment=segment_to_message(segment))
    return bytes(request.SerializeToString())


def segment_from_record(data: bytes) -> tuple[str, PackedSegment]:
    """Inverse of `segment_to_record`: writer and segment. Raises InvalidMessage when ``data`` is no such record."""
    try:
        request = pb.InsertRequest.FromString(data)
    except DecodeError as error:
        raise InvalidMessage(f"a record is no segment: {error}") from error
    return request.writer, segment_from_message(request.segment)


def sampled_to_message(sampled: Sampled, spec: ObservationSpec) -> pb.SampleReply:
    """The message that carries a shard's draws; the frames of each draw are enclosed, to be unpacked by one call."""
    frames, at = [], 0
    for draw in sampled.draws:
        frames.append(enclosed(sampled.stacks[at : at + 2 * draw], 2 * spec.stack * draw, spec))
        at += 2 * draw
    return pb.SampleReply(
        counts=counts_to_message(sampled.counts),
        frames=b"".join(frames),
        draw_bytes=[len(data) for data in frames],
        **{name: getattr(sampled, name).tobytes() for name in _SAMPLE_ARRAYS},
    )


def unpack_draw(sampled: Sampled, spec: ObservationSpec) -> Draw:
    """The one draw of a shard in this process as a batch, the same that `unpack_replies` makes of its message."""
    count = len(sampled.stacks) * spec.stack
    columns = [getattr(sampled, name) for name in _SAMPLE_ARRAYS]
    return _draw(columns, enclosed(sampled.stacks, count, spec), spec)


def unpack_replies(replies: Sequence[tuple[pb.SampleReply, Sequence[int]]], spec: ObservationSpec) -> Iterator[Draw]:
    """The batches that several shards' replies, each with the sizes of its draws, hold together; unpacked one by one.

    Of each batch: transitions ready for training, keys [B] and draw probabilities [B], one reply's items after the
    other's. s_tm1 and s_t are views of one buffer in which they alternate. Raises InvalidMessage.
    """
    for pieces in zip(*(_draws(message, draws, spec) for message, draws in replies), strict=True):
        *parts, data = zip(*([piece for piece in pieces if len(piece[0])] or pieces[:1]), strict=True)
        columns = [c[0] if len(c) == 1 else np.concatenate(c) for c in parts]
        frames = data[0]
        if len(data) > 1:
            blocks = [blocks_of(d, 2 * spec.stack * len(k), spec) for d, k in zip(data, parts[0], strict=True)]
            frames = enclosed(blocks, 2 * spec.stack * len(columns[0]), spec)
        yield _draw(columns, frames, spec)


def _draw(columns: Sequence[Array], frames: bytes | memoryview, spec: ObservationSpec) -> Draw:
    """A batch made of the columns of _SAMPLE_ARRAYS and the enclosed frames of its stacks."""
    keys, probability, a_tm1, r_t, discount_t = columns
    pairs = decompress_frames(frames, 2 * spec.stack * len(keys), spec).reshape(len(keys), 2, *spec.shape)
    return TransitionBatch(pairs[:, 0], a_tm1.astype(np.int64), r_t, discount_t, pairs[:, 1]), keys, probability


def _draws(message: pb.SampleReply, draws: Sequence[int], spec: ObservationSpec) -> Iterator[tuple[Any, ...]]:
    """Columns and frames of each draw of a reply. Raises InvalidMessage."""
    columns = [_array(message, name, dtype) for name, dtype in _SAMPLE_ARRAYS.items()]
    items, frames = sum(draws), memoryview(message.frames)
    if {len(column) for column in columns} != {items}:
        raise InvalidMessage(f"a reply of {len(columns[0])} keys for draws of {items} items in all")
    if len(message.draw_bytes) != len(draws) or sum(message.draw_bytes) != len(frames):
        raise InvalidMessage(f"frames of {len(frames)} bytes for {len(draws)} draws that say otherwise")
    at = byte = 0
    for draw, size in zip(draws, message.draw_bytes, strict=True):
        yield *(column[at : at + draw] for column in columns), frames[byte : byte + size]
        at, byte = at + draw, byte + size


def priorities_from_message(message: pb.UpdatePrioritiesRequest) -> tuple[UInt64, Float32]:
    """Keys, uint64 [B], and |TD error|, float32 [B]. Raises InvalidMessage where an array is cut short."""
    return _array(message, "keys", _U8), _array(message, "td_abs", _F4)


def limiter_from_message(message: pb.SampleRequest) -> LimiterState | None:
    """The limiter's state that a request carries, or None. Raises InvalidMessage when a number is not finite."""
    if not message.HasField("limiter"):
        return None
    told = _limiter(message.limiter)
    if not all(map(math.isfinite, told)):
        raise InvalidMessage("limiter is not finite")
    return told


def _limiter(message: pb.Limiter) -> LimiterState:
    return LimiterState(*(getattr(message, name) for name in LimiterState._fields))


def counts_to_message(counts: Counts) -> pb.Counts:
    """The message that carries a shard's totals."""
    return pb.Counts(**counts._asdict())


def counts_from_message(message: pb.Counts) -> Counts:
    """Inverse of `counts_to_message`: a shard's totals."""
    return Counts(*(getattr(message, name) for name in Counts._fields))


def info_to_message(info: ShardInfo) -> pb.InfoReply:
    """The message that carries a shard's counts and settings."""
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
    """Inverse of `info_to_message`: a shard's counts and settings."""
    return ShardInfo(
        counts=counts_from_message(message.counts),
        capacity=message.capacity,
        insert_credit=message.insert_credit,
        limited=message.limited,
        selector=message.selector,
        spec=ObservationSpec(tuple(message.frame_shape), message.dtype, message.stack),
        limiter=_limiter(message.limiter) if message.HasField("limiter") else None,
        limiter_age=message.limiter_age,
        capacity_bytes=message.capacity_bytes,
    )


def drained_to_message(drained: Drained) -> pb.DrainReply:
    """The message that carries segments handed over by a shard."""
    segments = [insert_request(segment, origin) for origin, segment in drained.segments]
    return pb.DrainReply(segments=segments, next=drained.next, left=drained.left)


def drained_from_message(message: pb.DrainReply) -> Drained:
    """Inverse of `drained_to_message`, its segments unchecked. Raises InvalidMessage where an array is cut short."""
    segments = [(request.origin, segment_from_message(request.segment)) for request in message.segments]
    return Drained(segments, message.next, message.left)


def written_to_message(written: SnapshotWritten) -> pb.SnapshotReply:
    """The message that says what a snapshot wrote."""
    return pb.SnapshotReply(items=written.items, bytes_written=written.bytes, seconds=written.seconds)


def written_from_message(message: pb.SnapshotReply) -> SnapshotWritten:
    """Inverse of `written_to_message`: what a snapshot wrote."""
    return SnapshotWritten(message.items, message.bytes_written, message.seconds)


def insert_request(segment: PackedSegment, origin: str, transferred: bool = False) -> pb.InsertRequest:
    """The message that inserts a segment of the writer ``origin``; the writer that sends it sets name and sequence."""
    return pb.InsertRequest(segment=segment_to_message(segment), origin=origin, transferred=transferred)


def items_of_reply(message: pb.SampleReply) -> int:
    """Number of items that a reply holds, before it is unpacked."""
    return len(message.keys) // _U8.itemsize


def sample_request(counts: Sequence[int], insert_credit: int, limiter: LimiterState | None) -> pb.SampleRequest:
    """A request for draws of ``counts`` items, with the shard's cumulative credit and the limiter's state, if given."""
    told = None if limiter is None else pb.Limiter(**limiter._asdict())
    return pb.SampleRequest(counts=counts, insert_credit=insert_credit, limiter=told)


def priorities_request(keys: UInt64, td_abs: Array) -> pb.UpdatePrioritiesRequest:
    """The message that carries |TD error| [B] of the items with ``keys`` [B]."""
    keys, td_abs = np.asarray(keys, _U8), np.asarray(td_abs, _F4)
    return pb.UpdatePrioritiesRequest(keys=keys.tobytes(), td_abs=td_abs.tobytes())
