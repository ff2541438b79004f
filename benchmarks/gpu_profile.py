"""Profile an update: on a GPU the longest kernels and the gaps between kernels, on a CPU the longest operators.

A gap is a time in which the device runs neither a kernel nor a copy in any stream, between the first and the last
profiled update. Large gaps mean that the device waits for Python. The profiler slows every launch, so the gaps are an
upper bound; the speeds (gpu_speed.py) are measured without a profiler.
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

from benchmarks.gpu_parts import NETWORKS, Pool, Sizes, bench_learner, synchronize
from learner.learner import LearnerConfig, learner_threads

TOP = 10  # kernels or operators to list
DEVICE_CATEGORIES = ("kernel", "gpu_memcpy", "gpu_memset")  # categories of trace events that occupy the device


def profile_updates(device: str, network: str, pool: Pool, sizes: Sizes) -> dict[str, Any]:
    """Profile the learner's updates in bfloat16; returns the figures of one update.

    On a GPU the learner gets its batches through the prefetch thread, as in a run.
    """
    batch, updates = sizes.batch, sizes.profiled
    config: dict[str, Any] = {"batch_size": batch, "learning_rate": 1e-4, "precision": "bfloat16"}
    activity = ProfilerActivity.CUDA if device == "cuda" else ProfilerActivity.CPU
    before = torch.get_num_threads()
    torch.set_num_threads(learner_threads(LearnerConfig(device=device, **config)))
    try:
        with bench_learner(device, NETWORKS[network], pool, config, exact=True) as learner:
            for _ in range(2):
                with profile(activities=[activity]) as profiler:
                    for _ in range(updates):
                        learner.step()
                    synchronize(device)
    finally:
        torch.set_num_threads(before)
    figures = (
        summarize_kernels(_trace(profiler), updates) if device == "cuda" else _summarize_operators(profiler, updates)
    )
    return {"network": network, "dtype": "bfloat16", "batch": batch, "updates": updates, **figures}


def _trace(profiler: profile) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(file))
        events: list[dict[str, Any]] = json.loads(file.read_text())["traceEvents"]
    return events


def summarize_kernels(events: Iterable[Mapping[str, Any]], updates: int) -> dict[str, Any]:
    """Longest kernels and copies of one update, and the device's busy and idle time in microseconds.

    ``events`` are the traceEvents of a Chrome trace of ``updates`` updates.
    """
    work = [(float(e["ts"]), float(e["dur"]), str(e["name"])) for e in events if e.get("cat") in DEVICE_CATEGORIES]
    durations: dict[str, list[float]] = defaultdict(list)
    for _, duration, name in work:
        durations[name].append(duration)
    gaps = find_gaps([(start, start + duration) for start, duration, _ in work])
    note = {} if work else {"note": "the profiler recorded no kernel: CUPTI is not installed or not permitted"}
    return {
        **note,
        "kind": "kernels",
        "longest": _longest({name: (len(own), sum(own)) for name, own in durations.items()}, updates),
        "launches": len(work) / updates,
        "busy_us": sum(duration for _, duration, _ in work) / updates,
        "idle_us": sum(gaps) / updates,
        "largest_gap_us": max(gaps, default=0.0),
        "gaps": len(gaps) / updates,
    }


def find_gaps(spans: Sequence[tuple[float, float]]) -> list[float]:
    """Lengths of the times between the first start and the last end that none of the spans (start, end) covers."""
    gaps: list[float] = []
    until: float | None = None
    for start, end in sorted(spans):
        if until is not None and start > until:
            gaps.append(start - until)
        until = end if until is None else max(until, end)
    return gaps


def _summarize_operators(profiler: profile, updates: int) -> dict[str, Any]:
    operators = [e for e in profiler.key_averages() if not e.is_user_annotation]
    spent = {e.key: (e.count, float(e.self_cpu_time_total)) for e in operators}
    return {
        "kind": "operators",
        "longest": _longest(spent, updates),
        "busy_us": sum(us for _, us in spent.values()) / updates,
        "note": "gaps between kernels are only measured on a GPU",
    }


def _longest(spent: Mapping[str, tuple[int, float]], updates: int) -> list[dict[str, Any]]:
    """The TOP names by time; for each the calls and microseconds per update and its share of the recorded time.

    ``spent`` has (calls, microseconds) of all ``updates`` by name.
    """
    total = sum(us for _, us in spent.values())
    order = sorted(spent.items(), key=lambda item: -item[1][1])[:TOP]
    return [
        {"name": name, "calls": calls / updates, "us": us / updates, "share": us / total} for name, (calls, us) in order
    ]
