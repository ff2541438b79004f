"""Which shards the processes of a run are told of, and scale requests that start no change.

tests/integration has changes of real shards.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from qfleet.cluster import restarts
from qfleet.cluster import shards as shards_module
from qfleet.cluster.fleet import Roster
from qfleet.cluster.restarts import Restarts
from qfleet.cluster.scaling import Scaling
from qfleet.cluster.shard_worker import ShardWorker
from qfleet.cluster.shards import ReplayShards
from qfleet.presets import cartpole
from qfleet.run.writes import Writes
from replay.security import UNPROTECTED
from rl.errors import RunFault


class Client:
    """Records the addresses of `set_shards.remote`, in place of a Ray actor's handle."""

    def __init__(self):
        self.received = []
        self.set_shards = self

    def remote(self, addresses):
        self.received.append(addresses)


@pytest.fixture
def shards(tmp_path):
    options = {"num_cpus": 1}
    made = ReplayShards(cartpole(), tmp_path, UNPROTECTED, True, False, lambda: options, Restarts())
    made.addresses, made.handles = {0: "a:1", 1: "b:2"}, {0: object(), 1: object()}
    return made


def advance(shards):
    return shards.advance(None, None, None)


def test_no_change_without_a_request_or_with_the_same_number(shards):
    assert advance(shards) == ""
    assert not shards.is_changing
    shards.scale(2)
    assert advance(shards) == ""
    assert not shards.is_changing


def test_a_number_that_is_not_valid_is_reported_once(shards):
    for _ in range(2):
        shards.scale(300)
        words = advance(shards)
        assert words.startswith("warning: the run keeps 2 replay shard(s): ")
        assert "slack" in words
        assert advance(shards) == ""


@pytest.fixture
def started(shards, monkeypatch):
    """The arguments with which shards are started; each then listens at the next address of `listens`."""
    calls = []
    monkeypatch.setattr(shards_module.ray, "kill", lambda handle: None)
    monkeypatch.setattr(shards_module.ray, "get", lambda call: call)
    monkeypatch.setattr(shards_module, "is_ready", lambda call: True)
    monkeypatch.setattr(shards, "start", lambda index, restarted: calls.append((index, restarted)) or f"{index}:9")
    return calls


def test_a_shard_that_fails_is_started_again_and_its_address_is_sent_to_all_clients(shards, started):
    clients, before = [Client(), Client()], shards.view
    shards.failed("shard-1", RuntimeError("killed"))
    assert [name for name, _ in shards.workers()] == ["shard-0"]  # it is not polled
    shards.restart(*clients)
    assert (started, [c.received for c in clients], shards.view) == ([(1, True)], [[], []], before)
    shards.restart(*clients)  # it listens now
    assert [c.received for c in clients] == [[["a:1", "1:9"]]] * 2
    assert shards.view == (before.version + 1, ["a:1", "1:9"])
    assert [name for name, _ in shards.workers()] == ["shard-0", "shard-1"]
    shards.restart(*clients)
    assert len(started) == 1


def test_a_shard_that_fails_again_and_again_is_given_up(shards, started, monkeypatch):
    monkeypatch.setattr(restarts, "FIRST_DELAY", 0.0)
    for _ in range(restarts.MAX_FAILURES - 1):
        shards.failed("shard-0", RuntimeError("no room"))
        shards.restart(Client(), Client())
    shards.failed("shard-0", RuntimeError("no room"))
    with pytest.raises(RunFault, match=r"^shard-0 has failed 8 times in a row, last \(no room\)$"):
        shards.restart(Client(), Client())


def test_a_shard_that_was_removed_is_not_started_again(shards, started):
    shards.failed("shard-1", RuntimeError("killed"))
    shards._forget(1)
    shards.restart(Client(), Client())
    shards.failed("shard-7", RuntimeError("killed"))  # is still being added
    shards.restart(Client(), Client())
    assert (started, [name for name, _ in shards.workers()]) == ([], ["shard-0"])


