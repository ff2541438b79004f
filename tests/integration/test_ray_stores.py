"""Weight store, board and an actor on Ray.

A slow store blocks no client, no target sync is lost, a silent board is an error, an actor that ends sends what it has.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import ray

from actors.actor import FleetView
from qfleet.cluster import board, retries
from qfleet.cluster import evaluation as evaluation_module
from qfleet.cluster import fleet as fleet_module
from qfleet.cluster.board import BOARD, RemoteBoard, RunBoard
from qfleet.cluster.evaluation import Evaluation, EvaluatorProcess
from qfleet.cluster.fleet import ActorFleet
from qfleet.cluster.needs import Needs
from qfleet.cluster.placement import Placement, cluster_nodes
from qfleet.cluster.stores import Stores
from qfleet.cluster.supervisor import _Poller
from qfleet.cluster.versions import versions_here
from qfleet.cluster.weights import WEIGHT_STORE, RayWeightSink, RayWeightSource, WeightStore
from qfleet.cluster.workers import ActorWorker, EvaluatorWorker
from qfleet.presets import cartpole
from qfleet.run.directory import RunDir
from qfleet.run.parts import make_q_network
from qfleet.run.run import Run
from replay.config import make_shard
from replay.security import UNPROTECTED
from replay.wire.service import ShardServer
from rl.envs.make import spec_and_actions
from rl.errors import RunFault
from rl.parameters import weights_of
from rl.ports import Publication
from tests.integration.fickle import Fickle
from tests.qfleet.configs import short


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


def create_named(cls, name):
    """A Ray actor called ``name``; waits until Ray has forgotten one of that name, which was killed."""
    deadline = time.monotonic() + 30.0
    while True:
        try:
            return ray.remote(cls).options(name=name).remote()
        except ValueError:
            assert time.monotonic() < deadline, f"{name} is taken"
            time.sleep(0.1)


@pytest.fixture
def soon(monkeypatch):
    """What has failed is requested again at once."""
    monkeypatch.setattr(retries, "FIRST_DELAY", 0.5)
    monkeypatch.setattr(retries, "NOTE_PERIOD", 0.0)


class FickleEvaluator(EvaluatorWorker):
    """Cannot start while its folder, given as the run's name, has a file called broken."""

    def __init__(self, config, base_steps, folder):
        if (Path(folder) / "broken").exists():
            raise FileNotFoundError("no ROM")
        super().__init__(config, base_steps, folder)

    def pid(self):
        return os.getpid()


@pytest.mark.timeout(180)
def test_an_evaluation_is_lost_without_weights_or_with_its_evaluator_and_the_next_is_played(
    tmp_path, monkeypatch, soon
):
    monkeypatch.setattr(evaluation_module, "EvaluatorWorker", FickleEvaluator)
    config = short(max_steps=10_000)
    config = replace(config, evaluation=replace(config.evaluation, period=100))
    run = Run(config, RunDir.create(tmp_path / "run", config), None)
    store = create_named(WeightStore, WEIGHT_STORE)
    evaluator = EvaluatorProcess(config, 0, str(tmp_path), {"max_restarts": -1})
    evaluation, notes = Evaluation(run, evaluator), []
    run.progress.note = notes.append

    def advance_until(condition):
        deadline = time.monotonic() + 60.0
        while not condition():
            assert time.monotonic() < deadline
            run.stats.add_actor_report(0, run.stats.agent_steps + 200, ())  # the next one is due
            evaluation.advance()
            time.sleep(0.05)

    advance_until(lambda: notes)
    assert notes == ["warning: lost an evaluation, because the learner has published no weights yet"]
    weights = weights_of(make_q_network(config))
    ray.get(store.publish.remote(Publication(1, 0, weights, 0, weights)))
    advance_until(lambda: run.scheduler.last_return is not None)

    pid = ray.get(evaluator.handle.pid.remote())  # now it dies, and cannot be restarted
    (tmp_path / "broken").touch()
    notes.clear()
    os.kill(pid, signal.SIGKILL)
    ended = "warning: the evaluator has failed on the node"
    advance_until(lambda: any(line.startswith(ended) for line in notes))
    told = next(line for line in notes if line.startswith(ended))
    assert told.endswith(" (FileNotFoundError: no ROM): it is requested again after 0.5 s")
    (tmp_path / "broken").unlink()
    run.scheduler.last_return = None
    advance_until(lambda: run.scheduler.last_return is not None)
    run.close()
    run.dir.unlock()
    for handle in (evaluator.handle, store):
        ray.kill(handle)


