"""The arithmetic of `qfleet bench chaos` about recoveries: updates/s in bins of a second, and counts that fall."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from benchmarks.measure import median

RECOVERED = 0.9  # of the fault-free updates/s


class Sample(NamedTuple):
    """The counts in a run's status, and its Unix time."""

    time: float
    updates: int
    agent_steps: int
    weights_version: int


class Bin(NamedTuple):
    """Updates/s in the second that ends at the Unix time ``end``."""

    end: float
    updates_per_s: float


def bins(samples: Sequence[Sample], since: float) -> list[Bin]:
    """The whole seconds from ``since`` to the last sample.

    Between two samples, which are about a second apart, the updates are taken to be evenly spread. A fall of the
    counter, when a learner goes on from a checkpoint, counts as no update.
    """
    if not samples or samples[-1].time < since + 1:
        return []
    edges = since + np.arange(int(samples[-1].time - since) + 1)
    updates = np.interp(edges, [s.time for s in samples], [s.updates for s in samples])
    return [Bin(float(end), max(0.0, float(made))) for end, made in zip(edges[1:], np.diff(updates), strict=True)]


def median_rate(samples: Sequence[Sample], since: float) -> float:
    """The median of updates/s in the bins from ``since``; 0 if there are none."""
    rates = [b.updates_per_s for b in bins(samples, since)]
    return median(rates) if rates else 0.0


def recovered_at(samples: Sequence[Sample], since: float, works_at: float, fault_free: float) -> float | None:
    """When a run has recovered from a fault at the time ``since``, whose part has worked again since ``works_at``.

    It is the end of the first bin of RECOVERED of ``fault_free`` updates/s that ends when the part works; None if there
    was none yet.
    """
    level = RECOVERED * fault_free
    return next((b.end for b in bins(samples, since) if b.end >= works_at and b.updates_per_s >= level), None)


class Floor(NamedTuple):
    """The learner was killed or frozen at this Unix time, and its last undamaged checkpoint was of ``updates``."""

    time: float
    updates: int


def find_regressions(samples: Sequence[Sample], floors: Sequence[Floor]) -> tuple[list[str], int]:
    """Counts that fell although they must not, a line each, and the number of updates that were lost.

    Agent steps and the version of the weights may never fall. The updates may fall once after each fault of the
    learner, and not below the checkpoint. Lost are the updates from before a fall that the counter has not any more.
    """
    lines, lost, left = [], 0, sorted(floors)
    for before, after in pairwise(samples):
        for name in ("agent_steps", "weights_version"):
            if getattr(after, name) < getattr(before, name):
                lines.append(f"{name} fell from {getattr(before, name):,} to {getattr(after, name):,}")
        if after.updates >= before.updates:
            continue
        lost += before.updates - after.updates
        past = [floor for floor in left if floor.time <= after.time]
        left = [floor for floor in left if floor.time > after.time]
        if not past or after.updates < past[-1].updates:
            least = f"below the checkpoint of {past[-1].updates:,}" if past else "without a fault of the learner"
            lines.append(f"updates fell from {before.updates:,} to {after.updates:,}, {least}")
    return lines, lost


def summarize(seconds: Sequence[float]) -> dict[str, float] | None:
    """Median and worst of the seconds of recoveries; None if there are none."""
    return {"median": round(median(seconds), 1), "worst": round(max(seconds), 1)} if seconds else None
