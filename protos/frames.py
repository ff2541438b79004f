"""Lossless LZ4 compression of frames; each frame is compressed independently.

Frames of at least COMPRESS_FROM bytes are stored as blocks of the LZ4 frame format, smaller ones are stored raw. So one
slice of a segment's bytes is a stack. The stacks of a whole batch, concatenated between a header and an end mark, form
one valid LZ4 frame, which one call decompresses.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import lz4.block
import lz4.frame
import numpy as np

from protos.types import InvalidMessage
from rl.types import Array, ObservationSpec

COMPRESS_FROM = 256  # bytes; smaller frames are sent and stored raw
BLOCK_SIZES = {
    2**16: lz4.frame.BLOCKSIZE_MAX64KB,
    2**18: lz4.frame.BLOCKSIZE_MAX256KB,
    2**20: lz4.frame.BLOCKSIZE_MAX1MB,
    2**22: lz4.frame.BLOCKSIZE_MAX4MB,
}
HEADER_BYTES = 15  # length of the LZ4 frame header
END_MARK = bytes(4)
UNCOMPRESSED = 2**31  # flag in a block's length field: the block is not compressed


def _block_bytes(frame_bytes: int) -> int:
    """Return the smallest block size of the format that holds a frame; the largest one if the frame needs several."""
    return next((size for size in BLOCK_SIZES if frame_bytes <= size), max(BLOCK_SIZES))


def _compressor(frame_bytes: int) -> lz4.frame.LZ4FrameCompressor:
    block_size = BLOCK_SIZES[_block_bytes(frame_bytes)]
    return lz4.frame.LZ4FrameCompressor(block_size=block_size, block_linked=False, auto_flush=True)


@functools.lru_cache(maxsize=64)
def _lz4_header(frame_bytes: int, count: int) -> bytes:
    """Return the header of an LZ4 frame with ``count`` image frames of ``frame_bytes`` bytes."""
    return bytes(_compressor(frame_bytes).begin(source_size=frame_bytes * count))


def compress_frames(frames: Array) -> tuple[bytes, Array]:
    """Compress frames [F, *frame]; returns their blocks, concatenated, and each frame's size in bytes, uint32 [F]."""
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
    """Return the blocks of ``count`` frames of zeros, as `compress_frames` would return them."""
    return compress_frames(np.zeros((1, *spec.frame_shape), spec.dtype))[0] * count


def wrap_blocks(blocks: Sequence[bytes | memoryview], count: int, spec: ObservationSpec) -> bytes:
    """Join the blocks of ``count`` frames into one LZ4 frame, for `decompress_frames`. Raw frames stay raw."""
    if spec.frame_bytes < COMPRESS_FROM or not blocks:
        return b"".join(blocks)
    return b"".join([_lz4_header(spec.frame_bytes, count), *blocks, END_MARK])


def decompress_frames(data: bytes | memoryview, count: int, spec: ObservationSpec) -> Array:
    """Decompress the result of `wrap_blocks`; returns writeable frames [count, *frame_shape].

    Raises InvalidMessage if the data is damaged or does not hold exactly ``count`` frames.
    """
    if spec.frame_bytes < COMPRESS_FROM or not count:
        unpacked = bytearray(data)
    elif data[:HEADER_BYTES] == _lz4_header(spec.frame_bytes, count):
        unpacked = _decompress(data)
    else:
        raise InvalidMessage(
            f"frames do not begin with the LZ4 header for {count} frames of {spec.frame_bytes} bytes each"
        )
    if len(unpacked) != spec.frame_bytes * count:
        raise InvalidMessage(
            f"frames decompress to {len(unpacked)} bytes, expected {count} frames of {spec.frame_bytes} bytes each"
        )
    return np.frombuffer(unpacked, dtype=spec.dtype).reshape(count, *spec.frame_shape)


def _decompress(data: bytes | memoryview) -> bytearray:
    try:
        unpacked, read = lz4.frame.decompress(data, return_bytearray=True, return_bytes_read=True)
    except RuntimeError as error:
        raise InvalidMessage(f"frames contain a damaged LZ4 block: {error}") from error
    if read != len(data):
        raise InvalidMessage(f"frames contain an LZ4 end mark after {read} of {len(data)} bytes")
    return unpacked  # type: ignore[no-any-return]