@pytest.fixture
def actor_of():
    """``actor_of(limited)``: (ActorWorker of 2 environments, the shard that it writes to).

    A limited shard grants no credit, because it has no sampler.
    """
    config = replace(cartpole(), actors=replace(cartpole().actors, environments=2, segment_items=4))
    running = []

    def start(limited):
        shard = make_shard(config.replay, spec_and_actions(config.env)[0], 1, limited=limited)
        server = ShardServer(shard, "127.0.0.1")
        store = create_named(WeightStore, WEIGHT_STORE)
        weights = weights_of(make_q_network(config))
        store.publish.remote(Publication(1, 0, weights, 0, weights))
        own_board = create_named(RunBoard, BOARD)
        own_board.set_shards.remote([server.address])
        actor = ray.remote(ActorWorker).remote(config, 0, 0, "run", 0, UNPROTECTED, versions_here())
        running.extend((actor, store, own_board, server))
        return actor, server

    yield start
    *handles, server = running
    for handle in handles:
        ray.kill(handle)
    server.stop()


def wait_for_steps(actor, steps):
    """Poll ``actor`` until it has made ``steps`` agent steps; returns the number of its last answer."""
    view, deadline, made = FleetView(0, 2, 0), time.monotonic() + 60.0, 0
    while made < steps:
        assert time.monotonic() < deadline, made
        time.sleep(0.1)
        made = ray.get(actor.poll.remote(view), timeout=60.0)["agent_steps"]
    return made


@pytest.mark.timeout(180)
def test_an_actor_acts_from_its_first_poll_and_sends_all_its_segments_before_it_ends(actor_of):
    actor, server = actor_of(limited=False)
    ray.get(actor.__ray_ready__.remote(), timeout=60.0)
    time.sleep(1.0)
    assert ray.get(actor.poll.remote(FleetView(0, 2, 0)), timeout=60.0)["agent_steps"] == 0
    wait_for_steps(actor, 200)
    answer = ray.get(actor.finish.remote(20.0), timeout=60.0)
    assert (answer["unsent"], answer["failure"]) == (0, None)
    # At most 4 items of a segment that is not full, and those that wait for the rewards of 3 steps, per environment.
    assert answer["agent_steps"] - 2 * (4 + 3) <= server.counts().inserted <= answer["agent_steps"]


@pytest.mark.timeout(180)
def test_an_actor_that_replay_does_not_let_write_ends_in_time_and_counts_its_segments(actor_of):
    actor, server = actor_of(limited=True)
    wait_for_steps(actor, 16)
    time.sleep(1.0)
    began = time.monotonic()
    answer = ray.get(actor.finish.remote(1.0), timeout=60.0)
    assert time.monotonic() - began < 20.0
    assert answer["unsent"] > 0
    assert answer["unsent"] * 4 + server.counts().inserted >= answer["agent_steps"] - 2 * (4 + 3)
    assert answer["failure"] is None


@pytest.fixture
def fleet_of(tmp_path, monkeypatch, soon):
    """``fleet_of(count)``: a fleet of `Fickle`, which fail while there is a file of their name in tmp_path."""
    monkeypatch.setattr(fleet_module, "ActorWorker", Fickle)
    made = []

    def make(count):
        config = replace(cartpole(), actors=replace(cartpole().actors, count=count))
        options = {"num_cpus": 0, "max_restarts": -1}
        made.append(ActorFleet(config, str(tmp_path), UNPROTECTED, 0, 0, options))
        return made[-1]

    yield make
    for handle in [h for fleet in made for h in fleet.all_handles()]:
        ray.kill(handle)


@pytest.mark.timeout(180)
def test_a_run_whose_first_actor_cannot_start_ends_with_the_cause(fleet_of, tmp_path):
    (tmp_path / "actor-0").touch()
    fleet = fleet_of(1)
    fleet.start()
    with pytest.raises(
        RunFault, match=r"^actor-0 could not start on the node \S+: FileNotFoundError: no ROM for actor-0$"
    ):
        fleet.await_first(60.0, lambda: False, str)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_an_actor_that_fails_to_start_later_or_to_restart_is_requested_again(fleet_of, tmp_path):
    fleet, lines, pids, ends = fleet_of(1), [], {}, time.monotonic() + 120.0
    poller = _Poller(SimpleNamespace(fleet=fleet, workers=fleet.workers), SimpleNamespace(agent_steps=0), lines.append)

    def drive_until(condition):
        while not condition():
            assert time.monotonic() < ends, lines
            for name, answer in poller.poll().items():
                pids[fleet.answered(name)] = answer["pid"]
            lines.extend(fleet.advance(lambda *_: None))

    fleet.start()
    fleet.await_first(60.0, lambda: False, str)
    (tmp_path / "actor-1").touch()
    fleet.scale(2)
    [node], cause = cluster_nodes(), "FileNotFoundError: no ROM for actor-1"
    failed = f"warning: actor-1 has failed on the node {node.address} ({cause}): it is requested again after 0.5 s"
    drive_until(lambda: lines)
    assert lines == [failed]
    (tmp_path / "actor-1").unlink()
    drive_until(lambda: 1 in pids)
    assert fleet.roster.living == [0, 1]
    (tmp_path / "actor-1").touch()
    lines.clear()
    os.kill(pids[1], signal.SIGKILL)  # Ray restarts it
    drive_until(lambda: lines)
    assert lines == [failed]
    assert fleet.roster.living == [0]
    assert [name for name, _ in fleet.workers()] == ["actor-0"]
    assert len(fleet.actors) == 1
