"""Resolving the address of a Ray."""

from __future__ import annotations

import platform
import socket
import threading
from concurrent import futures
from http.server import BaseHTTPRequestHandler, HTTPServer

import grpc
import pytest
import ray
from ray._private.utils import check_version_info

from qfleet.cluster import connect
from qfleet.cluster.connect import join_ray, resolve_address
from rl.errors import BadInput


@pytest.fixture
def answering():
    """The address of a gRPC server."""
    server = grpc.server(futures.ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


def test_an_address_resolves_to_itself_and_auto_to_ray_address(answering, monkeypatch):
    assert resolve_address(answering) == answering
    monkeypatch.setenv("RAY_ADDRESS", answering)
    assert resolve_address("auto") == answering


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


def test_a_silent_listener_and_another_protocol_are_no_ray(monkeypatch):
    monkeypatch.setattr(connect, "JOIN_TIMEOUT", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(BadInput, match="no Ray answers"):
        resolve_address(f"127.0.0.1:{silent.getsockname()[1]}")
    server = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    threading.Thread(target=server.handle_request, daemon=True).start()
    with pytest.raises(BadInput, match="no Ray answers"):
        resolve_address(f"127.0.0.1:{server.server_port}")
    server.server_close()


@pytest.mark.parametrize(("theirs", "python"), [("2.59.1", "3.11.7"), (ray.__version__, "3.10.4")])
def test_a_ray_of_another_version_is_told_in_one_line_with_both_versions(answering, monkeypatch, theirs, python):
    """Ray compares its own version and Python's with those that the head has stored."""
    stored = {"ray_version": theirs, "python_version": python}
    monkeypatch.setattr(ray, "init", lambda **_: check_version_info(stored, "node 10.0.0.1"))
    with pytest.raises(BadInput) as caught:
        join_ray(answering, "run")
    assert str(caught.value) == (
        f"address {answering}: the Ray at {answering} is {theirs} with Python {python}, and here is Ray {ray.__version__} "
        f"with Python {platform.python_version()}: install the same versions on both"
    )


def test_why_a_ray_cannot_be_joined_is_one_line(answering, monkeypatch):
    def fail(**_):
        raise RuntimeError("no node\n  is there\n")

    monkeypatch.setattr(ray, "init", fail)
    with pytest.raises(BadInput, match=r"could not be joined \(no node is there\): start one with `ray start --head`"):
        join_ray(answering, "run")
