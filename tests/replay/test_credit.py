"""The credit ledger without gRPC: baselines, a comparison with a reference implementation, and absence of deadlocks."""

from __future__ import annotations

import itertools
import random

import pytest

from replay.credit import CreditLedger
from replay.rate_limiter import LimiterConfig, RateLimiter
from rl.errors import RunFault

BATCH = 16


def ledger_of(shards, sigma=2.0, min_size=100, slack=200.0, max_insert=10):
    """A ledger and an account for each shard."""
    ledger = CreditLedger(RateLimiter(LimiterConfig(sigma, min_size, slack), max_insert, BATCH, shards))
    return ledger, [ledger.open_account() for _ in range(shards)]


def test_counts_start_at_the_baseline_and_content_counts_up_to_min_size():
    ledger, (one, two) = ledger_of(2)
    one.record(inserted=1000, sampled=9000, stored=30)
    for _ in range(2):
        assert ledger.totals() == (30, 0, 30)  # the counts before the baseline do not matter
    two.record(inserted=0, sampled=0, stored=500)
    assert ledger.totals() == (100, 0, 530)  # 30 and the 70 that min_size has room for
    one.record(inserted=1004, sampled=9016, stored=34)
    assert ledger.totals() == (104, 16, 534)


def test_content_of_a_shard_that_joins_late_only_counts_as_stored():
    ledger, (one,) = ledger_of(1)
    one.record(0, 0, 0)
    one.record(120, 32, 120)
    assert ledger.totals() == (120, 32, 120)
    late = ledger.open_account()
    late.record(inserted=400, sampled=50, stored=300)
    assert ledger.totals() == (120, 32, 420)
    late.record(inserted=410, sampled=66, stored=310)
    assert ledger.totals() == (130, 48, 430)


def test_content_of_a_shard_that_joins_early_counts_up_to_min_size():
    ledger, (one,) = ledger_of(1)
    one.record(0, 0, 0)
    one.record(60, 0, 60)
    ledger.open_account().record(0, 0, 300)
    assert ledger.totals() == (100, 0, 360)  # 60 inserted and 40 of the 300


@pytest.mark.parametrize("left", [(0, 0, 0), (70, 90, 70)], ids=["empty", "from a snapshot"])
def test_counts_continue_after_a_restart(left):
    """Before the restart the shard has counts (110, 100), of which (10, 4) are from before the baseline."""
    ledger, (one, two) = ledger_of(2)
    one.record(10, 4, 0)
    two.record(0, 0, 0)
    one.record(110, 100, 100)
    assert ledger.totals() == (100, 96, 100)
    one.mark_unreachable()
    assert one.credit() == 0  # the counts after the restart are not yet known
    one.record(*left)
    assert ledger.totals() == (100, 96, left[2])
    one.record(left[0] + 8, left[1] + 16, left[2] + 8)
    assert ledger.totals() == (108, 112, left[2] + 8)
    ledger.grant()
    assert one.credit() - left[0] == one.granted - 100  # credit is in the shard's own count


def test_a_closed_shard_stays_in_the_sums_and_stores_nothing():
    ledger, (one, two) = ledger_of(2)
    for account in (one, two):
        account.record(0, 0, 0)
        account.record(80, 30, 80)
    two.close()
    assert ledger.totals() == (160, 60, 80)
    granted = two.granted
    ledger.grant()
    assert two.granted == granted


def test_closed_shards_do_not_reduce_the_credit_of_others():
    """sigma 2, max_diff 400: 160 inserted and 60 sampled leave room for (400 - 2 * 160 + 60) / 2 = 70 items."""
    ledger, (one, two) = ledger_of(2)
    for account in (one, two):
        account.record(0, 0, 0)
        account.record(80, 30, 120)
    two.close()
    ledger.grant()
    assert one.granted == 80 + 70


