"""Scale requests that start no change; tests/integration has those that do."""

from __future__ import annotations

import pytest

from qfleet.cluster.shards import ReplayShards
from qfleet.presets import cartpole
from replay.security import UNPROTECTED


class Client:
    """Records the addresses of `set_shards.remote`, in place of a Ray actor's handle."""

    def __init__(self):
        self.received = []
        self.set_shards = self

    def remote(self, addresses):
        self.received.append(addresses)


@pytest.fixture
def shards(tmp_path):
    made = ReplayShards(cartpole(), tmp_path, UNPROTECTED, local=True, resumed=False, options={"num_cpus": 1})
    made.addresses, made.handles = {0: "a:1", 1: "b:2"}, {0: object(), 1: object()}
    return made


def advance(shards):
    return shards.advance(None, None, [])


def test_no_change_without_a_request_or_with_the_same_number(shards):
    assert advance(shards) == ""
    assert not shards.is_changing
    shards.scale(2)
    assert advance(shards) == ""
    assert not shards.is_changing


def test_a_number_that_was_reached_does_not_replace_a_shard_that_is_lost_later(shards):
    shards.scale(2)
    advance(shards)
    shards.forget(1)
    assert advance(shards) == ""
    assert not shards.is_changing
    assert (list(shards.addresses), list(shards.handles)) == ([0], [0])


def test_a_number_that_is_not_valid_is_reported_once(shards):
    for _ in range(2):
        shards.scale(300)
        words = advance(shards)
        assert words.startswith("warning: the run keeps 2 replay shard(s): ")
        assert "slack" in words
        assert advance(shards) == ""


def test_a_new_address_of_a_shard_is_sent_to_all_clients(shards):
    clients = [Client(), Client()]
    shards.update_address(1, "b:2", clients)  # unchanged
    shards.update_address(7, "c:3", clients)  # removed
    assert [c.received for c in clients] == [[], []]
    shards.update_address(1, "c:3", clients)
    assert [c.received for c in clients] == [[["a:1", "c:3"]]] * 2
