"""Segments are stored exactly once when shards are killed, acknowledgements are lost, or sequences repeat."""

from __future__ import annotations

import random
import threading
import time

import grpc
import numpy as np
import pytest

from protos import replay_pb2 as pb
from replay.wire.writer import Writer
from tests.conftest import make_message, make_segment
from tests.integration.flaky_proxy import FlakyProxy
from tests.integration.shards import shards_fixture, wait_for  # noqa: F401

LARGE = ("--capacity", 200_000)  # nothing is evicted
STEP = 10  # difference between the marks of successive segments


def stored(shard):
    """(writer, mark) of each segment of a shard, oldest first; the shard keeps them."""
    reply = shard.stub.Drain(pb.DrainRequest(taken=0, segments=100_000), timeout=20.0)
    assert reply.left == 0
    return [(r.origin, int(np.frombuffer(r.segment.frames, "<f4")[0])) for r in reply.segments]


class MarkingWriter:
    """A `Writer` in a thread of its own; its segments have marks that count up from ``first_mark`` in steps of STEP.

        writer = MarkingWriter(addresses, first_mark=1)
        writer.start()
        writer.finish()  # then its marks are in `written`

    It waits ``pause`` seconds after each segment.
    """

    def __init__(self, addresses, first_mark, pause=0.0, give_up_after=60.0):
        self.writer = Writer(addresses, give_up_after)
        self.written = []  # marks of the segments written so far
        self._mark, self._pause, self._stop, self._fault = first_mark, pause, threading.Event(), None
        self._limit = None  # segments
        self._rng = np.random.default_rng(first_mark)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self):
        try:
            while not self._stop.is_set() and (self._limit is None or len(self.written) < self._limit):
                self.writer.write(make_segment(self._rng, mark=self._mark))
                self.written.append(self._mark)
                self._mark += STEP
                self._stop.wait(self._pause)
        except Exception as fault:
            self._fault = fault

    def start(self, segments=None):
        """Start to write: ``segments`` segments, or without a limit until `finish`."""
        self._limit = segments
        self._thread.start()

    def in_flight(self):
        """The marks of the segments that are not acknowledged yet, a set."""
        with self.writer._changed:
            queued = [request.segment.frames for stream in self.writer._streams for request in stream.queue]
        return {int(np.frombuffer(frames, "<f4")[0]) for frames in queued}

    def has_lost_stream(self, address):
        """Whether the stream to a killed shard has ended, so that no more acknowledgements arrive from it."""
        with self.writer._changed:
            return all(
                x.connection.last_error != "no error" for x in self.writer._streams if x.connection.address == address
            )

    def finish(self, stop=True):
        """Wait until all segments are acknowledged; ``stop`` ends the writing first. Fails if writing did."""
        if stop:
            self._stop.set()
        self._thread.join(600.0)
        assert self._fault is None, self._fault
        self.writer.flush(60.0)
        self.writer.close()


@pytest.fixture(name="start_writers")
def start_writers_fixture():
    """``start_writers(addresses)`` starts three writers that write to all addresses; returns them."""
    made = []

    def start(addresses, segments=None, pause=0.0):
        made.extend(MarkingWriter(addresses, 1 + 1_000_000 * k, pause) for k in range(3))
        for writer in made:
            writer.start(segments)
        return made

    yield start
    for writer in made:
        writer.writer.close()


@pytest.fixture(name="proxies")
def proxies_fixture():
    """``proxies(shards, seed)`` starts a `FlakyProxy` in front of each shard; returns them."""
    made = []

    def start(shards, seed, **kwargs):
        made.extend(FlakyProxy(shard.port, seed + k, **kwargs) for k, shard in enumerate(shards))
        return made

    yield start
    for proxy in made:
        proxy.stop()


def holds_items(shard):
    """A condition for `wait_for`: the shard holds items."""
    return lambda: shard.counts().stored > 0


def assert_in_order(contents):
    """Within each shard, each writer's segments are in the order in which they were written."""
    for content in contents:
        for origin in {origin for origin, _ in content}:
            own = [mark for o, mark in content if o == origin]
            assert own == sorted(own)


@pytest.mark.parametrize(
    ("segments", "seed"),
    [(120, 0), *[pytest.param(3000, k, marks=[pytest.mark.slow, pytest.mark.timeout(1000)]) for k in range(1, 6)]],
)
def test_with_dropped_acknowledgements_every_segment_is_stored_exactly_once(
    shards, start_writers, proxies, segments, seed
):
    two = shards(2, *LARGE)
    network = proxies(two, seed)
    writers = start_writers([p.address for p in network], segments)
    for writer in writers:
        writer.finish(stop=False)
    contents = [stored(shard) for shard in two]
    assert sorted(mark for content in contents for _, mark in content) == [
        m for writer in writers for m in writer.written
    ]
    assert [len(writer.written) for writer in writers] == [segments] * 3
    assert_in_order(contents)
    assert sum(p.dropped_bytes for p in network) > 0, "no acknowledgement was dropped"
    assert sum(sum(p.faults.values()) for p in network) > segments / 20