def test_a_leaving_shard_ends_when_no_living_actor_has_segments_in_flight_to_it(shards):
    shards.tell(Client(), Client())
    fleet = SimpleNamespace(roster=Roster(environments=2, ladder=True), finishing=1)
    fleet.roster.answer(0, now=0.0)
    version, waiting = shards.view.version, shards._until_left("b:2", fleet)

    def is_waiting():
        return next(waiting, "ended") is None

    assert is_waiting()  # no answer yet
    shards.answered("actor-0", version - 1, ["a:1"], {})
    assert is_waiting()  # an answer from before the change
    shards.answered("actor-0", version, ["a:1", "b:2"], {})
    assert is_waiting()  # segments in flight
    shards.answered("actor-0", version, ["a:1"], {})
    assert is_waiting()  # an actor that was scaled away still writes
    fleet.finishing = 0
    fleet.roster.answer(1, now=0.0)
    assert is_waiting()  # another actor has joined
    fleet.roster.remove(1)  # it does not answer
    assert not is_waiting()


def test_a_shard_that_actors_do_not_reach_is_reported_once_until_it_answers_again(shards):
    silent = {"b:2": "UNAVAILABLE: timed out"}
    line = "warning: actor-0 does not reach the replay shard(s) b:2 (UNAVAILABLE: timed out)"
    assert shards.answered("actor-0", 0, [], silent) == line
    assert [shards.answered(f"actor-{i}", 0, [], silent) for i in (0, 1)] == ["", ""]
    assert [shards.answered(f"actor-{i}", 0, [], {}) for i in (0, 1)] == ["", ""]
    assert shards.answered("actor-0", 0, [], silent) == line


def test_only_shards_of_the_start_of_a_resumed_run_report_that_they_find_no_snapshot(tmp_path, monkeypatch):
    started = []

    class Remote:
        def __init__(self, cls):
            assert cls is ShardWorker

        def options(self, **options):
            return self

        def remote(self, *args):
            started.append(args[-2:])  # `resumed`, `old_port`
            return SimpleNamespace(address=Client())

    monkeypatch.setattr(shards_module, "remote", Remote)
    monkeypatch.setattr(Client, "remote", lambda self: None)
    shards = ReplayShards(cartpole(), tmp_path, UNPROTECTED, True, True, dict, Restarts())
    shards.start(0)
    shards.addresses[0] = "10.0.0.1:7001"
    shards.start(0, restarted=True)
    shards._forget(0)
    shards.start(0, added=True)
    assert started == [(True, 0), (True, 7001), (False, 0)]


def test_news_of_shards_and_of_actors_are_both_shown(shards, tmp_path):
    """One request asks for actors, and for a number of shards that is reported in the same step."""
    notes, wanted, written = [], [], []
    request = {"shards": 3, "actors": 4, "number": "x"}
    run = SimpleNamespace(
        config=cartpole(),
        dir=SimpleNamespace(read_json=lambda name: request, write=lambda name, text: written.append(name)),
        progress=SimpleNamespace(note=notes.append),
        writes=Writes("run", notes.append),
        stats=SimpleNamespace(add_actor_report=None),
        set_fleet=lambda *args: None,
        scaling={},
    )
    fleet = SimpleNamespace(
        wanted=1, living=1, environments=2, scale=wanted.append, advance=lambda report, may_start: ["actor-1 joins"]
    )
    shards.advance = lambda *args: "added replay shard-2"
    process = SimpleNamespace(handle=None)
    processes = {"shards": shards, "fleet": fleet, "board": process, "learner": process}
    scaling = Scaling(run, SimpleNamespace(**processes, may_start_actors=True))
    scaling.advance(None)
    assert notes == ["actor-1 joins", "the run wants 4 actor(s), after 1", "added replay shard-2"]
    assert (wanted, run.scaling["scale_news"]) == ([4], "added replay shard-2")
    shards.advance = lambda *args: ""
    scaling.advance(None)
    assert written == ["config.yaml"]
