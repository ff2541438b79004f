"""The samples-per-insert limiter: it keeps the learner and the actors at the configured ratio.

With I items inserted and S sampled over the whole service, and the ratio sigma: d = sigma * I - S. Inserting k items is
allowed while stored < min_size or d + sigma * k <= max_diff; sampling b is allowed when stored >= min_size and
d - b >= min_diff (Cassirer et al. 2021, Reverb, section 3.3, with d counted in samples). I and S count from the shards'
baselines (`credit.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from protos.types import LimiterState
from rl.bounds import at_least, positive
from rl.errors import BadSetting, RunFault
from rl.resuming import Rules, rules


@dataclass(frozen=True)
class LimiterConfig:
    """The samples-per-insert limiter."""

    samples_per_insert: float = 8.0
    """Items sampled per item inserted (batch size / agent steps per update); 0: no ratio, only `min_size` applies."""
    min_size: int = 5_000
    """Items that replay must hold before the first batch is drawn."""
    slack: float = 4_000.0
    """How far sampling may be ahead of or behind the ratio, in samples."""

    on_resume: ClassVar[Rules] = rules(
        may="min_size slack",
        samples_per_insert="the new ratio counts from here on; earlier samples and inserts do not count",
    )

    def __post_init__(self) -> None:
        at_least(self, 0, "samples_per_insert", zero="no ratio")
        at_least(self, 1, "min_size", unit="item")
        positive(self, "slack", unit="samples")


class RateLimiter:
    """The rule above for segments of at most ``max_insert`` items, batches of ``batch`` items and ``shards`` shards.

        limiter = RateLimiter(config, max_insert, batch, shards)
        limiter.can_insert(inserted, sampled, stored, k)  # before k items are inserted
        limiter.can_sample(inserted, sampled, stored, b)  # before b items are sampled

    d is centred where replay reaches min_size: min_diff = sigma * min_size - slack and max_diff = sigma * min_size +
    slack. Raises BadSetting when the slack is so small that writers and learner could block each other.
    """

    def __init__(self, config: LimiterConfig, max_insert: int, batch: int, shards: int = 1) -> None:
        self.config = config
        self.sigma = config.samples_per_insert
        self.max_insert, self.batch, self.shards = max_insert, batch, shards
        self._short_from: int | None = None  # items inserted when replay was first seen to hold fewer than min_size
        centre = self.sigma * config.min_size
        self.min_diff, self.max_diff = centre - config.slack, centre + config.slack
        # Credit is granted by shard and, under one rule, never taken back: each shard must be able to hold a segment's.
        needed = self.sigma * max_insert * shards + batch
        if self.sigma > 0 and self.max_diff - self.min_diff < needed:
            raise BadSetting(
                LimiterConfig,
                "slack",
                f"is {config.slack:g}: with segments of up to {max_insert} items, {shards} shard(s) and batches of {batch}, "
                f"writers and learner could wait for each other for ever; write at least {math.ceil(needed / 2)}",
            )

    def over(self, shards: int) -> RateLimiter:
        """The same rule for another number of shards. Raises BadSetting when the slack is too small for them."""
        return RateLimiter(self.config, self.max_insert, self.batch, shards)

    def diff(self, inserted: int, sampled: int) -> float:
        """d = sigma * I - S, in samples."""
        return self.sigma * inserted - sampled

    def blocked_reason(self, inserted: int, sampled: int, stored: int, b: int) -> str:
        """Which bound forbids sampling ``b`` more items, with the counts; empty when none does."""
        if stored < self.config.min_size:
            return f"min_size: {stored} of {self.config.min_size} items are stored"
        if self.can_sample(inserted, sampled, stored, b):
            return ""
        return (
            f"min_diff: d = {self.sigma:g} * {inserted} inserted - {sampled} sampled = {self.diff(inserted, sampled):g}, "
            f"and less {b} it is below {self.min_diff:g}: more must be inserted first"
        )

    def state(self, inserted: int, sampled: int, stored: int) -> LimiterState:
        """The rule's bounds, with the present d and items stored."""
        diff = self.diff(inserted, sampled)
        return LimiterState(self.sigma, self.config.min_size, self.min_diff, self.max_diff, diff, stored)

    def can_insert(self, inserted: int, sampled: int, stored: int, k: int) -> bool:
        """Whether ``k`` more items may be inserted: stored < min_size or d + sigma * k <= max_diff."""
        if self.sigma == 0 or stored < self.config.min_size:
            return True
        return self.diff(inserted + k, sampled) <= self.max_diff

    def can_sample(self, inserted: int, sampled: int, stored: int, b: int) -> bool:
        """Whether ``b`` more items may be sampled: stored >= min_size and d - b >= min_diff."""
        if stored < self.config.min_size:
            return False
        return self.sigma == 0 or self.diff(inserted, sampled) - b >= self.min_diff

    def check_min_size_reachable(self, inserted: int, stored: int) -> None:
        """Raise RunFault when replay evicts items before it holds min_size; call it before each batch.

        How many transitions fit into a capacity in bytes is not known beforehand. The criterion: since replay was first
        seen to hold fewer than min_size, twice that many were inserted, and it still holds fewer.
        """
        if stored >= self.config.min_size:
            self._short_from = None
        elif self._short_from is None:
            self._short_from = inserted
        elif inserted - self._short_from >= 2 * self.config.min_size:
            raise RunFault(
                f"replay holds {stored} transitions after {inserted - self._short_from} inserts and is to be sampled from "
                f"`min_size` of {self.config.min_size} on: it evicts before it gets there; "
                "write a larger `capacity_bytes` (or `capacity`), or a smaller `min_size`"
            )

    def insert_allowance(self, inserted: int, sampled: int, stored: int) -> int:
        """Number of items that the service may still take now; 2^62 where that is unlimited."""
        if self.sigma == 0:
            return 2**62
        by_ratio = math.floor((self.max_diff + sampled) / self.sigma) - inserted
        until_min = self.config.min_size - stored
        if until_min > 0:
            return max(by_ratio, until_min + self.max_insert * (self.shards + 1))
        return max(by_ratio, 0)

    def grants(self, inserted: Sequence[int], granted: Sequence[int], sampled: int, stored: int) -> list[int]:
        """New cumulative insert credit of each shard, in items: what the service may take, shared out evenly.

        ``inserted`` and ``granted`` hold, for each shard, the items inserted and the credit already granted. Credit
        granted but not yet used counts against the allowance, and nothing granted is taken back.
        """
        allowance = self.insert_allowance(sum(inserted), sampled, stored)
        if allowance >= 2**61:
            return [2**62] * len(inserted)
        outstanding = [max(0, g - i) for g, i in zip(granted, inserted, strict=True)]
        free = allowance - sum(outstanding)
        share = _level(outstanding, free)
        return [max(g, i + s) for g, i, s in zip(granted, inserted, share, strict=True)]


def _level(have: Sequence[int], free: int) -> list[int]:
    """``have``, with the lowest of them raised to a common level by ``free`` units in all; nothing is lowered."""
    if free <= 0:
        return list(have)
    order = sorted(range(len(have)), key=have.__getitem__)
    count = len(order)
    while (level := (sum(have[i] for i in order[:count]) + free) // count) < have[order[count - 1]]:
        count -= 1  # the richest of them stands above the level that the others can reach
    raised = set(order[:count])
    return [level if i in raised else h for i, h in enumerate(have)]