@pytest.mark.parametrize(
    ("kills", "seed"),
    [(1, 10), pytest.param(25, 11, marks=[pytest.mark.slow, pytest.mark.timeout(1000)])],
)
@pytest.mark.parametrize("snapshots", [False, True])
def test_a_killed_shard_loses_only_what_it_acknowledged_after_its_snapshot(
    shards, start_writers, proxies, tmp_path, snapshots, kills, seed
):
    """A shard is killed and restarted on its port, while three writers continue over connections that break.

    Nothing is stored twice. What the snapshot held, what was in flight, and what was written afterwards is stored.
    """
    where = ("--snapshots", tmp_path / "snapshots") if snapshots else ()
    (stays,), (dies,) = shards(1, *LARGE), shards(1, *LARGE, *where)
    network = proxies([stays, dies], seed)
    writers = start_writers([p.address for p in network], pause=0.002)
    safe = set()
    for _ in range(kills):
        wait_for(holds_items(dies), 20.0)
        time.sleep(0.5)
        held = {mark for _, mark in stored(dies)} if snapshots else set()
        if snapshots:
            dies.stub.Snapshot(pb.SnapshotRequest(), timeout=20.0)
            time.sleep(0.3)
        dies.kill()
        before = {mark for writer in writers for mark in list(writer.written)}
        wait_for(lambda: all(writer.has_lost_stream(network[1].address) for writer in writers))
        safe = held | set().union(*(writer.in_flight() for writer in writers))
        (dies,) = shards(1, *LARGE, *where, port=dies.port)
        assert held <= {mark for _, mark in stored(dies)}
    wait_for(holds_items(dies), 20.0)
    for writer in writers:
        writer.finish()
    contents = [stored(shard) for shard in (stays, dies)]
    found = [mark for content in contents for _, mark in content]
    written = {mark for writer in writers for mark in writer.written}
    assert len(found) == len(set(found)), "a segment is stored twice"
    assert set(found) <= written
    assert safe <= set(found), "a segment is lost that was in the snapshot or was not acknowledged"
    assert written - set(found) <= before, "a segment is lost that was written after the kill"
    assert_in_order(contents)


def test_a_segment_in_a_snapshot_whose_acknowledgement_was_lost_is_not_stored_again(shards, proxies, tmp_path, rng):
    (shard,) = shards(1, *LARGE, "--snapshots", tmp_path)
    (proxy,) = proxies([shard], 0, fault_after=(10**9, 10**9))
    writer = Writer([proxy.address])
    for k in range(5):
        writer.write(make_segment(rng, mark=k))
    writer.flush(10.0)
    time.sleep(0.2)
    proxy.drop_all_replies = True
    for k in range(5, 8):
        writer.write(make_segment(rng, mark=k))
    wait_for(lambda: shard.counts().inserted == 8 * 4)
    assert writer.in_flight == 3
    shard.stub.Snapshot(pb.SnapshotRequest(), timeout=20.0)
    shard.kill()
    proxy.drop_all_replies = False
    (again,) = shards(1, *LARGE, "--snapshots", tmp_path, port=shard.port)
    writer.write(make_segment(rng, mark=8))
    writer.flush(20.0)
    assert [mark for _, mark in stored(again)] == list(range(9))
    writer.close()


def send(shard, writer, sequences):
    """Insert these sequences on one stream; returns (the acknowledgements, the error that ended it or None)."""
    rng = np.random.default_rng(0)
    requests = (pb.InsertRequest(writer=writer, sequence=s, segment=make_message(rng, mark=s)) for s in sequences)
    acknowledged = []
    try:
        for reply in shard.stub.Insert(requests, timeout=20.0):
            acknowledged.append(reply.acknowledged)
    except grpc.RpcError as error:
        return acknowledged, error
    return acknowledged, None


def test_duplicated_and_reordered_sequences_are_stored_once_and_in_order(shards):
    """Random sequences: the next one is stored, an earlier one is acknowledged again, one that skips is rejected."""
    (shard,) = shards(1, *LARGE)
    r, last = random.Random(3), 0
    for _ in range(100):
        sequences = list(range(max(1, last - 3), last + r.randint(1, 6)))
        for _ in range(r.randint(0, 3)):
            at = r.randrange(len(sequences))
            sequences.insert(r.randint(0, len(sequences)), sequences[at])
        if r.random() < 0.5:
            r.shuffle(sequences)
        expected, gap = [], None
        for sequence in sequences:
            if sequence > last + 1:
                gap = sequence
                break
            last = max(last, sequence)
            expected.append(last)
        acknowledged, error = send(shard, "w", sequences)
        assert acknowledged == expected
        if gap is None:
            assert error is None
        else:
            assert error.code() == grpc.StatusCode.FAILED_PRECONDITION
            assert f"sent sequence {gap} after {last}: continue under a new name" in error.details()
    assert stored(shard) == [("w", k) for k in range(1, last + 1)]


def test_segments_of_one_writer_on_several_streams_are_stored_once(shards):
    """As when the shard has not yet noticed that an old stream of the writer is broken."""
    (shard,) = shards(1, *LARGE)
    threads, errors = [], []
    for _ in range(6):
        threads.append(threading.Thread(target=lambda: errors.append(send(shard, "w", range(1, 101))[1])))
        threads[-1].start()
    for thread in threads:
        thread.join(30.0)
    assert errors == [None] * 6
    assert stored(shard) == [("w", k) for k in range(1, 101)]


def test_a_writer_tells_which_segments_each_shard_has_acknowledged(shards, rng):
    running, told = shards(2, *LARGE), []
    writer = Writer([s.address for s in running], on_stored=lambda *what: told.append(what))
    for k in range(20):
        writer.write(make_segment(rng, episode=k))
    writer.flush(30.0)
    assert sorted(segment.episode_id for _, segment, _ in told) == list(range(20))
    assert {origin for origin, _, _ in told} == {writer.name}
    for shard in running:
        assert sum(s.items for _, s, address in told if address == shard.address) == shard.counts().inserted
    writer.close()