@pytest.mark.parametrize("own", [(80, 30, 80), (90, 46, 90), (0, 0, 0), (50, 20, 50)])
def test_a_shard_that_answers_again_goes_on_from_its_counts(own):
    """Also if it was restarted meanwhile, empty or from a snapshot: only what it inserted since then is new."""
    ledger, (one, two) = ledger_of(2, min_size=1000)
    for account in (one, two):
        account.record(0, 0, 0)
        account.record(80, 30, 80)
    ledger.grant()
    two.close()
    two.reopen()
    assert two.granted == 80  # the rest has gone to the other shard
    two.record(*own)
    new = (10, 16) if own[0] == 90 else (0, 0)
    assert ledger.totals() == (160 + new[0], 60 + new[1], 80 + own[2])
    two.record(own[0] + 4, own[1] + 16, own[2] + 4)
    assert ledger.totals() == (164 + new[0], 76 + new[1], 84 + own[2])
    ledger.grant()
    assert two.credit() > own[0] + 4


def test_a_limiter_that_changes_while_a_shard_is_gone_counts_from_its_return():
    ledger, (one, two) = ledger_of(2)
    for account in (one, two):
        account.record(0, 0, 0)
        account.record(60, 30, 60)
    two.close()
    ledger.change_limiter(ledger.limiter.for_shards(2))
    assert ledger.totals() == (60, 0, 60)
    two.reopen()
    two.record(70, 46, 70)
    assert ledger.totals() == (100, 0, 130)  # 60, and 40 of the 70 that it stores
    two.record(74, 62, 74)
    assert ledger.totals() == (104, 16, 134)


def test_a_new_limiter_counts_from_new_baselines():
    ledger, (one, two) = ledger_of(2)
    for account in (one, two):
        account.record(0, 0, 0)
        account.record(500, 700, 90)
    ledger.grant()
    two.close()
    ledger.change_limiter(RateLimiter(LimiterConfig(4.0, 120, 400.0), 10, BATCH, 2))
    assert ledger.totals() == (90, 0, 90)  # the open shard's content; no sample, and nothing of the one that has left
    assert one.granted == 0
    one.record(540, 716, 130)
    assert ledger.totals() == (130, 16, 130)


def test_the_same_limiter_for_more_shards_keeps_the_baselines():
    ledger, (one,) = ledger_of(1)
    one.record(0, 0, 50)
    assert ledger.totals() == (50, 0, 50)
    one.record(80, 16, 130)
    ledger.limiter = ledger.limiter.for_shards(3)
    assert ledger.totals() == (130, 16, 130)


def test_content_is_added_at_the_first_totals_after_the_baseline():
    """Items inserted by then are counted first; content fills the rest of min_size."""
    ledger, (one,) = ledger_of(1)
    one.record(0, 0, 50)
    one.record(80, 16, 130)
    assert ledger.totals() == (100, 16, 130)  # 80, and 20 of the 50
    one.record(90, 16, 140)
    assert ledger.totals() == (110, 16, 140)


def test_batches_allowed_subtracts_requested_items():
    """d = 2 * 100 = 200 and min_diff = 136: 64 samples, which are 4 batches of 16."""
    ledger, (one,) = ledger_of(1, slack=64.0)
    one.record(0, 0, 100)
    totals = ledger.totals()
    assert [ledger.batches_allowed(totals, asked, max_batches=10) for asked in (0, 16, 48, 64, 80)] == [4, 3, 1, 0, 0]
    assert ledger.batches_allowed(totals, 0, max_batches=2) == 2
    assert ledger.blocked_reason() == ""
    one.record(0, 64, 100)
    assert ledger.blocked_reason().startswith("min_diff: d = 2 * 100 inserted - 64 sampled = 136, and d - 16 is below")
    one.record(0, 64, 99)
    assert ledger.blocked_reason() == "min_size: 99 of 100 items are stored"


def test_min_size_is_checked_only_while_all_shards_are_reachable():
    ledger, (one, two) = ledger_of(2)
    one.record(0, 0, 0)
    for inserted in (10, 300):
        one.record(inserted, 0, 10)
        ledger.check_min_size_reachable(ledger.totals())  # the other shard has not replied yet
    two.record(0, 0, 0)
    ledger.check_min_size_reachable(ledger.totals())  # first call that finds replay short, at 300 inserted
    one.record(500, 0, 10)
    two.mark_unreachable()
    ledger.check_min_size_reachable(ledger.totals())
    two.record(0, 0, 0)
    with pytest.raises(RunFault, match="holds only 10 transitions after 200 were inserted"):
        ledger.check_min_size_reachable(ledger.totals())


