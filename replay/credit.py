"""The ledger of insert credit: what was inserted and sampled over all shards, and what each shard may still take.

A shard's baseline is the counts in its first reply. What it inserts and samples is counted from there, and the count
continues where the shard is restarted and its own counts fall back. The items that it held at its baseline count as
inserted until min_size items do, so that a replay that was restored or preloaded starts balanced (docs/decisions/0007).
Shards may join and leave; what those that left have inserted and sampled stays in the sums.

The limiter judges the sums. What it lets the service take is shared out as cumulative credit, shard by shard
(docs/decisions/0002). This ledger does not know how the counts are transported.
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
    """One shard in the ledger: items inserted, sampled and granted since its baseline.

    `record`, `lose` and `close` are called by the thread that receives the shard's replies, all else by the ledger's.
    """

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock  # the ledger's
        self.inserted = self.sampled = self.granted = 0
        self.stored = 0  # items, by its last reply
        self.known = False  # whether it has a baseline
        self.reached = False  # whether it has replied since it was last lost
        self.open = True  # whether it may still reply
        self.held = 0  # items stored at its baseline that are not yet in the sums
        self._own = (0, 0)  # the shard's own counts of items inserted and sampled, by its last reply
        self._baseline = (0, 0)  # the same at its baseline, less what restarts have lost since

    def record(self, inserted: int, sampled: int, stored: int) -> None:
        """Store the shard's own counts, in items; the first ones are its baseline."""
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
        """Note that the shard is unreachable; it may have been replaced when it replies again."""
        with self._lock:
            self.reached = False

    def close(self) -> None:
        """Note that the shard has left or is gone for good: the items that it stores no longer count."""
        with self._lock:
            self.open = False

    def take_baseline(self) -> None:
        """Count from the last reply on, with nothing granted (the caller holds the lock)."""
        self.known, self._baseline, self.held = True, self._own, self.stored
        self.inserted = self.sampled = self.granted = 0

    def credit(self) -> int:
        """The cumulative credit in the shard's own count of items: it may insert until that count reaches it.

        It is 0 while the shard is unreachable.
        """
        with self._lock:
            return max(0, self.granted + self._baseline[0]) if self.reached else 0  # it may have been restarted


class CreditLedger:
    """The accounts of all shards under one limiter.

        account = ledger.open_account()  # for each shard; `account.record` at each of its replies
        allowed = ledger.batches_allowed(ledger.totals(), asked, most)
        ledger.grant()  # then send each shard its `account.credit()`

    For one thread, except for the accounts and `blocked_reason`.
    """

    def __init__(self, limiter: RateLimiter) -> None:
        self.limiter = limiter
        self._lock = threading.Lock()
        self._accounts: list[ShardAccount] = []  # of shards that left too
        self._preloaded = 0  # items that count as inserted because a shard held them at its baseline

    def open_account(self) -> ShardAccount:
        """A new account for a shard that joins."""
        account = ShardAccount(self._lock)
        with self._lock:
            self._accounts.append(account)
        return account

    def change_limiter(self, limiter: RateLimiter) -> None:
        """Continue under another limiter, from new baselines; shards that have left no longer count."""
        with self._lock:
            self.limiter, self._preloaded = limiter, 0
            for account in self._accounts:
                if account.known:
                    account.take_baseline()
                if not account.open:
                    account.held = 0

    def totals(self) -> Totals:
        """The sums over all shards, in items.

        What a shard held at its baseline is added at the first call after it, as far as min_size then has room for it.
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
        """How many batches, at most ``most``, may be asked for now.

        ``asked`` items are asked for already and not in ``totals`` yet.
        """
        inserted, sampled, stored = totals
        size, allowed = self.limiter.batch, 0
        while allowed < most and self.limiter.can_sample(inserted, sampled + asked + allowed * size, stored, size):
            allowed += 1
        return allowed

    def blocked_reason(self) -> str:
        """Which bound of the limiter forbids the next batch, with the counts; empty when none does. For any thread."""
        return self.limiter.blocked_reason(*self.totals(), self.limiter.batch)

    def check_min_size_reachable(self, totals: Totals) -> None:
        """Raise RunFault when replay evicts items before it holds min_size.

        It checks only while every shard is reachable.
        """
        if all(a.reached or not a.open for a in self._accounts):
            self.limiter.check_min_size_reachable(totals.inserted, totals.stored)

    def grant(self) -> None:
        """Update every shard's cumulative credit (`ShardAccount.credit`).

        The limiter sees only the shards that are present, so samples paid for by the inserts of others are subtracted.
        The sums are taken now: items inserted since an earlier look would otherwise be granted a second time.
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
