"""The floating-point type that a network computes in."""

from __future__ import annotations

from typing import Literal

import torch

Precision = Literal["auto", "float32", "bfloat16"]


def pick_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """The torch.dtype for ``precision``: float32 or bfloat16.

    ``auto`` is bfloat16 where ``device`` multiplies it in hardware, else float32. A CPU without AVX-512 BF16 or AMX
    emulates bfloat16: an update then takes ten times as long as in float32.
    """
    if precision == "auto":
        return torch.bfloat16 if _multiplies_bfloat16(device) else torch.float32
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def _multiplies_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    has = torch.cpu.get_capabilities()
    return any(has.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))  # of x86, x86, Arm
