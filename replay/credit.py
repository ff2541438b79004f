"""The ledger of insert credit: what was inserted and sampled over all shards, and what each shard may still take.

A shard's baseline is what it said of itself when it was first heard. What it inserts and samples is counted from there, and
goes on where the shard is restarted and its own counts fall back. What it held at its baseline counts as inserted until
min_size items do, so that a replay that was restored or preloaded neither owes nor is owed anything (docs/decisions/0007).
Shards may join and leave; what those that left have inserted and sampled stays in the sums.

The limiter judges the sums. What it lets the service take is shared out as cumulative credit, shard by shard
(docs/decisions/0002). Nothing here knows how the counts travel.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

from replay.rate_limiter import RateLimiter


class Totals(NamedTuple):
    """Items over all shards: inserted and sampled since the baselines, and stored now."""

    inserted: int
    sampled: int
    stored: int


class ShardAccount:
    """One shard in the ledger; items inserted, sampled and granted since its baseline.

    `record` and the two that follow it are called by the thread that hears the shard, all else by the ledger's.
    """

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock  # the ledger's
        self.inserted = self.sampled = self.granted = 0
        self.stored = 0  # as last heard
        self.known = False  # whether it has a baseline
        self.reached = False  # whether it was heard since it was last lost
        self.open = True  # whether it may still be heard
        self.held = 0  # items stored at its baseline that are not yet in the sums
        self._own = (0, 0)  # the shard's own counts of items inserted and sampled, as last heard
        self._baseline = (0, 0)  # the same at its baseline, less what it has lost since by a restart

    def record(self, inserted: int, sampled: int, stored: int) -> None:
        """Take the shard's own counts, in items; the first are its baseline."""
        with self._lock:
            restarted = inserted < self._own[0] or sampled < self._own[1]
            self._own, self.stored = (inserted, sampled), stored
            if not self.known:
                self.take_baseline()
            elif restarted:
                self._baseline = (inserted - self.inserted, sampled - self.sampled)
            self.inserted, self.sampled = inserted - self._baseline[0], sampled - self._baseline[1]
            self.reached = True

    def lose(self) -> None:
        """The shard is out of reach, and may be another when it is heard again."""
        with self._lock:
            self.reached = False

    def close(self) -> None:
        """The shard has left or is gone for good: what it stores counts no more."""
        with self._lock:
            self.open = False

    def take_baseline(self) -> None:
        """Count from what was last heard, with nothing granted (the caller holds the lock)."""
        self.known, self._baseline, self.held = True, self._own, self.stored
        self.inserted = self.sampled = self.granted = 0

    def credit(self) -> int:
        """The cumulative credit in the shard's own count: it may take items until it has inserted as many."""
        with self._lock:
            return max(0, self.granted + self._baseline[0]) if self.reached else 0  # it may have been restarted


class CreditLedger:
    """The accounts of all shards under one limiter. For one thread, but for the accounts and `blocked_reason`."""

    def __init__(self, limiter: RateLimiter) -> None:
        self.limiter = limiter
        self._lock = threading.Lock()
        self._accounts: list[ShardAccount] = []  # of shards that left too
        self._preloaded = 0  # items that count as inserted because a shard held them at its baseline

    def open_account(self) -> ShardAccount:
        """An account for a shard that joins."""
        account = ShardAccount(self._lock)
        with self._lock:
            self._accounts.append(account)
        return account

    def change_limiter(self, limiter: RateLimiter) -> None:
        """Go on by another rule, from new baselines; of a shard that has left nothing counts."""
        with self._lock:
            self.limiter, self._preloaded = limiter, 0
            for account in self._accounts:
                if account.known:
                    account.take_baseline()
                if not account.open:
                    account.held = 0

    def totals(self) -> Totals:
        """The sums now.

        What a shard held at its baseline enters them at the first look after it, as far as min_size then has room for it.
        """
        with self._lock:
            return self._totals()

    def _totals(self) -> Totals:
        inserted = self._preloaded + sum(a.inserted for a in self._accounts)
        for account in self._accounts:
            more = max(0, min(account.held, self.limiter.config.min_size - inserted))
            self._preloaded, inserted = self._preloaded + more, inserted + more
            account.held = 0
        sampled = sum(a.sampled for a in self._accounts)
        return Totals(inserted, sampled, sum(a.stored for a in self._accounts if a.open))

    def batches_allowed(self, totals: Totals, asked: int, most: int) -> int:
        """How many batches, ``most`` at most, may be asked for beside the ``asked`` items that are on their way."""
        inserted, sampled, stored = totals
        size, allowed = self.limiter.batch, 0
        while allowed < most and self.limiter.can_sample(inserted, sampled + asked + allowed * size, stored, size):
            allowed += 1
        return allowed

    def blocked_reason(self) -> str:
        """Which bound of the limiter forbids the next batch, with the counts; empty when none does. From any thread."""
        return self.limiter.blocked_reason(*self.totals(), self.limiter.batch)

    def check_min_size_reachable(self, totals: Totals) -> None:
        """Raise RunFault when replay evicts before it holds min_size; judges only while every shard is heard."""
        if all(a.reached or not a.open for a in self._accounts):
            self.limiter.check_min_size_reachable(totals.inserted, totals.stored)

    def grant(self) -> None:
        """Bring every shard's cumulative credit up to date.

        The limiter sees the shards that are there alone. So the samples that the others' inserts pay for are taken off. The
        sums are those of this moment: what came in since an earlier look would be granted a second time.
        """
        with self._lock:
            totals = self._totals()
            members = [a for a in self._accounts if a.open and a.known]
            if not members:
                return
            elsewhere = totals.inserted - sum(a.inserted for a in members)
            sampled = totals.sampled - round(self.limiter.sigma * elsewhere)
            inserted, granted = [a.inserted for a in members], [a.granted for a in members]
            grants = self.limiter.grants(inserted, granted, sampled, totals.stored)
            for account, grant in zip(members, grants, strict=True):
                account.granted = grant
