"""The ports that a replay shard listens on."""

from __future__ import annotations

import contextlib
import socket
from dataclasses import replace

import numpy as np
import pytest

from qfleet.cluster.shard_worker import _describe, _open_snapshots, _serve
from replay.config import ReplayConfig, make_shard
from replay.security import UNPROTECTED
from replay.store.snapshot_files import MANIFEST
from rl.errors import RunFault
from tests.conftest import SMALL

HOST = "127.0.0.1"


@pytest.fixture
def ports():
    """Three consecutive ports that are free now, as a range."""
    for low in range(21_000 + np.random.default_rng().integers(1000) * 3, 29_000, 3):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(low, low + 3):
                stack.enter_context(socket.create_server((HOST, port)))
            return range(low, low + 3)
    raise AssertionError("no three consecutive ports are free")


def shard():
    return make_shard(ReplayConfig(), SMALL, 0, limited=False)


def test_shards_take_the_ports_of_the_range_in_turn_and_name_a_range_that_is_taken(ports):
    servers = [_serve(shard(), HOST, 0, ports, UNPROTECTED, None) for _ in ports]
    try:
        assert [s.port for s in servers] == list(ports)
        with pytest.raises(RunFault) as caught:
            _serve(shard(), HOST, 0, ports, UNPROTECTED, None)
        assert str(caught.value) == (
            f"no port is free for a replay shard on the node {HOST}: all of `replay.ports` {ports[0]}-{ports[-1]} are "
            "taken; write a larger range"
        )
    finally:
        for server in servers:
            server.stop()


def test_a_shard_takes_the_port_of_the_one_that_it_replaces_if_that_is_free(ports):
    """Also if it is not in the range: then it was any free port."""

    def port(old_port, ports):
        server = _serve(shard(), HOST, old_port, ports, UNPROTECTED, None)
        server.stop()
        return server.port

    assert port(0, ports) == ports[0]
    assert port(ports[1], ports) == ports[1]
    assert port(ports[2], range(0)) == ports[2]
    with socket.create_server((HOST, ports[1])):
        assert port(ports[1], ports) == ports[0]
        assert port(ports[1], range(0)) not in (0, ports[1])


def test_a_new_run_starts_without_the_snapshots_of_an_earlier_one_of_its_name(tmp_path):
    """The earlier one had other observations, for which its snapshot could not even be opened."""
    earlier = replace(SMALL, frame_shape=(7,))
    for spec, keep in ((earlier, False), (SMALL, False), (SMALL, True)):
        shard = make_shard(ReplayConfig(), spec, 1, limited=False)
        snapshots = _open_snapshots(1.0, tmp_path / "shard-0", shard, keep)
        assert snapshots.restored is None
        snapshots.close()
    assert _open_snapshots(0.0, tmp_path / "shard-0", shard, keep=False) is None
    assert (tmp_path / "shard-0").is_dir()


def test_a_shard_whose_snapshots_are_damaged_starts_empty_and_says_so(tmp_path):
    for number in range(2):
        shard = make_shard(ReplayConfig(), SMALL, 1, limited=False)
        snapshots = _open_snapshots(1.0, tmp_path, shard, keep=True)
        snapshots.close()
        (tmp_path / MANIFEST).write_text("{}")
        if number:
            (folder,) = tmp_path.glob("damaged-*")
            assert _describe(snapshots) == (
                "starts empty; the newest snapshot is damaged (MANIFEST.json: 'snapshot' is missing) and was moved to "
                f"{folder}"
            )
