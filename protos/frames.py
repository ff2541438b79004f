"""Lossless LZ4 compression of frames, each frame on its own.

Frames of COMPRESS_FROM bytes and more are stored as LZ4 blocks, as the LZ4 frame format writes them. A shard cuts a
stack out of a segment with one slice. The stacks of a whole batch, end to end between that format's header and end
mark, are unpacked by one call. Smaller frames are stored raw.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import lz4.block
import lz4.frame
import numpy as np

from protos.types import InvalidMessage
from rl.types import Array, ObservationSpec

COMPRESS_FROM = 256  # bytes a frame; smaller ones are sent and stored raw
BLOCK_SIZES = {
    2**16: lz4.frame.BLOCKSIZE_MAX64KB,
    2**18: lz4.frame.BLOCKSIZE_MAX256KB,
    2**20: lz4.frame.BLOCKSIZE_MAX1MB,
    2**22: lz4.frame.BLOCKSIZE_MAX4MB,
}
HEADER = 15  # bytes that an LZ4 frame begins with
END_MARK = bytes(4)
STORED = 2**31  # flag in a block's length: not compressed


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
    """Frames [F, *frame] -> (their blocks end to end, the size of each in bytes: uint32 [F])."""
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
    """``count`` frames of zeros, as `compress_frames` would return them."""
    return compress_frames(np.zeros((1, *spec.frame_shape), spec.dtype))[0] * count


def enclosed(blocks: Sequence[bytes | memoryview], count: int, spec: ObservationSpec) -> bytes:
    """The blocks of ``count`` frames in the form that `decompress_frames` takes."""
    if spec.frame_bytes < COMPRESS_FROM or not blocks:
        return b"".join(blocks)
    return b"".join([_header(spec.frame_bytes, count), *blocks, END_MARK])


def decompress_frames(data: bytes | memoryview, count: int, spec: ObservationSpec) -> Array:
    """Writeable frames [count, *frame_shape] out of what `enclosed` returned.

    Raises InvalidMessage when the data is damaged or holds another number of frames.
    """
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


def check_unpacked(frames: Array, steps: int, spec: ObservationSpec) -> None:
    """Raise InvalidMessage unless ``frames`` are [steps + 1, *frame_shape] of the type that ``spec`` names."""
    expected = (steps + 1, *spec.frame_shape)
    if frames.shape != expected or frames.dtype != spec.dtype:
        raise InvalidMessage(
            f"frames of {steps} steps must be {spec.dtype} {list(expected)}, these are {frames.dtype} {list(frames.shape)}"
        )


def check_frames(sizes: Array, data: bytes, steps: int, spec: ObservationSpec) -> None:
    """Raise InvalidMessage unless ``data`` holds ``steps`` + 1 whole frames of ``sizes`` [steps + 1] bytes each."""
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
    """Whether ``data`` is one compressed block of a whole frame, as nearly all are; `_check_blocks` does the rest."""
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


def blocks_of(frames: memoryview, count: int, spec: ObservationSpec) -> memoryview:
    """The blocks in what `enclosed` returned for ``count`` frames, without header and end mark.

    Raises InvalidMessage where header or end mark is missing.
    """
    if spec.frame_bytes < COMPRESS_FROM:
        if len(frames) != count * spec.frame_bytes:
            raise InvalidMessage(f"frames have {len(frames)} bytes, not {count} frames of {spec.frame_bytes}")
        return frames
    if frames[:HEADER] != _header(spec.frame_bytes, count) or frames[-len(END_MARK) :] != END_MARK:
        raise InvalidMessage(f"frames do not stand between the LZ4 header of {count} frames and an end mark")
    return frames[HEADER : -len(END_MARK)]
