"""Kill, restart, duplicate, reorder, drop acknowledgements: what a writer was given is stored, and stored once."""

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

ROOM = ("--capacity", 200_000)  # nothing is evicted
STEP = 10  # between the marks of two segments


def stored(shard):
    """(who wrote it, its mark) of each segment of a shard, oldest first; nothing is forgotten."""
    reply = shard.stub.Drain(pb.DrainRequest(taken=0, segments=100_000), timeout=20.0)
    assert reply.left == 0
    return [(r.origin, int(np.frombuffer(r.segment.frames, "<f4")[0])) for r in reply.segments]


class Pen:
    """A writer in a thread of its own, that marks what it writes; what is written comes at most ``pause`` s apart."""

    def __init__(self, addresses, first_mark, pause=0.0):
        self.writer = Writer(addresses, give_up_after=60.0)
        self.written = []  # marks
        self._mark, self._pause, self._stop, self._fault = first_mark, pause, threading.Event(), None
        self._enough = None
        self._rng = np.random.default_rng(first_mark)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self):
        try:
            while not self._stop.is_set() and (self._enough is None or len(self.written) < self._enough):
                self.writer.write(make_segment(self._rng, mark=self._mark))
                self.written.append(self._mark)
                self._mark += STEP
                self._stop.wait(self._pause)
        except Exception as fault:
            self._fault = fault

    def start(self, segments=None):
        self._enough = segments
        self._thread.start()

    def in_flight(self):
        with self.writer._changed:
            queued = [request.segment.frames for stream in self.writer._streams for request in stream.queue]
        return {int(np.frombuffer(frames, "<f4")[0]) for frames in queued}

    def has_heard_all(self, address):
        """Whether the stream to a shard that is dead has ended, and with it the acknowledgements."""
        with self.writer._changed:
            return all(
                x.connection.last_error != "no error" for x in self.writer._streams if x.connection.address == address
            )

    def finish(self, stop=True):
        if stop:
            self._stop.set()
        self._thread.join(600.0)
        assert self._fault is None, self._fault
        self.writer.flush(60.0)
        self.writer.close()


@pytest.fixture(name="pens")
def pens_fixture():
    """Three writers, each to all the addresses."""
    made = []

    def start(addresses, segments=None, pause=0.0):
        made.extend(Pen(addresses, 1 + 1_000_000 * k, pause) for k in range(3))
        for pen in made:
            pen.start(segments)
        return made

    yield start
    for pen in made:
        pen.writer.close()


@pytest.fixture(name="proxies")
def proxies_fixture():
    made = []

    def start(shards, seed, **kwargs):
        made.extend(FlakyProxy(shard.port, seed + k, **kwargs) for k, shard in enumerate(shards))
        return made

    yield start
    for proxy in made:
        proxy.stop()


def holds_some(shard):
    return lambda: shard.counts().stored > 0


def assert_in_order(contents):
    """Each writer's segments stand in each shard in the order in which they were written."""
    for content in contents:
        for origin in {origin for origin, _ in content}:
            own = [mark for o, mark in content if o == origin]
            assert own == sorted(own)


@pytest.mark.parametrize(
    ("segments", "seed"),
    [(120, 0), *[pytest.param(3000, k, marks=[pytest.mark.slow, pytest.mark.timeout(1000)]) for k in range(1, 6)]],
)
def test_where_acknowledgements_are_dropped_nothing_is_lost_and_nothing_is_there_twice(
    shards, pens, proxies, segments, seed
):
    two = shards(2, *ROOM)
    network = proxies(two, seed)
    writers = pens([p.address for p in network], segments)
    for pen in writers:
        pen.finish(stop=False)
    contents = [stored(shard) for shard in two]
    assert sorted(mark for content in contents for _, mark in content) == [m for pen in writers for m in pen.written]
    assert [len(pen.written) for pen in writers] == [segments] * 3
    assert_in_order(contents)
    assert sum(p.swallowed for p in network) > 0, "no acknowledgement was dropped"
    assert sum(sum(p.befell.values()) for p in network) > segments / 20


