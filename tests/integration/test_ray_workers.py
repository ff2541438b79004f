"""Actors, evaluator and shards on Ray: an actor that ends sends what it has, one that fails is started again, and a
shard that leaves loses nothing."""

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
from qfleet.cluster import fleet as fleet_module
from qfleet.cluster import restarts
from qfleet.cluster.board import BOARD, RunBoard, ShardsView
from qfleet.cluster.evaluation import Evaluation
from qfleet.cluster.faults import last_line
from qfleet.cluster.fleet import ActorFleet
from qfleet.cluster.learner_worker import LearnerWorker
from qfleet.cluster.placement import cluster_nodes
from qfleet.cluster.process import Process, RunProcess
from qfleet.cluster.restarts import Restarts
from qfleet.cluster.roster import Roster
from qfleet.cluster.shards import ReplayShards
from qfleet.cluster.supervisor import _Poller
from qfleet.cluster.versions import versions_here
from qfleet.cluster.weights import WEIGHT_STORE, WeightStore
from qfleet.cluster.workers import ActorWorker, EvaluatorWorker
from qfleet.presets import cartpole
from qfleet.run.directory import RunDir
from qfleet.run.parts import make_q_network
from qfleet.run.run import Run
from replay.config import make_shard
from replay.security import UNPROTECTED
from replay.wire.service import ShardServer
from replay.wire.writer import Writer
from rl.envs.make import spec_and_actions
from rl.errors import RunFault
from rl.parameters import weights_of
from rl.ports import Publication
from tests.conftest import make_segment
from tests.integration.fickle import Fickle
from tests.integration.test_ray_stores import local_ray  # noqa: F401
from tests.qfleet.cluster.test_shards import Client as Recorder
from tests.qfleet.configs import short


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
    """What has failed again is started again soon."""
    monkeypatch.setattr(restarts, "FIRST_DELAY", 0.5)
    monkeypatch.setattr(restarts, "NOTE_PERIOD", 0.0)


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
    config = short(max_steps=10_000)
    config = replace(config, evaluation=replace(config.evaluation, period=100))
    run = Run(config, RunDir.create(tmp_path / "run", config), None)
    store = create_named(WeightStore, WEIGHT_STORE)
    failures, options = Restarts(), {"name": "evaluator", "max_concurrency": 2, "num_cpus": 0}
    actor = ray.remote(FickleEvaluator).options(**options)
    evaluator = Process("evaluator", lambda: actor.remote(config, 0, str(tmp_path)), failures)
    evaluator.start()
    evaluation, notes = Evaluation(run, evaluator), []
    run.progress.note = notes.append

    def advance_until(condition):
        deadline = time.monotonic() + 60.0
        while not condition():
            assert time.monotonic() < deadline
            run.stats.add_actor_report(0, run.stats.agent_steps + 200, ())  # the next one is due
            evaluator.advance()
            evaluation.advance()
            if line := failures.news(time.monotonic()):
                notes.append(line)
            time.sleep(0.05)

    advance_until(lambda: notes)
    assert notes == ["warning: lost an evaluation: the learner has published no weights yet"]
    weights = weights_of(make_q_network(config))
    ray.get(store.publish.remote(Publication(1, 0, weights, 0, weights)))
    advance_until(lambda: run.scheduler.last_return is not None)

    pid = ray.get(evaluator.handle.pid.remote())  # now it dies, and cannot be restarted
    (tmp_path / "broken").touch()
    notes.clear()
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(ray.exceptions.ActorDiedError) as died:
        ray.get(evaluator.handle.poll.remote(), timeout=30.0)
    evaluator.failed(died.value)
    advance_until(lambda: any("no ROM" in line for line in notes))
    assert notes[0].endswith(" (its process has died): it is started again")
    told = next(line for line in notes if "no ROM" in line)
    assert told.startswith("warning: the evaluator has failed on the node")
    assert told.endswith(" (FileNotFoundError: no ROM): it is started again after 0.5 s")
    (tmp_path / "broken").unlink()
    run.scheduler.last_return = None
    advance_until(lambda: run.scheduler.last_return is not None)
    run.close()
    run.dir.unlock()
    for handle in (evaluator.handle, store):
        ray.kill(handle)


class Owner:
    def put(self):
        return [ray.put(np.zeros(300_000))]  # too large for Ray to pass it along with its reference


