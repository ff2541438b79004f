"""Computes each shard's credit: sums the shards' counts, asks the limiter, and divides what it allows.

A shard's credit is the count of its inserted items up to which it may accept segments. Its unused credit is credit -
inserted.

A shard's baseline is the counts in its first reply; the ledger counts inserted and sampled items from there. If a shard
is restarted and its own counts fall, the ledger's counts continue from where they were. Items stored at the baseline
count as inserted, but only until the sum reaches min_size: so a restored or preloaded replay starts balanced
(docs/decisions/0007). Shards may join and leave; the items that a shard had inserted and sampled stay in the sums. The
account of a shard that was gone and answers again goes on, so that its items count once.

The limiter decides from the sums how many more items all shards together may accept. This allowance is divided among
the shards (docs/decisions/0002). The ledger does no communication: the sampler passes it counts and sends credit.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

from replay.rate_limiter import RateLimiter


class Totals(NamedTuple):
    """Items over all shards: inserted and sampled since the baselines, and stored at the last replies."""

    inserted: int
    sampled: int
    stored: int


class ShardAccount:
    """One shard's account: its items inserted and sampled, and its credit, all counted from its baseline.

    Any thread may call `record`, `mark_unreachable`, `close`, `reopen` and `credit`. The rest is for `CreditLedger`.
    """

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock  # shared with the ledger
        self.inserted = self.sampled = 0
        self.granted = 0  # the credit; `credit` converts it to the shard's own count
        self.stored = 0  # items, from the last reply
        self.has_baseline = False
        self.is_reachable = False  # it has replied since `mark_unreachable`
        self.is_open = True  # until `close`, and after `reopen`
        self.losses = 0  # restarts and closings: each may have lowered the number of items that replay holds
        self.preload = 0  # items stored at the baseline that the ledger has not yet added to its sums
        self._counts = (0, 0)  # the shard's own counts of inserted and sampled items, from the last reply
        self._baseline = (0, 0)  # those counts at the baseline, lowered by what restarts have lost since

    def record(self, inserted: int, sampled: int, stored: int) -> None:
        """Record the counts in a reply of the shard, in items; the first ones become its baseline."""
        with self._lock:
            restarted = inserted < self._counts[0] or sampled < self._counts[1]
            self._counts, self.stored = (inserted, sampled), stored
            if not self.has_baseline:
                self.set_baseline()
            elif restarted:
                self.losses += 1
                self._baseline = (inserted - self.inserted, sampled - self.sampled)
            self.inserted, self.sampled = inserted - self._baseline[0], sampled - self._baseline[1]
            self.is_reachable = True

    def mark_unreachable(self) -> None:
        """Record that the shard is unreachable. Its credit is 0 until its next reply."""
        with self._lock:
            self.is_reachable = False

    def close(self) -> None:
        """Record that the shard has left or is gone: it gets no more credit, and its items do not count as stored."""
        with self._lock:
            self.is_open = False
            self.losses += 1

    def reopen(self) -> None:
        """Record that a closed shard answers again: what it inserts and samples is added to its counts so far.

        Its unused credit has been divided among the other shards meanwhile, so it starts without any. What it stores is
        known with its next reply.
        """
        with self._lock:
            self.is_open, self.stored = True, 0
            self.granted = min(self.granted, self.inserted)

    def set_baseline(self) -> None:
        """Make the last reply's counts the baseline, with no credit granted. The caller must hold the lock."""
        self.has_baseline, self._baseline, self.preload = True, self._counts, self.stored
        self.inserted = self.sampled = self.granted = 0

    def credit(self) -> int:
        """Return the credit to send to the shard: in the shard's own count, which does not start at the baseline.

        It is 0 while the shard is unreachable, because a restarted shard counts from another number.
        """
        with self._lock:
            return max(0, self.granted + self._baseline[0]) if self.is_reachable else 0


