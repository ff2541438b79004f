"""Compression of frames of any size and content, and invalid blocks."""

from __future__ import annotations

import lz4.block
import numpy as np
import pytest

from protos import frames
from protos.types import InvalidMessage
from rl.types import ObservationSpec
from tests.conftest import FRAMES


def test_frames_compress_without_loss(rng):
    pixels = np.repeat(rng.integers(0, 3, (5, 20, 5), dtype=np.uint8), 4, axis=2)
    data, sizes = frames.compress_frames(pixels)
    assert len(data) == sizes.sum() < pixels.nbytes
    enclosed = frames.wrap_blocks([data], len(pixels), FRAMES)
    np.testing.assert_array_equal(frames.decompress_frames(enclosed, len(pixels), FRAMES), pixels)


BIG = ObservationSpec((5_000_000,), "uint8")  # above the LZ4 frame format's largest block


@pytest.mark.parametrize("noise", [True, False])
@pytest.mark.parametrize("spec", [FRAMES, BIG])
def test_frames_of_any_size_and_content_are_valid(rng, spec, noise):
    """Noise does not compress and is stored uncompressed; a large frame takes several blocks."""
    pixels = rng.integers(0, 256 if noise else 1, (2, *spec.frame_shape), dtype=np.uint8)
    data, sizes = frames.compress_frames(pixels)
    frames.check_frames(sizes, data, 1, spec)
    np.testing.assert_array_equal(frames.decompress_frames(frames.wrap_blocks([data], 2, spec), 2, spec), pixels)


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("side", [256, 512])
def test_a_block_above_the_maximum_block_size_is_rejected(rng, side, compressed):
    """Compressed noise is larger than the frame; the uncompressed case has a frame larger than one block."""
    spec = ObservationSpec((side, side * (1 if compressed else 17)), "uint8")
    noise = rng.bytes(spec.frame_bytes)
    block = lz4.block.compress(noise, store_size=False) if compressed else noise
    data = (len(block) | (0 if compressed else 2**31)).to_bytes(4, "little") + block
    most = frames._block_bytes(spec.frame_bytes)
    if len(block) > most:
        with pytest.raises(InvalidMessage, match=f"above {most}"):
            frames._check_blocks(data, 0, len(data), spec.frame_bytes)
    else:
        frames._check_blocks(data, 0, len(data), spec.frame_bytes)
