"""The floating-point type: as configured, or by what the processor supports."""

from __future__ import annotations

from pathlib import Path

import torch

from rl.precision import pick_dtype


def test_auto_is_bfloat16_if_the_processor_supports_it():
    cpu, flags = torch.device("cpu"), Path("/proc/cpuinfo").read_text().split()
    native = "avx512_bf16" in flags or "amx_bf16" in flags or "bf16" in flags
    assert pick_dtype("auto", cpu) == (torch.bfloat16 if native else torch.float32)
    assert pick_dtype("bfloat16", cpu) == torch.bfloat16
    assert pick_dtype("float32", cpu) == torch.float32