@pytest.mark.parametrize("loss", ["restart", "gone"])
def test_what_shards_lose_again_and_again_does_not_count_as_evicted(loss):
    """Each time 90 of min_size 100 items are inserted, and then they are lost."""
    ledger, (one, two) = ledger_of(2)
    one.record(0, 0, 0)
    two.record(0, 0, 0)
    for _ in range(10):
        for inserted in range(0, 91, 10):
            two.record(inserted, 0, inserted)
            ledger.check_min_size_reachable(ledger.totals())
        if loss == "gone":
            two.close()
            ledger.check_min_size_reachable(ledger.totals())
            two.reopen()
    with pytest.raises(RunFault, match="after 200 were inserted"):
        for inserted in range(90, 1000, 10):
            two.record(inserted, 0, 90)
            ledger.check_min_size_reachable(ledger.totals())


class ReferenceLedger:
    """A simple ledger that keeps all replies of each shard since its baseline: (inserted, sampled, stored)."""

    def __init__(self, limiter, shards):
        self.limiter, self.preloaded = limiter, 0
        self.replies, self.granted, self.open = [[] for _ in range(shards)], [0] * shards, [True] * shards

    def count(self, k):
        """Items inserted and sampled since the baseline: the increases between replies, without those at restarts."""
        replies, total = self.replies[k], (0, 0)
        for was, now in itertools.pairwise(replies):
            if now[0] >= was[0] and now[1] >= was[1]:
                total = (total[0] + now[0] - was[0], total[1] + now[1] - was[1])
        return total

    def sums(self):
        counts = [self.count(k) for k in range(len(self.replies))]
        stored = sum(s[-1][2] for s, open_ in zip(self.replies, self.open, strict=True) if open_ and s)
        return self.preloaded + sum(c[0] for c in counts), sum(c[1] for c in counts), stored

    def record(self, k, reply):
        first = not self.replies[k]
        self.replies[k].append(reply)
        if first:
            self.preload(reply[2])

    def preload(self, stored):
        self.preloaded += max(0, min(stored, self.limiter.config.min_size - self.sums()[0]))

    def change_limiter(self, limiter):
        self.limiter, self.preloaded, self.granted = limiter, 0, [0] * len(self.replies)
        self.replies = [s[-1:] if open_ else [] for s, open_ in zip(self.replies, self.open, strict=True)]
        for replies in self.replies:
            if replies:
                self.preload(replies[0][2])

    def reopen(self, k):
        self.open[k], self.granted[k] = True, min(self.granted[k], self.count(k)[0])
        self.replies[k] += [(*reply[:2], 0) for reply in self.replies[k][-1:]]  # what it stores is not yet known

    def grant(self):
        """Give one item at a time to all shards with the least unused credit, while there is enough for all of them."""
        members = [k for k, s in enumerate(self.replies) if s and self.open[k]]
        unused = {k: max(0, self.granted[k] - self.count(k)[0]) for k in members}
        free = self.limiter.insert_allowance(*self.sums()) - sum(unused.values())
        while members and free >= len(least := [k for k in members if unused[k] == min(unused.values())]):
            for k in least:
                unused[k] += 1
            free -= len(least)
        for k in members:
            self.granted[k] = max(self.granted[k], self.count(k)[0] + unused[k])


