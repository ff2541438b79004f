"""The first convolution of pixels: its result equals torch's convolution of the whole image."""

import pytest
import torch
from torch import nn

import rl.pixels
from rl.pixels import PixelConv, changed_blocks


def _few_changes(shape, share, seed=0):
    """(images, background, where blocks of 4x4 pixels differ). A share of the blocks differs, and the four corners."""
    g = torch.Generator().manual_seed(seed)
    batch, channels, rows, columns = shape
    background = torch.randint(0, 256, shape[1:], generator=g, dtype=torch.uint8)
    where = torch.rand((batch, rows // 4, columns // 4), generator=g) < share
    where[-1, [0, 0, -1, -1], [0, -1, 0, -1]] = True
    other = torch.randint(1, 256, shape, generator=g, dtype=torch.uint8)  # not 0, so the sum modulo 256 always differs
    # one pixel of one channel in each block
    pixel = torch.zeros(shape, dtype=torch.bool)
    for image, row, column in where.nonzero().tolist():
        channel, y, x = (int(torch.randint(0, n, (), generator=g)) for n in (channels, 4, 4))
        pixel[image, channel, 4 * row + y, 4 * column + x] = True
    return torch.where(pixel, background + other, background), background, where


def _layer(background, filters=5, dtype=torch.float32):
    torch.manual_seed(3)
    layer = PixelConv(len(background), filters, torch.zeros_like(background)).to(dtype)
    layer.background.copy_(background)
    return layer


def _whole(layer, x):
    return nn.functional.conv2d((x.float() - layer.background.float()) / 255, layer.weight, layer.bias, stride=4)


def _gradients(y, layer):
    return torch.autograd.grad((y * torch.arange(y.numel()).view(y.shape).sin()).sum(), [layer.weight, layer.bias])


SHAPES = [(3, 4, 84, 84), (2, 1, 36, 52), (1, 3, 40, 36)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("share", [0.0, 0.05, 1.0])
def test_changed_blocks_are_those_with_a_pixel_that_differs(shape, share):
    x, background, where = _few_changes(shape, share)
    assert torch.equal(changed_blocks(x, background), where.nonzero())
    assert len(changed_blocks(background.repeat(2, 1, 1, 1), background)) == 0


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("share", [0.0, 0.05, 1.0])
@pytest.mark.parametrize("max_share", [0.0, 2.0])
def test_blocks_and_whole_images_give_the_same_convolution_and_gradient(monkeypatch, shape, share, max_share):
    monkeypatch.setattr(rl.pixels, "MAX_CHANGED_SHARE", max_share)  # 0: whole images, 2: blocks
    x, background, _ = _few_changes(shape, share)
    layer = _layer(background).to(memory_format=torch.channels_last)
    y, expected = layer(x), _whole(layer, x)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    for got, want in zip(_gradients(y, layer), _gradients(expected, layer), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)


def test_blocks_that_equal_the_background_are_not_multiplied(monkeypatch):
    x, background, where = _few_changes((6, 4, 84, 84), 0.05)
    layer, rows = _layer(background), []
    monkeypatch.setattr(
        rl.pixels, "_gather_blocks", lambda *a, of=rl.pixels._gather_blocks: rows.append(of(*a)) or rows[-1]
    )
    layer(x)
    assert [len(r) for r in rows] == [int(where.sum())] * 2
    rows.clear()
    layer(_few_changes((6, 4, 84, 84), 0.5)[0])  # many blocks differ: whole images are convolved
    assert not rows


def test_blocks_are_convolved_in_bfloat16():
    x, background, _ = _few_changes((4, 4, 84, 84), 0.05)
    layer = _layer(background)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), _whole(layer, x), rtol=1e-2, atol=2e-3)
    acts = _layer(background, dtype=torch.bfloat16)
    assert torch.equal(acts.background, background)
    torch.testing.assert_close(acts(x).float(), _whole(_layer(background), x), rtol=2e-2, atol=5e-3)


def test_the_background_alone_gives_the_bias():
    background = torch.randint(0, 256, (4, 84, 84), dtype=torch.uint8)
    layer = _layer(background)
    y = layer(background.repeat(2, 1, 1, 1))
    torch.testing.assert_close(y, layer.bias.view(1, -1, 1, 1).expand_as(y))
    weight, bias = torch.autograd.grad(y.sum(), [layer.weight, layer.bias])
    assert not weight.any()
    torch.testing.assert_close(bias, torch.full_like(bias, 2 * 20 * 20))


def test_images_with_any_strides_and_storage_offset():
    x, background, _ = _few_changes((3, 4, 84, 84), 0.05)
    layer = _layer(background)
    odd = torch.zeros(len(x), x[0].numel() + 1, dtype=torch.uint8)
    odd[:, 1:] = x.flatten(1)
    expected = layer(x)
    for moved in (
        odd[:, 1:].view(x.shape),
        odd[:, 1:][2:3].view(1, 4, 84, 84),
        x.to(memory_format=torch.channels_last),
    ):
        torch.testing.assert_close(layer(moved), expected[-len(moved) :])
    single = _layer(background[:1])
    torch.testing.assert_close(single(x[:, :1].to(memory_format=torch.channels_last)), single(x[:, :1].clone()))


def test_sides_that_are_not_multiples_of_the_block():
    x = torch.randint(0, 256, (2, 4, 85, 90), dtype=torch.uint8)
    layer = _layer(x[0])
    torch.testing.assert_close(layer(x), _whole(layer, x), rtol=1e-4, atol=1e-5)
