"""Message <-> numpy: the only codec.

Frames of COMPRESS_FROM bytes and more rest as LZ4 blocks, each frame for itself, as the LZ4 frame format writes them: a
shard cuts stacks out of a segment with one slice each, and the stacks of a whole batch, end to end between that format's
header and end mark, are unpacked by one call.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import lz4.block
import lz4.frame
import numpy as np

from protos import replay_pb2 as pb
from rl.types import Array, Float64, ObservationSpec, Segment, TransitionBatch, UInt64

COMPRESS_FROM = 256  # bytes a frame; smaller ones travel raw
BLOCK_SIZES = {
    2**16: lz4.frame.BLOCKSIZE_MAX64KB,
    2**18: lz4.frame.BLOCKSIZE_MAX256KB,
    2**20: lz4.frame.BLOCKSIZE_MAX1MB,
    2**22: lz4.frame.BLOCKSIZE_MAX4MB,
}
HEADER = 15  # bytes that an LZ4 frame begins with
END_MARK = bytes(4)
STORED = 2**31  # flag in a block's length: not compressed

TERMINATED, TRUNCATED, LOST_LIFE = 1, 2, 4
MAX_STEPS = 10_000  # of a segment; its items too

STEP_ARRAYS = {"actions": "<i4", "rewards": "<f4", "flags": "u1", "versions": "<u4"}
_ITEM_ARRAYS = {
    "item_step": "<u4",
    "item_length": "<u4",
    "r_t": "<f4",
    "discount_t": "<f4",
    "td_abs": "<f4",
}
_SAMPLE_ARRAYS = {"keys": "<u8", "probability": "<f8", "a_tm1": "<i4", "r_t": "<f4", "discount_t": "<f4"}


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


def _block_bytes(frame_bytes: int) -> int:
    """The smallest of the format's block sizes that holds a frame; a frame above the largest takes several."""
    return next((size for size in BLOCK_SIZES if frame_bytes <= size), max(BLOCK_SIZES))


def _compressor(frame_bytes: int) -> lz4.frame.LZ4FrameCompressor:
    block_size = BLOCK_SIZES[_block_bytes(frame_bytes)]
    return lz4.frame.LZ4FrameCompressor(block_size=block_size, block_linked=False, auto_flush=True)


@functools.lru_cache(maxsize=64)
def _header(frame_bytes: int, count: int) -> bytes:
    """What the LZ4 frame format writes before the blocks of ``count`` frames."""
    return bytes(_compressor(frame_bytes).begin(source_size=frame_bytes * count))


def compress_frames(frames: Array) -> tuple[bytes, Array]:
    """Frames [F, ...] -> (their blocks end to end, uint32 sizes [F])."""
    frames = np.ascontiguousarray(frames)
    size = frames[0].nbytes
    if size < COMPRESS_FROM:
        return frames.tobytes(), np.full(len(frames), size, np.uint32)
    compressor = _compressor(size)
    compressor.begin()
    blocks = [compressor.compress(frame) for frame in frames]
    return b"".join(blocks), np.asarray([len(b) for b in blocks], np.uint32)


@functools.lru_cache(maxsize=8)
def blank_frames(spec: ObservationSpec, count: int) -> bytes:
    """``count`` frames of zeros, as `compress_frames` would give them."""
    return compress_frames(np.zeros((1, *spec.frame_shape), spec.dtype))[0] * count


def _enclosed(blocks: Sequence[bytes | memoryview], count: int, spec: ObservationSpec) -> bytes:
    """The blocks of ``count`` frames as `decompress_frames` takes them."""
    if spec.frame_bytes < COMPRESS_FROM or not blocks:
        return b"".join(blocks)
    return b"".join([_header(spec.frame_bytes, count), *blocks, END_MARK])


def decompress_frames(data: bytes | memoryview, count: int, spec: ObservationSpec) -> Array:
    """Frames [count, *frame_shape], writeable, out of what `_enclosed` made. Raises InvalidMessage on damage."""
    if spec.frame_bytes < COMPRESS_FROM or not count:
        unpacked = bytearray(data)
    elif data[:HEADER] == _header(spec.frame_bytes, count):
        unpacked = _decompressed(data)
    else:
        raise InvalidMessage(f"frames do not begin with the LZ4 header of {count} frames of {spec.frame_bytes} bytes")
    if len(unpacked) != spec.frame_bytes * count:
        raise InvalidMessage(f"frames unpack to {len(unpacked)} bytes, not {count} frames of {spec.frame_bytes}")
    return np.frombuffer(unpacked, dtype=spec.dtype).reshape(count, *spec.frame_shape)