@pytest.mark.parametrize(
    ("kills", "seed"),
    [(1, 10), pytest.param(25, 11, marks=[pytest.mark.slow, pytest.mark.timeout(1000)])],
)
@pytest.mark.parametrize("snapshots", [False, True])
def test_what_a_killed_shard_loses_was_acknowledged_after_its_snapshot(
    shards, pens, proxies, tmp_path, snapshots, kills, seed
):
    """Killed with SIGKILL and restarted on its port while three writers go on over connections that break.

    Nothing is there twice; what the snapshot held, what was in flight and what was written afterwards is there.
    """
    where = ("--snapshots", tmp_path / "snapshots") if snapshots else ()
    (stays,), (dies,) = shards(1, *ROOM), shards(1, *ROOM, *where)
    network = proxies([stays, dies], seed)
    writers = pens([p.address for p in network], pause=0.002)
    safe = set()
    for _ in range(kills):
        wait_for(holds_some(dies), 20.0)
        time.sleep(0.5)
        held = {mark for _, mark in stored(dies)} if snapshots else set()
        if snapshots:
            dies.stub.Snapshot(pb.SnapshotRequest(), timeout=20.0)
            time.sleep(0.3)
        dies.kill()
        before = {mark for pen in writers for mark in list(pen.written)}
        wait_for(lambda: all(pen.has_heard_all(network[1].address) for pen in writers))
        safe = held | set().union(*(pen.in_flight() for pen in writers))
        (dies,) = shards(1, *ROOM, *where, port=dies.port)
        assert held <= {mark for _, mark in stored(dies)}
    wait_for(holds_some(dies), 20.0)
    for pen in writers:
        pen.finish()
    contents = [stored(shard) for shard in (stays, dies)]
    found = [mark for content in contents for _, mark in content]
    written = {mark for pen in writers for mark in pen.written}
    assert len(found) == len(set(found)), "something is there twice"
    assert set(found) <= written
    assert safe <= set(found), "something is lost that was in the snapshot, or never acknowledged"
    assert written - set(found) <= before, "something is lost that was written after the kill"
    assert_in_order(contents)


def test_what_a_snapshot_holds_and_nobody_heard_acknowledged_is_not_stored_again(shards, proxies, tmp_path, rng):
    (shard,) = shards(1, *ROOM, "--snapshots", tmp_path)
    (proxy,) = proxies([shard], 0, calm=(10**9, 10**9))
    writer = Writer([proxy.address])
    for k in range(5):
        writer.write(make_segment(rng, mark=k))
    writer.flush(10.0)
    time.sleep(0.2)
    proxy.deaf = True
    for k in range(5, 8):
        writer.write(make_segment(rng, mark=k))
    wait_for(lambda: shard.counts().inserted == 8 * 4)
    assert writer.in_flight == 3
    shard.stub.Snapshot(pb.SnapshotRequest(), timeout=20.0)
    shard.kill()
    proxy.deaf = False
    (again,) = shards(1, *ROOM, "--snapshots", tmp_path, port=shard.port)
    writer.write(make_segment(rng, mark=8))
    writer.flush(20.0)
    assert [mark for _, mark in stored(again)] == list(range(9))
    writer.close()


def send(shard, writer, sequences):
    """What the shard acknowledges on one stream, and the error that ends it."""
    rng = np.random.default_rng(0)
    requests = (pb.InsertRequest(writer=writer, sequence=s, segment=make_message(rng, mark=s)) for s in sequences)
    heard = []
    try:
        for reply in shard.stub.Insert(requests, timeout=20.0):
            heard.append(reply.acknowledged)
    except grpc.RpcError as error:
        return heard, error
    return heard, None


def test_duplicated_and_reordered_sequences_are_stored_once_and_in_order(shards):
    """Streams of any sequences: each is stored when it is next, acknowledged again when it was, else refused."""
    (shard,) = shards(1, *ROOM)
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
        heard, error = send(shard, "w", sequences)
        assert heard == expected
        if gap is None:
            assert error is None
        else:
            assert error.code() == grpc.StatusCode.FAILED_PRECONDITION
            assert f"sent sequence {gap} after {last}: resend from {last + 1}" in error.details()
    assert stored(shard) == [("w", k) for k in range(1, last + 1)]


def test_old_streams_of_a_writer_that_linger_do_no_harm(shards):
    """One writer's segments come down several streams at once, as when a broken one was not yet noticed."""
    (shard,) = shards(1, *ROOM)
    threads, errors = [], []
    for _ in range(6):
        threads.append(threading.Thread(target=lambda: errors.append(send(shard, "w", range(1, 101))[1])))
        threads[-1].start()
    for thread in threads:
        thread.join(30.0)
    assert errors == [None] * 6
    assert stored(shard) == [("w", k) for k in range(1, 101)]
