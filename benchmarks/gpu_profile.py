"""Where the time of an update goes: on a GPU its longest kernels and the gaps between them, on a CPU its longest operators.

A gap is a stretch in which the device runs neither kernel nor copy, in any stream, between the first and the last of the
profiled updates; large ones say that the device waits for Python. The profiler slows every launch somewhat, so the gaps
are an upper bound; the speeds are measured without it.
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu_parts import NETWORKS, Pool, Sizes, finish, trial
from learner.learner import LearnerConfig, learner_threads

TOP = 10
ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")  # categories of the trace; annotations are no work


def check_profile(device: str, network: str, pool: Pool, sizes: Sizes) -> dict[str, Any]:
    """Profile updates of the learner in bfloat16, fed through its prefetching thread where its device is not the CPU.

    Returns the figures of one update.
    """
    batch, updates = sizes.batch, sizes.profiled
    config: dict[str, Any] = {"batch_size": batch, "learning_rate": 1e-4, "precision": "bfloat16"}
    activity = ProfilerActivity.CUDA if device == "cuda" else ProfilerActivity.CPU
    before = torch.get_num_threads()
    torch.set_num_threads(learner_threads(LearnerConfig(device=device, **config)))
    try:
        with trial(device, NETWORKS[network], pool, config, exact=True) as fed:
            for _ in range(2):
                with profile(activities=[activity]) as profiler:
                    for _ in range(updates):
                        fed.step()
                    finish(device)
    finally:
        torch.set_num_threads(before)
    found = kernels(_trace(profiler), updates) if device == "cuda" else _operators(profiler, updates)
    return {"network": network, "dtype": "bfloat16", "batch": batch, "updates": updates, **found}


def _trace(profiler: profile) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(file))
        events: list[dict[str, Any]] = json.loads(file.read_text())["traceEvents"]
    return events


def kernels(events: Iterable[Mapping[str, Any]], updates: int) -> dict[str, Any]:
    """Longest kernels and copies of one update, and the device's idle time [us]; from a trace of ``updates``."""
    work = [(float(e["ts"]), float(e["dur"]), str(e["name"])) for e in events if e.get("cat") in ON_DEVICE]
    totals: dict[str, list[float]] = defaultdict(list)
    for _, duration, name in work:
        totals[name].append(duration)
    gaps = gaps_between([(start, start + duration) for start, duration, _ in work])
    none = {} if work else {"note": "the profiler recorded no kernel: CUPTI is missing or forbidden here"}
    return {
        **none,
        "kind": "kernels",
        "longest": _longest({name: (len(took), sum(took)) for name, took in totals.items()}, updates),
        "launches": len(work) / updates,
        "busy_us": sum(duration for _, duration, _ in work) / updates,
        "idle_us": sum(gaps) / updates,
        "largest_gap_us": max(gaps, default=0.0),
        "gaps": len(gaps) / updates,
    }


def gaps_between(spans: Sequence[tuple[float, float]]) -> list[float]:
    """The lengths of the gaps that none of the spans (start, end) covers, between the first start and the last end."""
    gaps: list[float] = []
    until: float | None = None
    for start, end in sorted(spans):
        if until is not None and start > until:
            gaps.append(start - until)
        until = end if until is None else max(until, end)
    return gaps


def _operators(profiler: profile, updates: int) -> dict[str, Any]:
    operators = [e for e in profiler.key_averages() if not e.is_user_annotation]
    spent = {e.key: (e.count, float(e.self_cpu_time_total)) for e in operators}
    return {
        "kind": "operators",
        "longest": _longest(spent, updates),
        "busy_us": sum(us for _, us in spent.values()) / updates,
        "note": "gaps between kernels are a device's: a CPU has none to show",
    }


def _longest(spent: Mapping[str, tuple[int, float]], updates: int) -> list[dict[str, Any]]:
    """The TOP names by time: calls and microseconds of one update, and the share of all that was recorded."""
    everything = sum(us for _, us in spent.values())
    order = sorted(spent.items(), key=lambda item: -item[1][1])[:TOP]
    return [
        {"name": name, "calls": calls / updates, "us": us / updates, "share": us / everything}
        for name, (calls, us) in order
    ]
