"""Starts Ray on this machine, or joins a running Ray."""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Callable
from typing import Any

import ray
from ray._private.worker import print_to_stdstream

from qfleet.cluster.faults import last_line
from qfleet.cluster.needs import Needs
from qfleet.config import TrainConfig
from qfleet.run.signals import hangup_blocked
from rl.errors import BadInput, RunFault

JOIN_TIMEOUT = 10.0  # seconds to wait for a Ray head to answer


def _hide_deaths(print_lines: Callable[..., None]) -> Callable[..., None]:
    """Ray's own printing, without its 900 characters about each process that dies: the run says in a line which."""

    def printing(data: dict[str, Any], *args: Any, **options: Any) -> None:
        if not any(
            str(line).startswith("A worker died or was killed while executing a task") for line in data["lines"]
        ):
            print_lines(data, *args, **options)

    return printing


def start_ray(config: TrainConfig, address: str | None, namespace: str) -> list[str]:
    """Join the Ray at ``address``, or start one on this machine if it is None; returns warnings for the user.

    ``namespace`` is the name of the run. Raises BadInput if no Ray answers at the address; RunFault if none could be
    started.
    """
    ray._private.worker.print_to_stdstream = _hide_deaths(print_to_stdstream)
    # Ray must leave CUDA_VISIBLE_DEVICES as it is in processes that request no GPU.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's default of 15 would give the learner the lowest priority
    env = {"OMP_NUM_THREADS": "1", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    common: dict[str, Any] = {
        "namespace": namespace,
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "runtime_env": {"env_vars": env},
    }
    if address is not None:
        join_ray(address, **common)
        return []
    needed, cores = Needs.here(config).total_cpus(config), os.cpu_count() or 1
    try:
        with hangup_blocked():
            ray.init(
                address="local",
                num_cpus=max(needed, cores),  # Ray must start all processes, even if they share cores
                include_dashboard=True,
                object_store_memory=300 * 2**20,  # for weights and checkpoints; Ray's default is 30% of the memory
                **common,
            )
    except Exception as error:  # too slow (a RuntimeError, or a bare Exception), or the disk is full (an OSError)
        raise RunFault(f"Ray could not be started on this machine: {last_line(error)}") from error
    if needed > cores:
        return [
            f"the run needs {needed} CPUs and this machine has {cores}: its processes share them and run more slowly"
        ]
    return []


SETTINGS_FRAME = b"\x04"
# What an HTTP/2 client sends first, with an empty SETTINGS frame (RFC 9113, section 3.4); the server answers with its own.
HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0" + SETTINGS_FRAME + b"\0" * 5
VERSION_MISMATCH = re.compile(
    r"Version mismatch:.*?Ray: (?P<ray>\S+)\s+Python: (?P<python>\S+)"
    r".*?Ray: (?P<ray_here>\S+)\s+Python: (?P<python_here>\S+)",
    re.DOTALL,
)
HINT = "start one with `ray start --head`, or write the host:port of a running one"


def resolve_address(address: str) -> str:
    """The host:port of the Ray head at ``address``, which may be "auto".

    "auto" is $RAY_ADDRESS, or else the Ray that runs on this machine. Raises BadInput if none answers within
    JOIN_TIMEOUT seconds.
    """
    target = address
    if address == "auto":
        target = os.environ.get("RAY_ADDRESS") or ray._private.utils.read_ray_address() or ""
        if not target:
            raise BadInput(f"address auto: no Ray runs on this machine: {HINT}")
    if not _answers(target, JOIN_TIMEOUT):
        raise BadInput(f"address {address}: no Ray answers at {target} within {JOIN_TIMEOUT:g} s: {HINT}")
    return target


def join_ray(address: str, namespace: str, **options: Any) -> None:
    """Join the running Ray at ``address``; ``options`` are passed to ray.init. Raises BadInput if that fails."""
    target = resolve_address(address)
    try:
        ray.init(address=target, namespace=namespace, **{"log_to_driver": False, **options})
    except Exception as error:
        if found := VERSION_MISMATCH.search(str(error)):
            raise BadInput(
                f"address {address}: the Ray at {target} is {found['ray']} with Python {found['python']}, and here is Ray "
                f"{found['ray_here']} with Python {found['python_here']}: install the same versions on both"
            ) from error
        why = " ".join(str(error).split())
        raise BadInput(f"address {address}: Ray at {target} could not be joined ({why}): {HINT}") from error


def _answers(address: str, timeout: float) -> bool:
    """Whether a gRPC server, as a Ray head is one, answers at ``address``. Raises BadInput if it is not host:port.

    `ray.init` would wait for minutes for anything else that listens there.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise BadInput(f"address {address!r} is not host:port: write auto, or host:port of a Ray head")
    try:
        with socket.create_connection((host, int(port)), timeout=timeout) as connection:
            if os.environ.get("RAY_USE_TLS", "0") == "1":
                return True  # it answers only after a TLS handshake
            connection.sendall(HTTP2_PREFACE)
            return connection.recv(4, socket.MSG_WAITALL)[3:] == SETTINGS_FRAME
    except OSError:
        return False
