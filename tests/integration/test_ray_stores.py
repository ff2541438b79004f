"""Weight store and board on Ray: a slow store blocks no client, no target sync is lost, a silent board is an error."""

from __future__ import annotations

import time

import numpy as np
import pytest
import ray

from qfleet.cluster import board
from qfleet.cluster.board import RemoteBoard, RunBoard
from qfleet.cluster.needs import Needs
from qfleet.cluster.placement import Placement, cluster_nodes
from qfleet.cluster.stores import Stores
from qfleet.cluster.weights import RayWeightSink, RayWeightSource, WeightStore
from rl.errors import RunFault
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
    sink, source = RayWeightSink(store), RayWeightSource(store)
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
    sink = RayWeightSink(store, timeout=0.2)
    store.sleep.remote(3.0)
    for version in (1, 2, 3):
        sink.publish(publication(version))
    time.sleep(0.4)
    with pytest.raises(RunFault, match="weight store"):
        sink.publish(publication(4))


def test_a_new_reader_gets_the_latest_publication_at_its_first_poll():
    store = ray.remote(SlowStore).remote()
    RayWeightSink(store).publish(publication(7, 3, {"w": np.full(3, 5, np.float32)}))
    source = RayWeightSource(store)
    source.await_first(30.0)
    got = source.poll()
    assert (got.version, got.target_version) == (7, 3)
    np.testing.assert_array_equal(got.weights["w"], 7)
    np.testing.assert_array_equal(got.target_weights["w"], 5)


def test_a_learner_that_never_publishes_is_an_error():
    source = RayWeightSource(ray.remote(SlowStore).remote())
    with pytest.raises(RunFault, match=r"no weights within 0.5 s"):
        source.await_first(0.5)


def test_a_store_that_does_not_answer_is_a_fault():
    store = ray.remote(SlowStore).remote()
    asleep = store.sleep.remote(2.0)
    with pytest.raises(RunFault, match=r"^the weight store has not answered for 0.2 s$"):
        RayWeightSource(store).wait(0.2)
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
    sink, source = RayWeightSink(store), RayWeightSource(store)
    sink.publish(publication(1))
    ray.get(store.replace.remote(owner.put.remote()))
    ray.kill(owner)  # and with it the weights of version 1, soon
    deadline = time.monotonic() + 60.0
    with pytest.raises(RunFault, match=r"^the weights of the newest publication were lost before they arrived$"):
        while time.monotonic() < deadline:
            time.sleep(0.5)
            RayWeightSource(store).wait(30.0)
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
    assert remote.shards() == ["a:1", "b:2"]
    asleep = handle.sleep.remote(2.0)
    with pytest.raises(RunFault, match=r"^the run's board has not answered for 0.5 s: [^\n]*$"):
        remote.status()
    ray.get(asleep)
    remote.request_scale({"shards": 3, "number": "x"})
    assert ray.get(handle.set_status.remote({"time": 1.0})) == {"shards": 3, "number": "x"}
    ray.kill(handle)  # returns before the process is gone, which may answer meanwhile
    deadline = time.monotonic() + 30.0
    with pytest.raises(RunFault, match=r"^the run's board is gone: the run has ended or was killed$"):
        while time.monotonic() < deadline:
            remote.status()


def until_fault(stores):
    """The fault of ``stores`` once it is known, as text; `ray.kill` returns before the process is gone."""
    deadline = time.monotonic() + 30.0
    while (fault := stores.fault()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return str(fault)


def test_a_store_that_has_died_is_named_with_its_node_and_how_to_resume():
    [node] = cluster_nodes()
    placement, resume = Placement(Needs.of(1, 0), 1, 1, node), "qfleet train --resume runs/pong --address auto"
    stores = Stores(placement, resume)
    sink, source = RayWeightSink(stores.weights), RayWeightSource(stores.weights)
    sink.publish(publication(1))
    assert source.wait(30.0).version == 1
    assert stores.fault(wait=30.0) is None
    ray.kill(stores.board)
    fault = until_fault(stores)
    assert fault.startswith(f"the board of the run, on the node {node.address}, has died (The actor is dead because ")
    assert fault.endswith(f"): continue the run with `{resume}`")
    assert str(stores.fault(wait=30.0)) == fault  # also for who asks later
    ray.kill(stores.weights)
    gone = r"^the weight store has died$"
    with pytest.raises(RunFault, match=gone):
        source.await_first(30.0)
    with pytest.raises(RunFault, match=gone):
        source.wait(30.0)
    sink.publish(publication(2))
    time.sleep(0.5)
    with pytest.raises(RunFault, match=gone):
        sink.publish(publication(3))
    lost = Stores(Placement(Needs.of(1, 0), 1, 1, None), resume)
    ray.kill(lost.weights)
    assert until_fault(lost).startswith("the weight store of the run has died (")
