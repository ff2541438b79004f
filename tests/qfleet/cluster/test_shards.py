"""Requests for more or fewer shards that come to nothing; those that do are in tests/integration."""

from __future__ import annotations

import pytest

from qfleet.cluster.shards import ReplayShards
from qfleet.presets import cartpole
from replay.security import UNPROTECTED


class Client:
    """Takes the addresses that it is told, as a Ray actor's handle would."""

    def __init__(self):
        self.told = []
        self.set_shards = self

    def remote(self, addresses):
        self.told.append(addresses)


@pytest.fixture
def shards(tmp_path):
    made = ReplayShards(cartpole(), tmp_path, UNPROTECTED, local=True)
    made.addresses, made.handles = {0: "a:1", 1: "b:2"}, {0: object(), 1: object()}
    return made


def advance(shards, request):
    return shards.advance(request, None, None, [])


def test_nothing_is_changed_where_nothing_is_asked_for_or_it_is_so_already(shards):
    for request in (None, {"shards": 2, "number": "x"}):
        assert advance(shards, request) == ""
        assert not shards.changing


def test_a_granted_request_is_not_granted_again_when_a_shard_is_lost_later(shards):
    request = {"shards": 2, "number": "x"}
    advance(shards, request)
    shards.lost(1)
    assert advance(shards, request) == ""
    assert not shards.changing
    assert (list(shards.addresses), list(shards.handles)) == ([0], [0])


def test_a_refused_request_is_said_once(shards):
    request = {"shards": 300, "number": "x"}
    words = advance(shards, request)
    assert words.startswith("warning: the replay stays at 2 shard(s): ")
    assert "slack" in words
    assert advance(shards, request) == ""
    assert advance(shards, {**request, "number": "y"}) == words  # asked again, by somebody


def test_a_shard_that_is_found_elsewhere_is_told_to_everybody(shards):
    clients = [Client(), Client()]
    shards.moved(1, "b:2", clients)  # where it was
    shards.moved(7, "c:3", clients)  # gone for good
    assert [c.told for c in clients] == [[], []]
    shards.moved(1, "c:3", clients)
    assert [c.told for c in clients] == [[["a:1", "c:3"]]] * 2