@pytest.mark.timeout(120)
def test_an_evaluation_whose_weights_are_lost_with_a_node_is_given_up(tmp_path):
    config = short(max_steps=10_000)
    config = replace(config, evaluation=replace(config.evaluation, period=100))
    run, notes = Run(config, RunDir.create(tmp_path / "run", config), None), []
    run.progress.note = notes.append
    owner = ray.remote(Owner).options(num_cpus=0).remote()
    (lost,) = ray.get(owner.put.remote())
    ray.kill(owner)  # and with it the object, soon
    with pytest.raises(ray.exceptions.ObjectLostError):
        while True:
            ray.get(lost, timeout=30.0)
            time.sleep(0.1)
    handle = SimpleNamespace(take_weights=SimpleNamespace(remote=lambda: lost))
    evaluator = SimpleNamespace(handle=handle, is_working=True, has_started=True)
    evaluation, deadline = Evaluation(run, evaluator), time.monotonic() + 60.0
    while not notes:
        assert time.monotonic() < deadline
        run.stats.add_actor_report(0, run.stats.agent_steps + 200, ())
        evaluation.advance()
        time.sleep(0.05)
    assert notes[0].startswith("warning: lost an evaluation: the evaluator or its answer is gone (Failed to retrieve")
    run.close()
    run.dir.unlock()


def test_an_evaluation_is_not_played_by_an_evaluator_that_has_not_taken_its_weights(tmp_path):
    """As when the old one dies just after it has answered with them."""
    config = short(max_steps=10_000)
    config = replace(config, evaluation=replace(config.evaluation, period=100))
    run = Run(config, RunDir.create(tmp_path / "run", config), None)
    asked = []

    def evaluator_called(name):
        calls = {"take_weights": lambda: ray.put((1, 2, {})), "evaluate": lambda episodes: asked.append(name)}
        return SimpleNamespace(**{call: SimpleNamespace(remote=answer) for call, answer in calls.items()})

    evaluator = SimpleNamespace(handle=evaluator_called("old"), is_working=True, has_started=True)
    evaluation = Evaluation(run, evaluator)
    run.stats.add_actor_report(0, 200, ())
    evaluation.advance()
    evaluator.handle = evaluator_called("new")
    evaluation.advance()
    assert asked == ["old"]
    run.close()
    run.dir.unlock()


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


def wait_for_steps(actor, server, steps):
    """Poll ``actor`` until it has made ``steps`` agent steps; returns the number of its last answer."""
    views, deadline, made = (FleetView(0, 2, 0), ShardsView(0, [server.address])), time.monotonic() + 60.0, 0
    while made < steps:
        assert time.monotonic() < deadline, made
        time.sleep(0.1)
        made = ray.get(actor.poll.remote(*views), timeout=60.0)["agent_steps"]
    return made


@pytest.mark.timeout(180)
def test_an_actor_acts_from_its_first_poll_and_sends_all_its_segments_before_it_ends(actor_of):
    actor, server = actor_of(limited=False)
    ray.get(actor.__ray_ready__.remote(), timeout=60.0)
    time.sleep(1.0)
    first = ray.get(actor.poll.remote(FleetView(0, 2, 0), ShardsView(3, [server.address])), timeout=60.0)
    assert (first["agent_steps"], first["shards_version"], first["shards_in_use"]) == (0, 3, [server.address])
    wait_for_steps(actor, server, 200)
    answer = ray.get(actor.finish.remote(20.0), timeout=60.0)
    assert (answer["unsent"], answer["failure"]) == (0, None)
    # At most 4 items of a segment that is not full, and those that wait for the rewards of 3 steps, per environment.
    assert answer["agent_steps"] - 2 * (4 + 3) <= server.counts().inserted <= answer["agent_steps"]


@pytest.mark.timeout(180)
def test_an_actor_that_replay_does_not_let_write_ends_in_time_and_counts_its_segments(actor_of):
    actor, server = actor_of(limited=True)
    wait_for_steps(actor, server, 16)
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
        made.append(ActorFleet(config, str(tmp_path), UNPROTECTED, 0, 0, lambda: {"num_cpus": 0}, Restarts()))
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
    shards = SimpleNamespace(view=ShardsView(0, []))
    topology = SimpleNamespace(fleet=fleet, workers=fleet.workers, shards=shards, failed=fleet.failed, starting=dict)
    poller = _Poller(topology, SimpleNamespace(agent_steps=0, forget_actor=lambda index: None), lines.append)

    def drive_until(condition):
        while not condition():
            assert time.monotonic() < ends, lines
            for name, answer in poller.poll().items():
                pids[fleet.answered(name)] = answer["pid"]
            lines.extend(fleet.advance(lambda *_: None))
            lines.extend(filter(None, [fleet._restarts.news(time.monotonic())]))

    fleet.start()
    fleet.await_first(60.0, lambda: False, str)
    (tmp_path / "actor-1").touch()
    fleet.scale(2)
    [node], cause = cluster_nodes(), "FileNotFoundError: no ROM for actor-1"
    failed = f"warning: actor-1 has failed on the node {node.address} ({cause}): it is started again"
    drive_until(lambda: lines)
    assert lines == [failed]
    (tmp_path / "actor-1").unlink()
    drive_until(lambda: 1 in pids)
    assert fleet.roster.living == [0, 1]
    (tmp_path / "actor-1").touch()
    lines.clear()
    os.kill(pids[1], signal.SIGKILL)
    drive_until(lambda: len(lines) > 1)
    died = f"warning: actor-1 has failed on the node {node.address} (its process has died): it is started again"
    assert [line.split(" after ")[0] for line in lines] == [died, failed]
    assert fleet.roster.living == [0]
    assert [name for name, _ in fleet.workers()] == ["actor-0"]
    assert len(fleet.actors) == 1