def _decompressed(data: bytes | memoryview) -> bytearray:
    try:
        unpacked, read = lz4.frame.decompress(data, return_bytearray=True, return_bytes_read=True)
    except RuntimeError as error:
        raise InvalidMessage(f"frames hold a damaged LZ4 block: {error}") from error
    if read != len(data):
        raise InvalidMessage(f"frames hold an LZ4 end mark after {read} of {len(data)} bytes")
    return unpacked  # type: ignore[no-any-return]


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
    flags, steps = fields["flags"], len(fields["actions"])
    return Segment(
        episode_id=message.episode_id,
        first_step=message.first_step,
        frames=decompress_frames(_enclosed([message.frames], steps + 1, spec), steps + 1, spec),
        actions=fields["actions"],
        rewards=fields["rewards"],
        terminated=(flags & TERMINATED) != 0,
        truncated=(flags & TRUNCATED) != 0,
        lost_life=(flags & LOST_LIFE) != 0,
        versions=fields["versions"],
        **{name: fields[name] for name in _ITEM_ARRAYS},
    )


def segment_arrays(message: pb.Segment, spec: ObservationSpec, trusted: bool = False) -> dict[str, Array]:
    """The arrays of a segment message, checked, its frames too unless they are ``trusted``. Raises InvalidMessage.

    Trusted frames are those of a segment that passed this check before, and of which nothing has changed since.
    """
    names = {"frame_sizes": "<u4", **STEP_ARRAYS, **_ITEM_ARRAYS}
    fields = {name: array(message, name, dtype) for name, dtype in names.items()}
    steps, items = len(fields["actions"]), len(fields["item_step"])
    if steps == 0 or items == 0:
        raise InvalidMessage(f"a segment needs steps and items, this one has {steps} and {items}")
    if max(steps, items) > MAX_STEPS:
        raise InvalidMessage(f"a segment has at most {MAX_STEPS} steps and items, this one has {steps} and {items}")
    for name in STEP_ARRAYS:
        if len(fields[name]) != steps:
            raise InvalidMessage(f"{name} has {len(fields[name])} elements for {steps} steps")
    for name in _ITEM_ARRAYS:
        if len(fields[name]) != items:
            raise InvalidMessage(f"{name} has {len(fields[name])} elements for {items} items")
    if (fields["flags"] > (TERMINATED | TRUNCATED | LOST_LIFE)).any() or (fields["actions"] < 0).any():
        raise InvalidMessage("flags must be 0 to 7 and actions at least 0")
    if not trusted:
        _check_frames(fields["frame_sizes"], message.frames, steps, spec)
    _check_items(fields, steps, message.first_step, spec)
    return fields


def _check_frames(sizes: Array, data: bytes, steps: int, spec: ObservationSpec) -> None:
    if len(sizes) != steps + 1:
        raise InvalidMessage(f"{steps} steps need {steps + 1} frames, frame_sizes has {len(sizes)}")
    if int(sizes.sum(dtype=np.uint64)) != len(data):
        raise InvalidMessage(f"frame_sizes add up to {int(sizes.sum(dtype=np.uint64))}, frames has {len(data)} bytes")
    size = spec.frame_bytes
    if size < COMPRESS_FROM:
        if (sizes != size).any():
            raise InvalidMessage(f"raw frames must have {size} bytes each")
        return
    view, start = memoryview(data), 0
    for end in sizes.cumsum(dtype=np.int64).tolist():
        if not _is_one_block(view[start:end], size):
            _check_blocks(data, start, end, size)
        start = end


def _is_one_block(data: memoryview, frame_bytes: int) -> bool:
    """Whether ``data`` is one compressed block of a whole frame, as nearly all are; `_check_blocks` knows the rest."""
    if int.from_bytes(data[:4], "little") != len(data) - 4 or not 4 < len(data) <= frame_bytes <= max(BLOCK_SIZES):
        return False
    try:
        return len(lz4.block.decompress(data[4:], uncompressed_size=frame_bytes)) == frame_bytes
    except lz4.block.LZ4BlockError:
        return False


def _check_blocks(data: bytes, at: int, end: int, frame_bytes: int) -> None:
    """Raise InvalidMessage unless ``data[at:end]`` holds the blocks of one frame: all full, but for the last one."""
    missing, most = frame_bytes, _block_bytes(frame_bytes)
    while at < end:
        length = int.from_bytes(data[at : at + 4], "little")
        block = data[at + 4 : at + 4 + (length & ~STORED)]
        at += 4 + len(block)
        if at > end or len(block) != length & ~STORED or not 0 < len(block) <= most:
            raise InvalidMessage(f"frames hold an LZ4 block that is cut short, empty or above {most} bytes")
        expected = min(missing, most)
        try:
            unpacked = len(block) if length & STORED else len(lz4.block.decompress(block, uncompressed_size=expected))
        except lz4.block.LZ4BlockError as error:
            raise InvalidMessage(f"frames hold a damaged LZ4 block: {error}") from error
        if unpacked != expected or not expected:
            raise InvalidMessage(f"an LZ4 block unpacks to {unpacked} bytes where {expected} are missing")
        missing -= unpacked
    if missing:
        raise InvalidMessage(f"a frame lacks its last {missing} of {frame_bytes} bytes")


