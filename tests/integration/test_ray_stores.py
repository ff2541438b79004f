"""Weight store and board on Ray: a slow store blocks no client, no target sync is lost, a silent board is an error."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import ray

from qfleet.cluster import board
from qfleet.cluster.board import RemoteBoard, RunBoard
from qfleet.cluster.weights import RayWeightSink, RayWeightSource, WeightStore
from rl.errors import RunFault, Unreachable
from rl.ports import Publication


class SlowStore(WeightStore):
    def sleep(self, seconds):
        time.sleep(seconds)


@pytest.fixture(scope="module", autouse=True)
def local_ray():
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def publication(version, target_version=0, target=None):
    weights = {"w": np.full(3, version, np.float32)}
    return Publication(version, 10 * version, weights, target_version, target)


def test_a_slow_store_does_not_block_the_learner_and_target_weights_are_sent_later():
    store = ray.remote(SlowStore).remote()
    sink, source = RayWeightSink(lambda: store), RayWeightSource(lambda: store)
    sink.publish(publication(1, 0, {"w": np.zeros(3, np.float32)}))
    assert source.wait(30.0).version == 1
    asleep = store.sleep.remote(2.0)
    began = time.monotonic()
    for version in (2, 3, 4):
        sink.publish(publication(version))
    sink.publish(publication(5, 1, {"w": np.full(3, 7, np.float32)}))  # held back, because two are on their way
    sink.publish(publication(6, 1))
    assert time.monotonic() - began < 1.0
    ray.get(asleep)
    time.sleep(0.5)
    assert source.wait(10.0).version == 3
    sink.publish(publication(7, 1))
    ray.get(store.newer_than.remote(99, 0))  # the store answers calls in order
    got = source.wait(10.0)
    assert (got.version, got.target_version) == (7, 1)
    np.testing.assert_array_equal(got.target_weights["w"], 7)
    assert source.stats() == {"publications": 3, "target_syncs": 2, "bytes_received": (3 + 2) * 3 * 4}


def test_a_store_that_accepts_no_weights_is_an_error():
    store = ray.remote(SlowStore).remote()
    sink = RayWeightSink(lambda: store, timeout=0.2)
    store.sleep.remote(3.0)
    for version in (1, 2, 3):
        sink.publish(publication(version))
    time.sleep(0.4)
    with pytest.raises(Unreachable, match=r"^the weight store has accepted no weights for 0.2 s$"):
        sink.publish(publication(4))


def test_a_new_reader_gets_the_latest_publication_at_its_first_poll():
    store = ray.remote(SlowStore).remote()
    RayWeightSink(lambda: store).publish(publication(7, 3, {"w": np.full(3, 5, np.float32)}))
    source = RayWeightSource(lambda: store)
    source.await_first(30.0)
    got = source.poll()
    assert (got.version, got.target_version) == (7, 3)
    np.testing.assert_array_equal(got.weights["w"], 7)
    np.testing.assert_array_equal(got.target_weights["w"], 5)


def test_a_learner_that_never_publishes_is_an_error():
    store = ray.remote(SlowStore).remote()
    source = RayWeightSource(lambda: store)
    with pytest.raises(Unreachable, match=r"no weights within 0.5 s"):
        source.await_first(0.5)


def test_a_store_that_does_not_answer_is_a_fault():
    store = ray.remote(SlowStore).remote()
    asleep = store.sleep.remote(2.0)
    with pytest.raises(RunFault, match=r"^the weight store has not answered for 0.2 s$"):
        RayWeightSource(lambda: store).wait(0.2)
    ray.get(asleep)


def test_a_process_of_no_run_has_no_board():
    with pytest.raises(RunFault, match="^the run's board is gone"):
        RemoteBoard.here()


class LossyStore(WeightStore):
    def replace(self, refs):
        """Let ``refs`` be the newest weights."""
        [self._online] = refs


class Owner:
    def put(self):
        return [ray.put({"w": np.zeros(300_000, np.float32)})]  # too large for Ray to pass it along with its reference


@pytest.mark.timeout(120)
def test_weights_that_ray_has_lost_are_asked_for_again():
    store, owner = ray.remote(LossyStore).options(num_cpus=0).remote(), ray.remote(Owner).options(num_cpus=0).remote()
    sink, source = RayWeightSink(lambda: store), RayWeightSource(lambda: store)
    sink.publish(publication(1))
    ray.get(store.replace.remote(owner.put.remote()))
    ray.kill(owner)  # and with it the weights of version 1, soon
    deadline = time.monotonic() + 60.0
    with pytest.raises(RunFault, match=r"^the weights of the newest publication were lost before they arrived$"):
        while time.monotonic() < deadline:
            time.sleep(0.5)
            RayWeightSource(lambda: store).wait(30.0)
    for _ in range(10):
        assert source.poll() is None
        time.sleep(0.1)
    sink.publish(publication(2))
    while (got := source.poll()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert got.version == 2


class SlowBoard(RunBoard):
    def sleep(self, seconds):
        time.sleep(seconds)


def test_a_board_that_is_silent_or_gone_is_reported_in_one_line(monkeypatch):
    monkeypatch.setattr(board, "TIMEOUT", 0.5)
    handle = ray.remote(SlowBoard).remote()
    ray.get(handle.set_shards.remote(["a:1", "b:2"]))
    remote = RemoteBoard(handle)
    assert remote.await_shards(30.0) == ["a:1", "b:2"]
    asleep = handle.sleep.remote(2.0)
    with pytest.raises(RunFault, match=r"^the run's board has not answered for 0.5 s: [^\n]*$"):
        remote.status()
    ray.get(asleep)
    remote.request_scale({"shards": 3, "number": "x"})
    assert ray.get(handle.set_status.remote({"time": 1.0}, ["c:3"])) == {"shards": 3, "number": "x"}
    assert remote.await_shards(30.0) == ["c:3"]
    restarted = ray.remote(RunBoard).remote()  # it is empty until the driver fills it
    ray.get(restarted.__ray_ready__.remote(), timeout=30.0)
    empty = RemoteBoard(restarted)
    with pytest.raises(Unreachable, match=r"^the run's board has had no replay shards for 0.5 s$"):
        empty.await_shards(0.5)
    ray.kill(handle)  # returns before the process is gone, which may answer meanwhile
    deadline = time.monotonic() + 30.0
    with pytest.raises(
        RunFault,
        match=r"^the run's board is gone: the run has ended or was killed, or starts its board again \(then try ",
    ):
        while time.monotonic() < deadline:
            remote.status()


class Finder:
    """Finds ``store``; raises ValueError while it is None."""

    def __init__(self):
        self.store = ray.remote(WeightStore).remote()

    def __call__(self):
        if self.store is None:
            raise ValueError("Failed to look up actor")
        return self.store


def target_of(version):
    return {"w": np.full(3, 100 + version, np.float32)}


@pytest.mark.timeout(120)
def test_clients_find_the_store_that_replaces_a_dead_one_and_it_gets_the_newest_weights_and_targets():
    """Twice. The learner publishes meanwhile, and readers act with what they have."""
    find = Finder()
    sink, source, late = RayWeightSink(find), RayWeightSource(find), RayWeightSource(find)
    sink.publish(publication(1, 1, target_of(1)))
    assert source.wait(30.0).version == 1
    for version in (10, 20):
        ray.kill(find.store)  # returns before the process is gone
        find.store = None
        deadline = time.monotonic() + 30.0
        while sink._store is not None:  # the learner notices it by its publications
            assert time.monotonic() < deadline
            sink.publish(publication(version, 1))
            time.sleep(0.05)
        sink.publish(publication(version + 1, version, target_of(version)))  # there is no store
        assert sink.stored_version() == 0
        assert source.poll() is None
        with pytest.raises(RunFault, match=r"^there has been no weight store for 0.5 s$"):
            source.wait(0.5)
        find.store = ray.remote(WeightStore).remote()
        sink.republish()
        got = until(source.poll)
        assert (got.version, got.target_version) == (version + 1, version)
        np.testing.assert_array_equal(got.target_weights["w"], target_of(version)["w"])
        assert sink.stored_version() == version + 1
        ray.kill(find.store)  # while a reader waits for weights
        waiting = threading.Thread(target=lambda: replace_store(find, sink))
        waiting.start()
        assert source.wait(30.0) is None  # there is no newer one
        waiting.join(30.0)
    got = until(late.poll)  # a reader that was never served
    assert (got.version, got.target_weights["w"][0]) == (21, 120)


def replace_store(find, sink):
    """The store that has died is replaced after half a second, and gets the newest weights."""
    time.sleep(0.5)
    find.store = ray.remote(WeightStore).remote()
    sink.republish()


def until(call):
    """The first answer of ``call`` that is not None."""
    deadline = time.monotonic() + 30.0
    while (found := call()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def test_a_store_that_is_not_found_for_long_is_reported_by_the_learner():
    find = Finder()
    find.store = None
    sink = RayWeightSink(find, timeout=0.2)
    sink.publish(publication(1))
    time.sleep(0.3)
    with pytest.raises(Unreachable, match=r"^the weight store has accepted no weights for 0.2 s$"):
        sink.publish(publication(2))
    find = Finder()
    sink = RayWeightSink(find, timeout=0.2)
    sink.publish(publication(1))
    until(lambda: sink.stored_version() or None)
    find.store, sink._store = None, None  # it dies after a long time without a publication
    time.sleep(0.3)
    sink.publish(publication(2))  # missed for the first time now
