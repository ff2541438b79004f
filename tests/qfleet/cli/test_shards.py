"""`qfleet replay info | limit | drain` on shards that run in threads of the test."""

from __future__ import annotations

import json

import pytest

from qfleet.cli import main as cli
from qfleet.cli.shards import check_addresses
from replay.store.selectors import SelectorConfig
from replay.store.shard import Shard
from replay.wire.service import ShardServer
from replay.wire.writer import Writer
from rl.errors import BadInput
from tests.conftest import SMALL, make_segment

NOBODY = "127.0.0.1:1"


@pytest.fixture
def servers():
    running = [ShardServer(Shard(1000, SMALL, SelectorConfig(), limited=False)) for _ in range(2)]
    yield running
    for server in running:
        server.stop()


@pytest.fixture
def filled(servers, rng):
    """The addresses of a shard with 12 transitions and of an empty shard."""
    writer = Writer([servers[0].address])
    for _ in range(3):
        writer.write(make_segment(rng, items=4))
    writer.flush(10.0)
    writer.close()
    return [server.address for server in servers]


def command(*args):
    return cli.main(["replay", *map(str, args)])


def test_info_prints_the_figures_of_each_shard(filled, capsys):
    assert command("info", *filled, "--json") == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith(f"{filled[0]}: 12 of 1,000 transitions, ")
    assert "12 inserted, 0 sampled, 0 transferred" in out[0]
    assert out[0].endswith("inserts not limited")
    figures = json.loads(out[-1])
    assert [figures[a]["counts"]["stored"] for a in filled] == [12, 0]
    assert set(figures[filled[0]]) == {
        *("counts", "capacity", "capacity_bytes", "insert_credit", "limited", "selector"),
        *("frame_shape", "dtype", "stack", "limiter", "limiter_age"),
    }
    assert (figures[filled[0]]["frame_shape"], figures[filled[0]]["limiter"]) == (list(SMALL.frame_shape), None)


def test_an_unreachable_shard_does_not_hide_the_others(filled, capsys):
    assert command("info", NOBODY, *filled, "--timeout", 1) == 1
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 2
    (line,) = printed.err.splitlines()
    assert NOBODY in line


def test_limit_and_no_limited(filled, capsys):
    assert command("limit", filled[0], "--json") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {filled[0]: {"limited": True}}
    assert command("info", filled[0]) == 0
    assert "insert credit 0" in capsys.readouterr().out
    assert command("limit", filled[0], "--no-limited") == 0
    assert "inserts need no credit" in capsys.readouterr().out


def test_drain_moves_everything_and_prints_how_much(filled, servers, capsys):
    assert command("drain", filled[0], "--to", filled[1], "--json") == 0
    out = capsys.readouterr().out.splitlines()
    assert json.loads(out[-1]) == {filled[0]: {"moved": 12}}
    assert [server.counts().stored for server in servers] == [0, 12]


@pytest.mark.parametrize("to", [[], ["--to", NOBODY], ["--to", "127.0.0.1:2", NOBODY]])
def test_drain_rejects_the_same_shard_or_none_as_target(to, capsys):
    assert command("drain", NOBODY, *to) == 2
    assert "--to" in capsys.readouterr().err


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.1:", ":50051", "host:port", "host:0", "host:65536", ""])
def test_a_malformed_address_is_named_in_the_error(address):
    check_addresses(("127.0.0.1:1", "host.example.org:65535", "[::1]:50051"))
    with pytest.raises(BadInput, match="is not the address of a shard: write host:port"):
        check_addresses(("127.0.0.1:1", address))
