"""Start Ray on this machine, or join a running one."""

from __future__ import annotations

import logging
import os
import socket
from typing import Any

import ray

from qfleet.cluster.faults import last_line
from qfleet.cluster.needs import Needs
from qfleet.config import TrainConfig
from rl.errors import BadInput, RunFault

JOIN_TIMEOUT = 10.0  # seconds that a Ray may take to answer


def start_ray(config: TrainConfig, address: str | None, namespace: str) -> list[str]:
    """Join the Ray at ``address``, or start one here; returns warnings for the user.

    Raises BadInput where none answers at the address, RunFault where none starts here.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 would put the learner behind everything else
    env = {"OMP_NUM_THREADS": "1", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    common: dict[str, Any] = {
        "namespace": namespace,
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "runtime_env": {"env_vars": env},
    }
    if address is not None:
        join(address, **common)
        return []
    needs = Needs.of(config)
    asked, cores = needs.total_cpus(config), os.cpu_count() or 1
    try:
        ray.init(
            address="local",
            num_cpus=max(asked, cores),
            include_dashboard=True,
            object_store_memory=300 * 2**20,
            **common,
        )
    except (RuntimeError, OSError) as error:  # its control service did not begin in time, or the disk is full
        raise RunFault(f"Ray could not be started on this machine: {last_line(error)}") from error
    if asked > cores:
        return [f"{asked} CPUs asked for on {cores} cores: the processes share them (speeds below are of that)"]
    return []


HINT = "start one with `ray start --head`, or write the address of another (training without one starts its own)"


def resolve(address: str) -> str:
    """host:port of the Ray that ``address`` means. Raises BadInput where none answers within JOIN_TIMEOUT seconds."""
    target = address
    if address == "auto":
        target = os.environ.get("RAY_ADDRESS") or ray._private.utils.read_ray_address() or ""
        if not target:
            raise BadInput(f"address auto: no Ray runs on this machine: {HINT}")
    if not _answers(target, JOIN_TIMEOUT):
        raise BadInput(f"address {address}: no Ray answers at {target} within {JOIN_TIMEOUT:g} s: {HINT}")
    return target


def join(address: str, namespace: str, **options: Any) -> None:
    """Join a running Ray; ``options`` go to ray.init. Raises BadInput where none answers in JOIN_TIMEOUT seconds."""
    target = resolve(address)
    try:
        ray.init(address=target, namespace=namespace, **{"log_to_driver": False, **options})
    except Exception as error:
        raise BadInput(f"address {address}: Ray at {target} could not be joined ({error}): {HINT}") from error


def _answers(address: str, timeout: float) -> bool:
    """Whether a Ray head listens at host:port."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise BadInput(f"address {address!r} is no Ray's: write auto, or host:port of a Ray head")
    try:
        with socket.create_connection((host, int(port)), timeout=timeout):
            return True
    except OSError:
        return False
