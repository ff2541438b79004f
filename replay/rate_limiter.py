"""The samples-per-insert limiter: keeps the ratio of sampled to inserted items close to the configured one.

With I items inserted and S sampled over all shards, and the ratio sigma, let d = sigma * I - S. Inserting k items is
allowed if stored < min_size or d + sigma * k <= max_diff. Sampling b items is allowed if stored >= min_size and
d - b >= min_diff (Cassirer et al. 2021, Reverb, section 3.3, with d counted in samples). I and S count from the shards'
baselines (`credit.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from protos.types import UNLIMITED_CREDIT, LimiterState
from rl.bounds import at_least, positive
from rl.errors import BadSetting, RunFault
from rl.resuming import Rules, rules

# In items; more than the rounding errors of d / sigma, which at the smallest slack could cost a whole item.
ROUNDING = 1e-3


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
        at_least(self, 0, "samples_per_insert", zero="no ratio is kept")
        at_least(self, 1, "min_size", unit="item")
        positive(self, "slack", unit="samples")


class RateLimiter:
    """The limiter for segments of at most ``max_insert`` items, batches of ``batch`` items and ``shards`` shards.

        limiter = RateLimiter(config, max_insert, batch, shards)
        limiter.can_insert(inserted, sampled, stored, k)  # before inserting k items
        limiter.can_sample(inserted, sampled, stored, b)  # before sampling b items

    It has no counts of its own. The bounds lie around the value of d at which replay reaches min_size: min_diff = sigma
    * min_size - slack, and max_diff = sigma * min_size + slack. Raises BadSetting if the slack is so small that writers
    and learner could block each other.
    """

    def __init__(self, config: LimiterConfig, max_insert: int, batch: int, shards: int = 1) -> None:
        self.config = config
        self.sigma = config.samples_per_insert
        self.max_insert, self.batch, self.shards = max_insert, batch, shards
        self._inserted_when_short: int | None = None  # see `check_min_size_reachable`
        centre = self.sigma * config.min_size
        self.min_diff, self.max_diff = centre - config.slack, centre + config.slack
        # Credit is never reduced, so each shard may keep unused credit that is too small for its next segment.
        needed = self.sigma * max_insert * shards + batch
        if self.sigma > 0 and self.max_diff - self.min_diff < needed:
            raise BadSetting(
                LimiterConfig,
                "slack",
                f"is {config.slack:g}: with segments of up to {max_insert} items, {shards} shard(s) and batches of "
                f"{batch}, writers and learner could block each other; write at least {math.ceil(needed / 2)}",
            )

    def for_shards(self, shards: int) -> RateLimiter:
        """Return this limiter for another number of shards. Raises BadSetting if its slack is too small for them."""
        return RateLimiter(self.config, self.max_insert, self.batch, shards)

    def diff(self, inserted: int, sampled: int) -> float:
        """Return d = sigma * I - S, in samples."""
        return self.sigma * inserted - sampled

    def blocked_reason(self, inserted: int, sampled: int, stored: int, b: int) -> str:
        """Return which bound forbids sampling ``b`` more items, with the counts; "" if none does."""
        if stored < self.config.min_size:
            return f"min_size: {stored} of {self.config.min_size} items are stored"
        if self.can_sample(inserted, sampled, stored, b):
            return ""
        return (
            f"min_diff: d = {self.sigma:g} * {inserted} inserted - {sampled} sampled = "
            f"{self.diff(inserted, sampled):g}, and d - {b} is below min_diff = {self.min_diff:g}: more items must be "
            "inserted first"
        )

    def state(self, inserted: int, sampled: int, stored: int) -> LimiterState:
        """Return the limiter's settings and bounds, with the current d and number of items stored."""
        diff = self.diff(inserted, sampled)
        return LimiterState(self.sigma, self.config.min_size, self.min_diff, self.max_diff, diff, stored)

    def can_insert(self, inserted: int, sampled: int, stored: int, k: int) -> bool:
        """Return whether ``k`` more items may be inserted: stored < min_size or d + sigma * k <= max_diff."""
        if self.sigma == 0 or stored < self.config.min_size:
            return True
        return self.diff(inserted + k, sampled) <= self.max_diff

    def can_sample(self, inserted: int, sampled: int, stored: int, b: int) -> bool:
        """Return whether ``b`` more items may be sampled: stored >= min_size and d - b >= min_diff."""
        if stored < self.config.min_size:
            return False
        return self.sigma == 0 or self.diff(inserted, sampled) - b >= self.min_diff

    def check_min_size_reachable(self, inserted: int, stored: int) -> None:
        """Raise RunFault if replay evicts items before it holds min_size; call it before each batch.

        It is not known in advance how many transitions fit into `capacity_bytes`. So this method raises if replay still
        holds fewer than min_size items after 2 * min_size were inserted, counted from the first call that found it
        short.
        """
        if stored >= self.config.min_size:
            self._inserted_when_short = None
        elif self._inserted_when_short is None:
            self._inserted_when_short = inserted
        elif inserted - self._inserted_when_short >= 2 * self.config.min_size:
            raise RunFault(
                f"replay holds only {stored} transitions after {inserted - self._inserted_when_short} were inserted: "
                f"it evicts transitions before it reaches `min_size` of {self.config.min_size}; write a larger "
                "`capacity_bytes` (or `capacity`), or a smaller `min_size`"
            )

    def forget_shortage(self) -> None:
        """Begin `check_min_size_reachable` anew: replay holds fewer items for another reason than eviction."""
        self._inserted_when_short = None

    def insert_allowance(self, inserted: int, sampled: int, stored: int) -> int:
        """Return how many more items all shards together may accept; UNLIMITED_CREDIT without a ratio.

        Below min_size it is at least enough to reach min_size and, for K shards, for K + 1 longest segments more, so
        that every shard can accept one.
        """
        if self.sigma == 0:
            return UNLIMITED_CREDIT
        by_ratio = math.floor((self.max_diff + sampled) / self.sigma - inserted + ROUNDING)
        until_min = self.config.min_size - stored
        if until_min > 0:
            return max(by_ratio, until_min + self.max_insert * (self.shards + 1))
        return max(by_ratio, 0)

    def allocate_credit(self, inserted: Sequence[int], granted: Sequence[int], allowance: int) -> list[int]:
        """Return the new credit of each shard, in items, counted from the baselines.

        ``inserted`` and ``granted`` are each shard's inserted items and its credit so far, counted in the same way;
        ``allowance`` is that of `insert_allowance`. The part of it that is no shard's unused credit goes to the shards
        with the least unused credit, which are raised to a common level. Credit is never reduced
        (docs/decisions/0002).
        """
        if allowance >= UNLIMITED_CREDIT // 2:  # also for a ratio of almost 0
            return [UNLIMITED_CREDIT] * len(inserted)
        unused = [max(0, g - i) for g, i in zip(granted, inserted, strict=True)]
        raised = _water_fill(unused, allowance - sum(unused))
        return [max(g, i + u) for g, i, u in zip(granted, inserted, raised, strict=True)]


def _water_fill(have: Sequence[int], free: int) -> list[int]:
    """Return ``have`` with the lowest values raised to a common level, by at most ``free`` units in all."""
    if free <= 0:
        return list(have)
    order = sorted(range(len(have)), key=have.__getitem__)
    count = len(order)
    while (level := (sum(have[i] for i in order[:count]) + free) // count) < have[order[count - 1]]:
        count -= 1  # leave out the highest: it is above the level that the others can reach
    raised = set(order[:count])
    return [level if i in raised else h for i, h in enumerate(have)]