class Simulation:
    """Shards, writers that respect their credit, and a learner that respects the limiter."""

    def __init__(self, seed, shards):
        self.draw = random.Random(seed)
        self.shards = shards
        self.ledger = CreditLedger(self.random_limiter())
        self.reference = ReferenceLedger(self.ledger.limiter, 0)
        self.accounts, self.own, self.credit, self.requested = [], [], [], 0
        for _ in range(shards):
            self.join()

    def random_limiter(self):
        sigma, min_size = float(self.draw.choice([0.1, 0.25, 1, 1.6, 4])), self.draw.choice([1, 20, 60])
        needed = (sigma * 6 * 2 * self.shards + BATCH) / 2  # joins double the shards at most
        return RateLimiter(LimiterConfig(sigma, min_size, needed + self.draw.randrange(30)), 6, BATCH, 2 * self.shards)

    def members(self):
        return [k for k, account in enumerate(self.accounts) if account.is_open]

    def join(self):
        """Add a shard that is new, or one with counts and content from another sampler."""
        self.accounts.append(self.ledger.open_account())
        old = [self.draw.randrange(200), self.draw.randrange(200), self.draw.choice([3, 15, 100])]
        self.own.append(self.draw.choice([[0, 0, 0], old]))
        self.credit.append(0)
        for values, new in ((self.reference.replies, []), (self.reference.granted, 0), (self.reference.open, True)):
            values.append(new)

    def leave(self, k):
        self.accounts[k].close()
        self.reference.open[k] = False

    def come_back(self, k):
        """A shard that was gone answers again, after a restart or not; its segments were moved, its credit is old."""
        self.accounts[k].reopen()
        self.reference.reopen(k)
        if self.draw.random() < 0.5:
            self.restart(k)

    def restart(self, k):
        """Restart a shard, empty or with earlier counts."""
        self.accounts[k].mark_unreachable()
        part = self.draw.choice([0.0, 0.5, 1.0])
        self.own[k], self.credit[k] = [int(x * part) for x in self.own[k]], 0

    def change_limiter(self):
        limiter = self.random_limiter()
        self.ledger.change_limiter(limiter)
        self.reference.change_limiter(limiter)

    def exchange(self):
        """Send each shard its credit, record its reply, and compare the sums with the reference."""
        self.ledger.grant()
        self.reference.grant()
        for k in self.members():
            self.credit[k] = self.accounts[k].credit()
            self.accounts[k].record(*self.own[k])
            self.reference.record(k, tuple(self.own[k]))
            assert self.ledger.totals() == self.reference.sums()
        assert [a.granted for a in self.accounts] == self.reference.granted
        counts = [self.reference.count(k) for k in range(len(self.own))]
        assert [(a.inserted, a.sampled) for a in self.accounts] == counts

    def act(self):
        """Let every writer insert and the learner sample, if they may; returns whether anybody did."""
        moved = False
        items = self.draw.randint(1, 6)
        for k in self.members():
            if self.own[k][0] + items <= self.credit[k]:
                self.own[k][0] += items
                self.own[k][2] += items
                moved = True
        totals, full = self.ledger.totals(), [k for k in self.members() if self.own[k][2]]
        if full and self.ledger.batches_allowed(totals, 0, 1):
            self.own[self.draw.choice(full)][1] += BATCH
            moved = True
        return moved


@pytest.mark.parametrize("shards", [1, 2, 3, 5])
@pytest.mark.parametrize("seed", range(4))
def test_the_ledger_equals_its_reference_and_never_stalls(seed, shards):
    simulation = Simulation(seed, shards)
    idle = 0
    for _ in range(200):
        event = simulation.draw.random()
        members = simulation.members()
        if event < 0.02 and len(members) < 2 * shards:
            simulation.join()
        elif event < 0.04 and len(members) > 1:
            simulation.leave(simulation.draw.choice(members))
        elif event < 0.06 and len(members) < min(2 * shards, len(simulation.accounts)):
            simulation.come_back(simulation.draw.choice(sorted({*range(len(simulation.accounts))} - {*members})))
        elif event < 0.08:
            simulation.restart(simulation.draw.choice(members))
        elif event < 0.09:
            simulation.change_limiter()
        simulation.exchange()
        idle = 0 if simulation.act() else idle + 1
        assert idle < 6, f"stalled: {simulation.ledger.blocked_reason()}"


@pytest.mark.parametrize("shards", [2, 4])
def test_credit_never_falls_and_stays_within_the_allowance(shards):
    ledger, accounts = ledger_of(shards, sigma=1.0, min_size=40, slack=60.0)
    draw, own = random.Random(shards), [0] * shards
    for account in accounts:
        account.record(0, 0, 0)
    before, sampled = [0] * shards, 0
    for _ in range(300):
        totals = ledger.totals()
        ledger.grant()
        granted = [a.granted for a in accounts]
        assert all(now >= was for now, was in zip(granted, before, strict=True))
        if totals.stored >= 40:
            most = max(sum(before), ledger.limiter.insert_allowance(*totals) + sum(own))
            assert sum(granted) <= most
        before = granted
        k = draw.randrange(shards)
        own[k] += draw.randint(0, granted[k] - own[k])
        sampled += BATCH * ledger.batches_allowed(totals, 0, 1)
        for j, account in enumerate(accounts):
            account.record(own[j], sampled if j == 0 else 0, own[j])
    assert sampled > 20 * BATCH
