"""Message <-> numpy: the only codec.

Frames rest as independent LZ4 blocks (raw where a frame is too small to gain), so that a shard cuts any item out of a
segment with one slice and only the learner unpacks.
"""

from __future__ import annotations

from typing import Any

import lz4.block
import numpy as np

from protos import replay_pb2 as pb
from rl.returns import stack_frames
from rl.types import Array, Float64, Int64, ObservationSpec, Segment, Transition, UInt64

COMPRESS_FROM = 256  # bytes a frame; smaller ones travel raw

TERMINATED, TRUNCATED, LOST_LIFE = 1, 2, 4

_STEP_ARRAYS = {"actions": "<i4", "rewards": "<f4", "flags": "u1", "versions": "<u4"}
_ITEM_ARRAYS = {
    "item_step": "<u4",
    "item_length": "<u4",
    "r_t": "<f4",
    "discount_t": "<f4",
    "priority": "<f4",
}


class InvalidMessage(ValueError):
    """A message whose content contradicts the specification; the text says what and where."""


def _bytes(x: Any, dtype: str) -> bytes:
    return np.ascontiguousarray(x, dtype=dtype).tobytes()


def array(message: Any, field: str, dtype: str) -> Array:
    """The packed array in a bytes field; read-only. Raises InvalidMessage when it is cut short."""
    data = getattr(message, field)
    if len(data) % np.dtype(dtype).itemsize:
        raise InvalidMessage(f"{field} has {len(data)} bytes, not a whole number of {dtype}")
    return np.frombuffer(data, dtype=dtype)


def compress_frames(frames: Array) -> tuple[bytes, Array]:
    """Frames [F, ...] -> (their blocks end to end, uint32 sizes [F])."""
    frames = np.ascontiguousarray(frames)
    if frames[0].nbytes < COMPRESS_FROM:
        return frames.tobytes(), np.full(len(frames), frames[0].nbytes, np.uint32)
    blocks = [lz4.block.compress(frame, store_size=False) for frame in frames]
    return b"".join(blocks), np.asarray([len(b) for b in blocks], np.uint32)


def decompress_frames(data: bytes, sizes: Array, spec: ObservationSpec) -> Array:
    """Inverse of `compress_frames`: frames [F, *frame_shape]. Raises InvalidMessage on a damaged block."""
    size = spec.frame_bytes
    if size >= COMPRESS_FROM:
        view, ends = memoryview(data), np.cumsum(sizes, dtype=np.int64).tolist()
        starts = [0, *ends[:-1]]
        unpack = lz4.block.decompress
        try:
            data = b"".join([unpack(view[a:b], uncompressed_size=size) for a, b in zip(starts, ends, strict=True)])
        except lz4.block.LZ4BlockError as error:
            raise InvalidMessage(f"frames hold a damaged LZ4 block: {error}") from error
    if len(data) != size * len(sizes):
        raise InvalidMessage(f"frames unpack to {len(data)} bytes, not {len(sizes)} frames of {size}")
    return np.frombuffer(data, dtype=spec.dtype).reshape(len(sizes), *spec.frame_shape)


def pack_segment(segment: Segment) -> pb.Segment:
    """A segment as its message, frames compressed."""
    frames, sizes = compress_frames(segment.frames)
    flags = (
        segment.terminated * np.uint8(TERMINATED)
        + segment.truncated * np.uint8(TRUNCATED)
        + segment.lost_life * np.uint8(LOST_LIFE)
    )
    arrays = {name: _bytes(getattr(segment, name), dtype) for name, dtype in _ITEM_ARRAYS.items()}
    return pb.Segment(
        episode_id=segment.episode_id,
        first_step=segment.first_step,
        frames=frames,
        frame_sizes=_bytes(sizes, "<u4"),
        actions=_bytes(segment.actions, "<i4"),
        rewards=_bytes(segment.rewards, "<f4"),
        flags=_bytes(flags, "u1"),
        versions=_bytes(segment.versions, "<u4"),
        **arrays,
    )


def unpack_segment(message: pb.Segment, spec: ObservationSpec) -> Segment:
    """Inverse of `pack_segment`; raises InvalidMessage."""
    fields = segment_arrays(message, spec)
    flags = fields["flags"]
    return Segment(
        episode_id=message.episode_id,
        first_step=message.first_step,
        frames=decompress_frames(message.frames, fields["frame_sizes"], spec),
        actions=fields["actions"],
        rewards=fields["rewards"],
        terminated=(flags & TERMINATED) != 0,
        truncated=(flags & TRUNCATED) != 0,
        lost_life=(flags & LOST_LIFE) != 0,
        versions=fields["versions"],
        **{name: fields[name] for name in _ITEM_ARRAYS},
    )


