"""First layers of networks for pixels: from uint8 [B, *observation] to floats, minus the background if there is one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

STRIDE = 4  # pixels; also the side of a block and the number of bytes in an int32
KERNEL = 2 * STRIDE
MAX_CHANGED_SHARE = 0.25  # of all blocks; if more differ from the background, convolving whole images takes less time


def to_channels_last(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy of ``x`` [B, C, H, W] in ``dtype`` and channels-last memory order.

    It copies one channel at a time, which takes half the time of a single call of ``x.to``.
    """
    batch, channels, *frame = x.shape
    out = torch.empty((batch, *frame, channels), dtype=dtype)
    for channel in range(channels):
        out[..., channel] = x[:, channel]
    return out.permute(0, 3, 1, 2)


class PixelConv(nn.Conv2d):
    """The first convolution, 8x8 with stride 4. It scales pixels 0..255 to [0, 1].

    The factor 1/255 is applied to the weights, which are much smaller than the images. Integers up to 255 are exact in
    bfloat16.

    ``background`` [C, H, W] is subtracted from the pixels. If few blocks of 4x4 pixels differ from the background, a
    CPU multiplies only these blocks: each window of the kernel consists of 2x2 blocks, and a block of zeros adds
    nothing to its windows (decisions/0010). Otherwise the background is convolved separately and subtracted from the
    result.
    """

    background: Tensor | None

    def __init__(self, channels: int, filters: int, background: Tensor | None) -> None:
        super().__init__(channels, filters, KERNEL, stride=STRIDE)
        self.register_buffer("background", background)

    def forward(self, input: Tensor) -> Tensor:
        """Features [B, filters, (H - 8) / 4 + 1, (W - 8) / 4 + 1] of pixels 0..255 [B, C, H, W].

        The result is bfloat16 under autocast or if the weights are bfloat16, else float32.
        """
        weight = self.weight * (1.0 / 255.0)
        bf16 = torch.is_autocast_enabled(input.device.type) or weight.dtype == torch.bfloat16
        dtype = torch.bfloat16 if bf16 else torch.float32
        if self.background is None:
            return nn.functional.conv2d(input.to(dtype), weight, self.bias, STRIDE)
        changed = self._changed_blocks_if_few(input)
        if changed is not None:
            assert self.bias is not None
            with torch.autocast("cpu", enabled=False):
                features = _convolve_blocks(input, self.background, changed, weight)
                return (features + self.bias.view(-1, 1, 1)).to(dtype)
        channels_last = weight.is_contiguous(memory_format=torch.channels_last) and input.device.type == "cpu"
        x = to_channels_last(input, dtype) if channels_last else input.to(dtype)
        background = nn.functional.conv2d(self.background[None].to(dtype), weight, None, STRIDE)
        return nn.functional.conv2d(x, weight, self.bias, STRIDE) - background

    def _changed_blocks_if_few(self, input: Tensor) -> Tensor | None:
        """The `changed_blocks` of ``input``. None if they are not few, or if ``input`` must be convolved as a whole."""
        sides = input.shape[2:]
        if input.device.type != "cpu" or input.dtype != torch.uint8 or any(side % STRIDE for side in sides):
            return None
        assert self.background is not None
        changed = changed_blocks(input, self.background)
        return changed if len(changed) < MAX_CHANGED_SHARE * len(input) * sides.numel() / STRIDE**2 else None


def _convolve_blocks(x: Tensor, background: Tensor, changed: Tensor, weight: Tensor) -> Tensor:
    """Convolve ``x`` - ``background`` [B, C, H, W] with ``weight`` [F, C, 8, 8], multiplying only the changed blocks.

    ``changed`` [N, 3] are the blocks from `changed_blocks`. Returns float32 [B, F, H / 4 - 1, W / 4 - 1].
    """
    batch, channels, *frame = x.shape
    (rows, columns), filters = (n // STRIDE for n in frame), len(weight)
    image, row, column = changed.unbind(1)
    # Each block lies in four windows, in a different quarter of each: multiply it by all four quarters of the kernel.
    quarters = weight.float().view(filters, channels, 2, STRIDE, 2, STRIDE).permute(1, 3, 5, 2, 4, 0)
    quarters = quarters.reshape(channels * STRIDE**2, 4 * filters)
    differences = _gather_blocks(x, image, row, column) - _gather_blocks(
        background[None], torch.zeros_like(image), row, column
    )
    products = (differences @ quarters).view(-1, filters)
    # Blocks at the border lie in fewer windows. A margin of one window on each side takes the rest, and is cut off.
    windows = ((image * (rows + 1) + row) * (columns + 1) + column)[:, None]
    windows = windows + torch.tensor([columns + 2, columns + 1, 1, 0])
    out = torch.zeros(batch * (rows + 1) * (columns + 1), filters).index_add(0, windows.flatten(), products)
    return out.view(batch, rows + 1, columns + 1, filters)[:, 1:rows, 1:columns].permute(0, 3, 1, 2)


def changed_blocks(x: Tensor, background: Tensor) -> Tensor:
    """The blocks of 4x4 pixels in which any channel of ``x`` [B, C, H, W] differs from ``background`` [C, H, W].

    Both are uint8; H and W must be multiples of 4. Returns int64 [N, 3]: the image, row and column of each block.
    """
    words = _as_int32(x ^ background)
    differ = words[:, 0]
    for channel in range(1, words.shape[1]):
        differ = differ | words[:, channel]
    lines = differ.unflatten(1, (-1, STRIDE)).unbind(2)
    blocks: Tensor = lines[0] | lines[1] | lines[2] | lines[3]
    return blocks.nonzero()


def _as_int32(x: Tensor) -> Tensor:
    """View uint8 ``x`` [B, C, H, W] as int32 [B, C, H, W / 4]. Each int32 is one row of a block."""
    if x.stride(3) != 1 or any(n % STRIDE for n in (x.storage_offset(), *x.stride()[:3])):
        # `x.contiguous()` would keep the storage offset, and the strides of dimensions of size 1
        x = torch.empty(x.shape, dtype=x.dtype).copy_(x)
    return x.view(torch.int32)


def _gather_blocks(x: Tensor, image: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """The pixels of N blocks of ``x`` [B, C, H, W], float32 [N, C * 4 * 4]; ``image``, ``row``, ``column`` are [N]."""
    words: Tensor = _as_int32(x).unflatten(2, (-1, STRIDE))  # [B, C, H / 4, 4, W / 4]
    return words[image, :, row, :, column].view(torch.uint8).flatten(1).float()


class PixelScale(nn.Module):
    """Subtracts ``background`` [C, H, W] from pixels and multiplies by 1/255, for networks without convolutions."""

    background: Tensor | None

    def __init__(self, background: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("background", background)

    def forward(self, x: Tensor) -> Tensor:
        """(x - background) / 255, float32, for ``x`` [B, *observation]. Without a background: x / 255."""
        return (x.float() if self.background is None else x.float() - self.background.float()) * (1.0 / 255.0)