class CreditLedger:
    """The accounts of all shards under one limiter.

        account = ledger.open_account()  # one for each shard
        account.record(inserted, sampled, stored)  # after each reply of the shard
        allowed = ledger.batches_allowed(ledger.totals(), requested_items, max_batches)
        ledger.grant()  # then send each shard its `account.credit()`

    Only one thread may use it, except for `blocked_reason` and the accounts.
    """

    def __init__(self, limiter: RateLimiter) -> None:
        self.limiter = limiter
        self._lock = threading.Lock()
        self._accounts: list[ShardAccount] = []  # including shards that have left
        self._preloaded = 0  # items stored at the baselines that count as inserted
        self._losses = 0  # of all accounts, at the last `check_min_size_reachable`

    def open_account(self) -> ShardAccount:
        """Return a new account for a shard that joins."""
        account = ShardAccount(self._lock)
        with self._lock:
            self._accounts.append(account)
        return account

    def change_limiter(self, limiter: RateLimiter) -> None:
        """Replace the limiter and count from new baselines. Shards that have left or are gone no longer count."""
        with self._lock:
            self.limiter, self._preloaded = limiter, 0
            for account in self._accounts:
                if account.has_baseline:
                    account.set_baseline()
                if not account.is_open:  # should it answer again, its counts at that time are the baseline
                    account.has_baseline, account.preload = False, 0

    def totals(self) -> Totals:
        """Return the sums over all shards, in items.

        The items that a shard stored at its baseline are added to ``inserted`` at the next call, up to min_size in all.
        """
        with self._lock:
            return self._totals()

    def _totals(self) -> Totals:
        inserted = self._preloaded + sum(a.inserted for a in self._accounts)
        for account in self._accounts:
            more = max(0, min(account.preload, self.limiter.config.min_size - inserted))
            self._preloaded, inserted = self._preloaded + more, inserted + more
            account.preload = 0
        sampled = sum(a.sampled for a in self._accounts)
        return Totals(inserted, sampled, sum(a.stored for a in self._accounts if a.is_open))

    def batches_allowed(self, totals: Totals, requested_items: int, max_batches: int) -> int:
        """Return how many batches may be requested now, at most ``max_batches``.

        ``requested_items`` have been requested before, but are not yet counted in ``totals``.
        """
        inserted, sampled, stored = totals
        size, allowed = self.limiter.batch, 0
        sampled += requested_items
        while allowed < max_batches and self.limiter.can_sample(inserted, sampled + allowed * size, stored, size):
            allowed += 1
        return allowed

    def blocked_reason(self) -> str:
        """Return which bound of the limiter forbids the next batch, with the counts; "" if none does."""
        return self.limiter.blocked_reason(*self.totals(), self.limiter.batch)

    def check_min_size_reachable(self, totals: Totals) -> None:
        """Raise RunFault if replay evicts items before it holds min_size. Checks only if every shard is reachable.

        What a shard loses when it restarts or is gone is not evicted, so the check then begins anew.
        """
        losses = sum(account.losses for account in self._accounts)
        if losses != self._losses:
            self._losses = losses
            self.limiter.forget_shortage()
        if all(a.is_reachable or not a.is_open for a in self._accounts):
            self.limiter.check_min_size_reachable(totals.inserted, totals.stored)

    def grant(self) -> None:
        """Compute the credit of every open shard anew (`ShardAccount.credit`).

        Credit is divided among the open shards only. The sums are computed here: with older sums, items inserted since
        then would be granted a second time.
        """
        with self._lock:
            totals = self._totals()
            members = [a for a in self._accounts if a.is_open and a.has_baseline]
            if not members:
                return
            allowance = self.limiter.insert_allowance(totals.inserted, totals.sampled, totals.stored)
            inserted, granted = [a.inserted for a in members], [a.granted for a in members]
            grants = self.limiter.allocate_credit(inserted, granted, allowance)
            for account, grant in zip(members, grants, strict=True):
                account.granted = grant
