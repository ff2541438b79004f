"""The floating-point type in which a network computes."""

from __future__ import annotations

from typing import Literal

import torch

Precision = Literal["auto", "float32", "bfloat16"]


def pick_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """The torch.dtype for ``precision``: float32 or bfloat16.

    "auto" is bfloat16 if the hardware of ``device`` supports it, else float32. A CPU without AVX-512 BF16 or AMX
    emulates bfloat16; an update then takes ten times as long as in float32.
    """
    if precision == "auto":
        return torch.bfloat16 if _has_bfloat16(device) else torch.float32
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))  # x86, x86, Arm
