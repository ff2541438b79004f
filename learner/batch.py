"""A sampled batch as tensors on the learner's device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rl.types import Array


@dataclass(frozen=True, eq=False)
class Batch:
    """A `SampledBatch` as tensors on the learner's device."""

    s_tm1: Tensor  # [B, *observation]
    a_tm1: Tensor  # [B]
    r_t: Tensor  # [B]
    discount_t: Tensor  # [B]
    s_t: Tensor  # [B, *observation]
    weights: Tensor  # [B], importance weights
    target: Tensor | None = None  # [B], if `Updater.prepare` computed it


def to_device(x: Array, device: torch.device) -> Tensor:
    """A tensor on ``device`` with the values of ``x`` [*shape]. On a CUDA device the copy may be under way."""
    tensor = torch.from_numpy(x if x.flags.writeable else x.copy())
    if device.type == "cuda":
        # a new tensor, because s_tm1 and s_t may be views of one buffer
        dense = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return dense.copy_(tensor).to(device, non_blocking=True)
    return tensor.to(device)


def to_host(tensor: Tensor) -> Tensor:
    """``tensor`` [*shape] on the CPU. Waits for the device."""
    if tensor.device.type != "cuda":
        return tensor.cpu()
    # `tensor.cpu()` would keep the driver locked while it waits, so the prefetch thread could not copy its next batch
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record(torch.cuda.current_stream(tensor.device))
    copied.synchronize()
    return host