class Client(Recorder):
    """A board or learner that only records the shards that it is told of."""

    def remote(self, addresses):
        super().remote(addresses)
        return ray.put(None)


@pytest.mark.timeout(120)
def test_a_learner_that_has_not_started_makes_no_checkpoint_and_is_told_of_shards_later():
    """A checkpoint of its initial weights would replace those of the run."""
    arguments = (short(), "run", 1, UNPROTECTED, None)
    learner = ray.remote(LearnerWorker).options(num_cpus=0, max_concurrency=4).remote(*arguments)
    assert ray.get(learner.set_shards.remote(["a:1"]), timeout=60.0) is None
    with pytest.raises(TimeoutError, match="the learner has not started yet"):
        ray.get(learner.checkpoint.remote({}), timeout=60.0)
    ray.kill(learner)


@pytest.mark.timeout(180)
def test_a_shard_that_is_scaled_away_loses_nothing_of_a_writer_that_is_not_told(tmp_path, rng):
    """As of an actor that ends at the same time, or that the driver does not reach."""
    config = short()
    free = replace(config.replay.limiter, samples_per_insert=0.0)  # the shards have no sampler that grants credit
    config = replace(config, replay=replace(config.replay, limiter=free))
    options = {"num_cpus": 0}
    shards = ReplayShards(config, tmp_path / "run", UNPROTECTED, True, False, lambda: options, Restarts())
    shards.addresses = {i: ray.get(shards.start(i), timeout=60.0) for i in range(2)}
    writer, board, learner = Writer(list(shards.addresses.values())), Client(), Client()
    spec, written, news = spec_and_actions(config.env)[0], 0, ""
    fleet = SimpleNamespace(roster=Roster(environments=2, ladder=True), finishing=0)
    shards.scale(1)
    while not news:
        for _ in range(10):
            writer.write(make_segment(rng, spec))
            written += 4
        time.sleep(0.02)
        news = shards.advance(board, learner, fleet)
    writer.flush(20.0)
    assert news.startswith("removed replay shard-1, moved its ")
    kept = ray.get(shards.handles[0].poll.remote(), timeout=60.0)
    assert kept["stored"] == written
    left = [shards.addresses[0]]
    assert (board.received[0], learner.received[-1], shards.view.addresses) == (left, left, left)
    assert len(learner.received[0]) == 2  # it draws from both until the content has moved
    writer.close()

    shards.scale(2)  # at once, while Ray may still know the name of the one that was removed
    deadline = time.monotonic() + 60.0
    while not (news := shards.advance(board, learner, fleet)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert news.startswith("added replay shard-1 at ")
    for handle in shards.handles.values():
        ray.kill(handle)


class SlowActor(RunProcess):
    def report(self, view, shards):
        time.sleep(0.5)
        return {"agent_steps": 10, "episodes": ["an episode"]}


def test_the_episodes_in_the_last_poll_of_an_actor_that_is_scaled_away_are_counted():
    actor, workers, episodes = ray.remote(SlowActor).remote(), [], []
    topology = SimpleNamespace(
        workers=lambda: workers,
        fleet=SimpleNamespace(view=lambda *args: FleetView(0, 2, 0), polled=lambda: None),
        shards=SimpleNamespace(view=ShardsView(0, [])),
        starting=dict,
    )
    stats = SimpleNamespace(agent_steps=0, add_episodes=episodes.extend)
    poller = _Poller(topology, stats, note=None)
    workers[:] = [("actor-0", actor)]
    ray.get(actor.__ray_ready__.remote())
    assert poller.poll() == {}
    workers.clear()
    deadline = time.monotonic() + 30.0
    while not episodes:
        assert time.monotonic() < deadline
        assert poller.poll() == {}
    assert (episodes, poller._last_polls) == (["an episode"], [])
    ray.kill(actor)


class Broken(RunProcess):
    def report(self):
        raise KeyError("loss")


def test_a_process_whose_answer_is_an_error_has_failed():
    broken, failures = ray.remote(Broken).options(num_cpus=0).remote(), []
    topology = SimpleNamespace(
        workers=lambda: [("learner", broken)],
        fleet=SimpleNamespace(polled=lambda: None),
        shards=SimpleNamespace(view=ShardsView(0, [])),
        starting=dict,
        failed=lambda name, error: failures.append((name, last_line(error))),
    )
    poller, deadline = _Poller(topology, None, note=None), time.monotonic() + 30.0
    while not failures:
        assert time.monotonic() < deadline
        assert poller.poll() == {}
    assert failures[0] == ("learner", "KeyError: 'loss'")
    ray.kill(broken)