def segment_arrays(message: pb.Segment, spec: ObservationSpec) -> dict[str, Array]:
    """The arrays of a segment message without unpacking its frames, checked. Raises InvalidMessage."""
    names = {"frame_sizes": "<u4", **_STEP_ARRAYS, **_ITEM_ARRAYS}
    fields = {name: array(message, name, dtype) for name, dtype in names.items()}
    steps, items = len(fields["actions"]), len(fields["item_step"])
    if steps == 0 or items == 0:
        raise InvalidMessage(f"a segment needs steps and items, this one has {steps} and {items}")
    for name in _STEP_ARRAYS:
        if len(fields[name]) != steps:
            raise InvalidMessage(f"{name} has {len(fields[name])} elements for {steps} steps")
    for name in _ITEM_ARRAYS:
        if len(fields[name]) != items:
            raise InvalidMessage(f"{name} has {len(fields[name])} elements for {items} items")
    _check_frames(fields["frame_sizes"], len(message.frames), steps, spec)
    _check_items(fields, steps, message.first_step, spec)
    return fields


def _check_frames(sizes: Array, total: int, steps: int, spec: ObservationSpec) -> None:
    if len(sizes) != steps + 1:
        raise InvalidMessage(f"{steps} steps need {steps + 1} frames, frame_sizes has {len(sizes)}")
    if int(sizes.sum(dtype=np.uint64)) != total:
        raise InvalidMessage(f"frame_sizes add up to {int(sizes.sum(dtype=np.uint64))}, frames has {total} bytes")
    if spec.frame_bytes < COMPRESS_FROM and (sizes != spec.frame_bytes).any():
        raise InvalidMessage(f"raw frames must have {spec.frame_bytes} bytes each")


def _check_items(fields: dict[str, Array], steps: int, first_step: int, spec: ObservationSpec) -> None:
    start, length = fields["item_step"].astype(np.int64), fields["item_length"].astype(np.int64)
    if (length < 1).any() or (start + length > steps).any():
        raise InvalidMessage(f"an item reaches outside the segment's {steps} steps")
    if first_step > 0 and (start < spec.stack - 1).any():
        raise InvalidMessage(f"an item lacks its {spec.stack - 1} context frames")
    for name in ("r_t", "discount_t", "priority", "rewards"):
        if not np.isfinite(fields[name]).all():
            raise InvalidMessage(f"{name} is not finite")
    if (fields["priority"] < 0).any() or ((fields["discount_t"] < 0) | (fields["discount_t"] > 1)).any():
        raise InvalidMessage("priority must be at least 0 and discount_t within [0, 1]")


def pack_samples(counts: pb.Counts, columns: dict[str, Array], frames: list[Any]) -> pb.SampleReply:
    """A reply from columns [B] by field name, `frame_sizes` [sum of frame_counts] and the items' frames, in order."""
    dtypes = {"keys": "<u8", "probability": "<f8", "a_tm1": "<i4", "r_t": "<f4", "discount_t": "<f4"}
    return pb.SampleReply(
        counts=counts,
        frames=b"".join(frames),
        **{name: _bytes(columns[name], dtype) for name, dtype in dtypes.items()},
        **{name: _bytes(columns[name], "<u4") for name in ("length", "frame_counts", "frame_sizes")},
    )


def unpack_samples(message: pb.SampleReply, spec: ObservationSpec) -> tuple[Transition, UInt64, Float64]:
    """Transitions ready for training, keys [B] and draw probabilities [B]; raises InvalidMessage."""
    counts = array(message, "frame_counts", "<u4").astype(np.int64)
    frames = decompress_frames(message.frames, array(message, "frame_sizes", "<u4"), spec)
    newest_t = counts.cumsum() - 1  # index of each item's bootstrap frame
    newest_tm1 = newest_t - array(message, "length", "<u4")
    first = newest_t - counts + 1  # index of each item's first frame: what lies before it is zeros
    transition = Transition(
        s_tm1=_stacks(frames, newest_tm1, first, spec.stack),
        a_tm1=array(message, "a_tm1", "<i4").astype(np.int64),
        r_t=array(message, "r_t", "<f4"),
        discount_t=array(message, "discount_t", "<f4"),
        s_t=_stacks(frames, newest_t, first, spec.stack),
    )
    return transition, array(message, "keys", "<u8"), array(message, "probability", "<f8")


def _stacks(frames: Array, newest: Int64, first: Int64, stack: int) -> Array:
    stacked = stack_frames(frames, newest, stack)
    if stack > 1:
        missing = (newest - first)[:, None] + np.arange(1 - stack, 1) < 0  # [B, stack]
        stacked[missing] = 0
    return stacked