def _check_items(fields: dict[str, Array], steps: int, first_step: int, spec: ObservationSpec) -> None:
    start, length = fields["item_step"].astype(np.int64), fields["item_length"].astype(np.int64)
    if (length < 1).any() or (start + length > steps).any():
        raise InvalidMessage(f"an item reaches outside the segment's {steps} steps")
    if first_step > 0 and (start < spec.stack - 1).any():
        raise InvalidMessage(f"an item lacks its {spec.stack - 1} context frames")
    for name in ("r_t", "discount_t", "td_abs", "rewards"):
        if not np.isfinite(fields[name]).all():
            raise InvalidMessage(f"{name} is not finite")
    if (fields["td_abs"] < 0).any() or ((fields["discount_t"] < 0) | (fields["discount_t"] > 1)).any():
        raise InvalidMessage("td_abs must be at least 0 and discount_t within [0, 1]")


def pack_samples(
    counts: pb.Counts, draws: Sequence[int], columns: dict[str, Array], stacks: list[bytes], spec: ObservationSpec
) -> pb.SampleReply:
    """A reply of ``draws`` items each: columns [B] by field name and, in turn, the stacks of s_tm1 and s_t of each item."""
    frames, at = [], 0
    for draw in draws:
        frames.append(_enclosed(stacks[at : at + 2 * draw], 2 * spec.stack * draw, spec))
        at += 2 * draw
    return pb.SampleReply(
        counts=counts,
        frames=b"".join(frames),
        draw_bytes=[len(data) for data in frames],
        **{name: _bytes(columns[name], dtype) for name, dtype in _SAMPLE_ARRAYS.items()},
    )


def unpack_samples(
    replies: Sequence[tuple[pb.SampleReply, Sequence[int]]], spec: ObservationSpec
) -> Iterator[tuple[TransitionBatch, UInt64, Float64]]:
    """The draws that several shards' replies (each with the sizes of its draws) have in common, as they are asked for.

    Of each draw: transitions ready for training, keys [B] and draw probabilities [B], one reply's items after the other's.
    s_tm1 and s_t are views of one buffer in which they take turns. Raises InvalidMessage.
    """
    for pieces in zip(*(_draws(message, draws, spec) for message, draws in replies), strict=True):
        *columns, data = zip(*([piece for piece in pieces if len(piece[0])] or pieces[:1]), strict=True)
        keys, probability, a_tm1, r_t, discount_t = (c[0] if len(c) == 1 else np.concatenate(c) for c in columns)
        count = 2 * spec.stack * len(keys)
        frames = data[0]
        if len(data) > 1:
            parts = zip(data, columns[0], strict=True)
            frames = _enclosed([_blocks(d, 2 * spec.stack * len(k), spec) for d, k in parts], count, spec)
        pairs = decompress_frames(frames, count, spec).reshape(len(keys), 2, *spec.shape)
        yield TransitionBatch(pairs[:, 0], a_tm1.astype(np.int64), r_t, discount_t, pairs[:, 1]), keys, probability


def _draws(message: pb.SampleReply, draws: Sequence[int], spec: ObservationSpec) -> Iterator[tuple[Any, ...]]:
    """Columns and frames of each draw of a reply. Raises InvalidMessage."""
    columns = [array(message, name, dtype) for name, dtype in _SAMPLE_ARRAYS.items()]
    items, frames = sum(draws), memoryview(message.frames)
    if {len(column) for column in columns} != {items}:
        raise InvalidMessage(f"a reply of {len(columns[0])} keys for draws of {items} items in all")
    if len(message.draw_bytes) != len(draws) or sum(message.draw_bytes) != len(frames):
        raise InvalidMessage(f"frames of {len(frames)} bytes for {len(draws)} draws that say otherwise")
    at = byte = 0
    for draw, size in zip(draws, message.draw_bytes, strict=True):
        yield *(column[at : at + draw] for column in columns), frames[byte : byte + size]
        at, byte = at + draw, byte + size


def _blocks(frames: memoryview, count: int, spec: ObservationSpec) -> memoryview:
    """What `_enclosed` made of ``count`` frames' blocks, without header and end. Raises InvalidMessage."""
    if spec.frame_bytes < COMPRESS_FROM:
        if len(frames) != count * spec.frame_bytes:
            raise InvalidMessage(f"frames have {len(frames)} bytes, not {count} frames of {spec.frame_bytes}")
        return frames
    if frames[:HEADER] != _header(spec.frame_bytes, count) or frames[-len(END_MARK) :] != END_MARK:
        raise InvalidMessage(f"frames do not stand between the LZ4 header of {count} frames and an end mark")
    return frames[HEADER : -len(END_MARK)]


def sample_request(counts: Sequence[int], insert_credit: int, limiter: Mapping[str, float] | None) -> pb.SampleRequest:
    """A request for draws of so many items each, with the shard's credit and, now and then, the limiter's fields."""
    return pb.SampleRequest(counts=counts, insert_credit=insert_credit, limiter=limiter)


def priorities_request(keys: UInt64, td_abs: Array) -> pb.UpdatePrioritiesRequest:
    """The |TD error| [B] of the items of ``keys`` [B]."""
    return pb.UpdatePrioritiesRequest(keys=_bytes(keys, "<u8"), td_abs=_bytes(td_abs, "<f4"))
