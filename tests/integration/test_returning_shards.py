"""Shards that were counted as gone and answer again, or lose their content, while a writer and a sampler go on.

The limiter has the smallest slack that is valid.
"""

from __future__ import annotations

import signal
import time

import pytest

from protos import replay_pb2 as pb
from replay.rate_limiter import LimiterConfig
from replay.wire import connection
from replay.wire.writer import WINDOW, Writer
from rl.errors import RunFault
from tests.conftest import make_segment
from tests.integration.shards import sampler, shards_fixture, wait_for  # noqa: F401
from tests.integration.test_delivery import MarkingWriter, stored

SIGMA, MIN_SIZE, BATCH, ITEMS = 2.0, 100, 16, 4
GIVE_UP = 1.0  # seconds
LARGE = ("--limited", "--capacity", 200_000)  # nothing is evicted


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Notice after 1 s instead of 30 s that a process is frozen, and call it again after half a second."""
    fast = {"grpc.keepalive_time_ms": 500, "grpc.keepalive_timeout_ms": 500, "grpc.min_reconnect_backoff_ms": 500}
    fast |= {"grpc.http2.ping_timeout_ms": 500}
    monkeypatch.setattr(connection, "CHANNEL_OPTIONS", [*(dict(connection.CHANNEL_OPTIONS) | fast).items()])
    monkeypatch.setattr(connection, "RETRY_GONE", 0.5)


class Traffic:
    """A writer in a thread of its own and a sampler, on limited shards.

        traffic = Traffic(two, give_up_after=1.0)
        traffic.run_until(condition)  # samples and writes meanwhile
        traffic.stop()  # then the counts of shards and ledger no longer change

    ``drawn`` has for each stream the number of items drawn from it.
    """

    def __init__(self, shards, give_up_after):
        slack = (SIGMA * ITEMS * len(shards) + BATCH) / 2
        self.source = sampler(
            shards,
            LimiterConfig(SIGMA, MIN_SIZE, slack),
            batch=BATCH,
            max_insert=ITEMS,
            give_up_after=give_up_after,
        )
        self.marking = MarkingWriter([s.address for s in shards], 0, pause=0.002, give_up_after=give_up_after)
        self.marking.start()
        self.drawn = [0] * len(shards)
        self.accounts = [stream.account for stream in self.source._streams]

    def run_until(self, condition, what, seconds=20.0):
        """Sample until ``condition()``; fails after ``seconds``, with ``what`` and the states of writer and limiter."""
        deadline = time.monotonic() + seconds
        while not condition():
            batch = self.source.sample(0.2)
            for k in range(len(self.drawn)) if batch is not None else ():
                self.drawn[k] += int((batch.shards == k).sum())
            if time.monotonic() > deadline:
                writer = self.marking.writer._describe_streams()
                pytest.fail(f"no {what} after {seconds} s: {self.source.blocked_reason()}; {writer}")

    def run_on(self, *indices, items=20 * BATCH):
        """Run until this number of items is drawn from, and accepted by, each of these shards."""
        drawn, inserted = list(self.drawn), [account.inserted for account in self.accounts]

        def done():
            return all(
                self.drawn[k] >= drawn[k] + items and self.accounts[k].inserted >= inserted[k] + items // 4
                for k in indices
            )

        self.run_until(done, f"draws from and inserts into the shards {indices}")

    def run_until_gone(self, index, gone=True):
        """Run until both writer and sampler count the shard as gone, or with ``gone`` False until neither does."""
        address = self.source._streams[index].connection.address

        def done():
            clients = self.source._streams, self.marking.writer._streams
            found = [s.connection.is_gone for streams in clients for s in streams if s.connection.address == address]
            assert len(found) == 2
            return found == [gone] * 2

        self.run_until(done, f"agreement that the shard is {'gone' if gone else 'alive'}")
        assert self.source.stats()["shards_gone"] == gone

    def stop(self):
        """Let the writer deliver what it has, while the sampler grants credit; then fetch the last counts."""
        self.marking._stop.set()
        self.run_until(lambda: not self.marking._thread.is_alive(), "end of the writer")
        assert self.marking._fault is None, self.marking._fault

        def is_delivered():
            try:
                self.marking.writer.flush(0.01)
            except TimeoutError:
                return False
            return True

        self.run_until(is_delivered, "delivery")
        self.marking.finish()
        while self.source.sample(0.5) is not None:
            pass
        for _ in range(2):
            self.source._poll_counts()

    def check_ratio(self):
        """The limiter is within its bounds, and does not owe more samples than it has to."""
        limiter, totals = self.source._ledger.limiter, self.source._ledger.totals()
        d = limiter.diff(totals.inserted, totals.sampled)
        assert limiter.min_diff <= d < limiter.min_diff + BATCH  # `stop` has sampled all that is allowed

    def close(self):
        self.marking.writer.close()
        self.source.close()


@pytest.fixture(name="traffic")
def traffic_fixture():
    """``traffic(shards, give_up_after)`` starts a `Traffic`, which is closed after the test."""
    made = []

    def start(shards, give_up_after=GIVE_UP):
        made.append(Traffic(shards, give_up_after))
        return made[-1]

    yield start
    for each in made:
        each.close()


def test_a_frozen_shard_is_taken_back_each_time_it_answers_again(shards, traffic):
    two = shards(2, *LARGE)
    run = traffic(two)
    run.run_on(0, 1)
    for _ in range(2):
        two[1].process.send_signal(signal.SIGSTOP)
        run.run_until_gone(1)
        run.run_on(0)
        two[1].process.send_signal(signal.SIGCONT)
        run.run_until_gone(1, gone=False)
        run.run_on(0, 1)
    assert len(run.source._streams) == 2
    run.stop()
    counts, totals = [s.counts() for s in two], run.source._ledger.totals()
    assert totals == (sum(c.inserted for c in counts), sum(c.sampled for c in counts), sum(c.stored for c in counts))
    assert (run.source.stats()["inserted"], run.source.stats()["sampled"]) == totals[:2]
    run.check_ratio()
    found = [mark for shard in two for _, mark in stored(shard)]
    assert set(found) == set(run.marking.written)
    assert len(found) - len(set(found)) <= 2 * WINDOW, "more is stored twice than was in flight to the frozen shard"


@pytest.mark.parametrize("snapshot", [False, True], ids=["empty", "from a snapshot"])
def test_a_shard_that_is_restarted_after_it_was_given_up_is_taken_back(shards, traffic, tmp_path, snapshot):
    where = ("--snapshots", tmp_path) if snapshot else ()
    (stays,), (dies,) = shards(1, *LARGE), shards(1, *LARGE, *where)
    run = traffic([stays, dies])
    run.run_on(0, 1)
    if snapshot:
        dies.stub.Snapshot(pb.SnapshotRequest(), timeout=10.0)
        run.run_on(0, 1)
    dies.kill()
    run.run_until_gone(1)
    run.run_on(0)
    before = run.accounts[1].inserted
    (again,) = shards(1, *LARGE, *where, port=dies.port)
    restored = again.counts().inserted
    assert (restored > 0) == snapshot
    run.run_until_gone(1, gone=False)
    run.run_on(0, 1)
    run.stop()
    counts = [stays.counts(), again.counts()]
    assert run.source._ledger.totals().inserted == counts[0].inserted + before + counts[1].inserted - restored
    assert run.source._ledger.totals().stored == sum(c.stored for c in counts)
    assert run.source.stats()["inserted"] == sum(c.inserted for c in counts)
    run.check_ratio()
    found = [mark for shard in (stays, again) for _, mark in stored(shard)]
    assert len(found) == len(set(found)), "a segment is stored twice"


@pytest.mark.parametrize("snapshot", [False, True], ids=["empty", "from a snapshot"])
@pytest.mark.parametrize("others", [0, 1])
def test_a_run_continues_with_a_shard_that_restarts_before_it_is_given_up(shards, traffic, tmp_path, others, snapshot):
    """Replay may hold less than min_size then: the writer fills it, and sampling goes on. Nothing in flight is lost."""
    where = ("--snapshots", tmp_path) if snapshot else ()
    members = [*shards(1, *LARGE, *where), *shards(others, *LARGE)]
    run = traffic(members, give_up_after=60.0)
    run.run_on(*range(others + 1), items=5 * BATCH)
    if snapshot:  # of less than min_size
        members[0].stub.Snapshot(pb.SnapshotRequest(), timeout=10.0)
        run.run_on(*range(others + 1))
    members[0].kill()
    run.run_until(lambda: run.marking.has_lost_stream(members[0].address), "broken stream")
    in_flight = run.marking.in_flight()
    assert in_flight
    (again,) = shards(1, *LARGE, *where, port=members[0].port)
    restored = again.counts().inserted
    assert (restored > 0) == snapshot
    before = run.accounts[0].inserted
    run.run_on(*range(others + 1))
    run.stop()
    members[0] = again
    counts = [s.counts() for s in members]
    expected = before + counts[0].inserted - restored + sum(c.inserted for c in counts[1:])
    assert run.source._ledger.totals().inserted == expected
    assert run.source._ledger.totals().stored == sum(c.stored for c in counts)
    run.check_ratio()
    found = [mark for shard in members for _, mark in stored(shard)]
    assert len(found) == len(set(found)), "a segment is stored twice"
    assert in_flight <= set(found), "a segment in flight is lost"


def test_segments_that_no_other_shard_could_take_are_stored_once_when_the_shard_answers_again(shards, rng):
    """The frozen shard finds them in its old connection, and gets them again on the new one."""
    (shard,) = shards(1)
    writer = Writer([shard.address], give_up_after=0.5)
    writer.write(make_segment(rng, mark=0))
    writer.flush(10.0)
    shard.process.send_signal(signal.SIGSTOP)
    for mark in (10, 20, 30):
        writer.write(make_segment(rng, mark=mark))
    stream = writer._streams[0]
    wait_for(lambda: stream.connection.is_gone)
    with pytest.raises(RunFault, match="no replay shard"):
        writer.write(make_segment(rng, mark=40))
    shard.process.send_signal(signal.SIGCONT)
    wait_for(lambda: not stream.connection.is_gone)
    writer.flush(10.0)
    assert [mark for _, mark in stored(shard)] == [0, 10, 20, 30]
    writer.close()
