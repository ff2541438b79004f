"""Resolving the address of a Ray."""

from __future__ import annotations

import socket

import pytest

from qfleet.cluster import connect
from qfleet.cluster.connect import resolve_address
from rl.errors import BadInput


@pytest.fixture
def listening():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_an_address_resolves_to_itself_and_auto_to_ray_address(listening, monkeypatch):
    assert resolve_address(listening) == listening
    monkeypatch.setenv("RAY_ADDRESS", listening)
    assert resolve_address("auto") == listening


@pytest.mark.parametrize("address", ["nonsense", "127.0.0.1:", ":6379", "127.0.0.1:port"])
def test_a_malformed_address_is_rejected_with_what_to_write(address):
    with pytest.raises(BadInput, match="write auto, or host:port of a Ray head"):
        resolve_address(address)


def test_an_address_without_a_ray_is_rejected_with_what_to_do(monkeypatch):
    monkeypatch.setattr(connect, "JOIN_TIMEOUT", 0.5)
    with pytest.raises(
        BadInput, match=r"no Ray answers at 127.0.0.1:1 within 0.5 s: start one with `ray start --head`"
    ):
        resolve_address("127.0.0.1:1")