def check_unpacked(frames: Array, steps: int, spec: ObservationSpec) -> None:
    """Raise InvalidMessage unless ``frames`` has shape [steps + 1, *frame_shape] and the dtype of ``spec``."""
    expected = (steps + 1, *spec.frame_shape)
    if frames.shape != expected or frames.dtype != spec.dtype:
        raise InvalidMessage(
            f"frames of {steps} steps must be {spec.dtype} {list(expected)}, got {frames.dtype} {list(frames.shape)}"
        )


def check_frames(sizes: Array, data: bytes, steps: int, spec: ObservationSpec) -> None:
    """Raise InvalidMessage unless ``data`` holds ``steps`` + 1 complete frames, of ``sizes`` [steps + 1] bytes."""
    if len(sizes) != steps + 1:
        raise InvalidMessage(f"frame_sizes has {len(sizes)} elements, {steps} steps need {steps + 1}")
    if int(sizes.sum(dtype=np.uint64)) != len(data):
        raise InvalidMessage(
            f"frame_sizes add up to {int(sizes.sum(dtype=np.uint64))} bytes, but frames have {len(data)} bytes"
        )
    size = spec.frame_bytes
    if size < COMPRESS_FROM:
        if (sizes != size).any():
            raise InvalidMessage(f"frame_sizes must all be {size}, the bytes of an uncompressed frame")
        return
    view, start = memoryview(data), 0
    for end in sizes.cumsum(dtype=np.int64).tolist():
        if not _is_one_block(view[start:end], size):
            _check_blocks(data, start, end, size)
        start = end


def _is_one_block(data: memoryview, frame_bytes: int) -> bool:
    """Return whether ``data`` is a single compressed block with one whole frame (a fast path for `_check_blocks`)."""
    if int.from_bytes(data[:4], "little") != len(data) - 4 or not 4 < len(data) <= frame_bytes <= max(BLOCK_SIZES):
        return False
    try:
        return len(lz4.block.decompress(data[4:], uncompressed_size=frame_bytes)) == frame_bytes
    except lz4.block.LZ4BlockError:
        return False


def _check_blocks(data: bytes, at: int, end: int, frame_bytes: int) -> None:
    """Raise InvalidMessage unless ``data[at:end]`` holds the blocks of one frame; every block but the last is full."""
    missing, most = frame_bytes, _block_bytes(frame_bytes)
    while at < end:
        length = int.from_bytes(data[at : at + 4], "little")
        block = data[at + 4 : at + 4 + (length & ~UNCOMPRESSED)]
        at += 4 + len(block)
        if at > end or len(block) != length & ~UNCOMPRESSED or not 0 < len(block) <= most:
            raise InvalidMessage(f"frames contain an LZ4 block that is cut short, empty or above {most} bytes")
        expected = min(missing, most)
        try:
            unpacked = (
                len(block) if length & UNCOMPRESSED else len(lz4.block.decompress(block, uncompressed_size=expected))
            )
        except lz4.block.LZ4BlockError as error:
            raise InvalidMessage(f"frames contain a damaged LZ4 block: {error}") from error
        if unpacked != expected or not expected:
            raise InvalidMessage(f"an LZ4 block decompresses to {unpacked} bytes, expected {expected}")
        missing -= unpacked
    if missing:
        raise InvalidMessage(f"a frame lacks its last {missing} of {frame_bytes} bytes")


def unwrap_blocks(frames: memoryview, count: int, spec: ObservationSpec) -> memoryview:
    """Return the blocks in a result of `wrap_blocks` for ``count`` frames, without header and end mark.

    Raises InvalidMessage if the header or the end mark is missing.
    """
    if spec.frame_bytes < COMPRESS_FROM:
        if len(frames) != count * spec.frame_bytes:
            raise InvalidMessage(
                f"frames have {len(frames)} bytes, expected {count} frames of {spec.frame_bytes} bytes each"
            )
        return frames
    if frames[:HEADER_BYTES] != _lz4_header(spec.frame_bytes, count) or frames[-len(END_MARK) :] != END_MARK:
        raise InvalidMessage(f"frames lack the LZ4 header for {count} frames or the end mark")
    return frames[HEADER_BYTES : -len(END_MARK)]
