"""First layers of networks of pixels: bytes [B, *observation] -> floats, the background subtracted where there is one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

STRIDE = 4  # pixels: a block's side, and an int32's bytes
KERNEL = 2 * STRIDE
DENSE = 0.25  # of all blocks: where more differ from the background, a whole convolution takes less time


def channels_last(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x`` [B, C, H, W] converted to ``dtype``, the same shape in channels-last memory order.

    One channel is copied at a time, which takes half the time of one call of `to`.
    """
    batch, channels, *frame = x.shape
    out = torch.empty((batch, *frame, channels), dtype=dtype)
    for channel in range(channels):
        out[..., channel] = x[:, channel]
    return out.permute(0, 3, 1, 2)


class PixelConv(nn.Conv2d):
    """The first convolution, 8x8 with stride 4, of pixels 0..255 as if they were scaled to [0, 1].

    The factor 1/255 is applied to the small weights, not to the large images (integers up to 255 are exact in
    bfloat16).

    ``background`` [C, H, W] is subtracted from the pixels. On a CPU only the blocks of 4x4 pixels that differ from it
    are multiplied, where they are few: a window is 2x2 blocks, and a block of zeros adds nothing to its windows
    (decisions/0010). Otherwise the background is convolved by itself, as the convolution is linear.
    """

    background: Tensor | None

    def __init__(self, channels: int, filters: int, background: Tensor | None) -> None:
        super().__init__(channels, filters, KERNEL, stride=STRIDE)
        self.register_buffer("background", background)

    def forward(self, input: Tensor) -> Tensor:
        """Features [B, filters, (H - 8) / 4 + 1, (W - 8) / 4 + 1] of pixels 0..255 [B, C, H, W].

        They are bfloat16 under autocast or where the weights are, else float32.
        """
        weight = self.weight * (1.0 / 255.0)
        bf16 = torch.is_autocast_enabled(input.device.type) or weight.dtype == torch.bfloat16
        dtype = torch.bfloat16 if bf16 else torch.float32
        if self.background is None:
            return nn.functional.conv2d(input.to(dtype), weight, self.bias, STRIDE)
        at = self._few_changes(input)
        if at is not None:
            assert self.bias is not None
            with torch.autocast("cpu", enabled=False):
                return (_blocks_conv(input, self.background, at, weight) + self.bias.view(-1, 1, 1)).to(dtype)
        last = weight.is_contiguous(memory_format=torch.channels_last) and input.device.type == "cpu"
        x = channels_last(input, dtype) if last else input.to(dtype)
        background = nn.functional.conv2d(self.background[None].to(dtype), weight, None, STRIDE)
        return nn.functional.conv2d(x, weight, self.bias, STRIDE) - background

    def _few_changes(self, input: Tensor) -> Tensor | None:
        """The `changed_blocks` of ``input``; None where they are not looked for, or not few."""
        sides = input.shape[2:]
        if input.device.type != "cpu" or input.dtype != torch.uint8 or any(side % STRIDE for side in sides):
            return None
        assert self.background is not None
        at = changed_blocks(input, self.background)
        return at if len(at) < DENSE * len(input) * sides.numel() / STRIDE**2 else None


def _blocks_conv(x: Tensor, background: Tensor, at: Tensor, weight: Tensor) -> Tensor:
    """``x`` - ``background`` convolved by ``weight`` [F, C, 8, 8], in float32, from the blocks ``at`` [N, 3] alone."""
    batch, channels, *frame = x.shape
    (rows, columns), filters = (n // STRIDE for n in frame), len(weight)
    image, row, column = at.unbind(1)
    # the four quarters of a window side by side: a block is the last of one window, the last but one of the next, ...
    quarters = weight.float().view(filters, channels, 2, STRIDE, 2, STRIDE).permute(1, 3, 5, 2, 4, 0)
    quarters = quarters.reshape(channels * STRIDE**2, 4 * filters)
    differences = _blocks(x, image, row, column) - _blocks(background[None], torch.zeros_like(image), row, column)
    products = (differences @ quarters).view(-1, filters)
    # windows with a margin of one at each side, so that every block has four; the margin is cut off
    windows = ((image * (rows + 1) + row) * (columns + 1) + column)[:, None]
    windows = windows + torch.tensor([columns + 2, columns + 1, 1, 0])
    out = torch.zeros(batch * (rows + 1) * (columns + 1), filters).index_add(0, windows.flatten(), products)
    return out.view(batch, rows + 1, columns + 1, filters)[:, 1:rows, 1:columns].permute(0, 3, 1, 2)


def changed_blocks(x: Tensor, background: Tensor) -> Tensor:
    """The blocks of 4x4 pixels (of all channels) where ``x`` [B, C, H, W] differs from ``background`` [C, H, W].

    Both are uint8; H and W are multiples of 4. Returns int64 [N, 3]: image, row and column of each block.
    """
    words = _words(x ^ background)
    differ = words[:, 0]
    for channel in range(1, words.shape[1]):
        differ = differ | words[:, channel]
    lines = differ.unflatten(1, (-1, STRIDE)).unbind(2)
    blocks: Tensor = lines[0] | lines[1] | lines[2] | lines[3]
    return blocks.nonzero()


def _words(x: Tensor) -> Tensor:
    """Bytes ``x`` [B, C, H, W] as int32 [B, C, H, W / 4], a line of a block in each."""
    if x.stride(3) != 1 or any(n % STRIDE for n in (x.storage_offset(), *x.stride()[:3])):
        x = torch.empty(x.shape, dtype=x.dtype).copy_(x)  # `contiguous` keeps offsets, and the strides of sizes of 1
    return x.view(torch.int32)


def _blocks(x: Tensor, image: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Those blocks of ``x`` [B, C, H, W], float32 [N, C * 4 * 4]."""
    words: Tensor = _words(x).unflatten(2, (-1, STRIDE))  # [B, C, H / 4, 4, W / 4]
    return words[image, :, row, :, column].view(torch.uint8).flatten(1).float()


class PixelScale(nn.Module):
    """Pixels 0..255, less ``background`` [C, H, W], to [0, 1], for networks without a first convolution."""

    background: Tensor | None

    def __init__(self, background: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("background", background)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` [B, *observation], less the background where there is one, scaled by 1/255; float32."""
        return (x.float() if self.background is None else x.float() - self.background.float()) * (1.0 / 255.0)
