"""Asks every node of a cluster for its versions of Python, Ray, torch and Qfleet, and compares them."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from qfleet.cluster.faults import StoppedDuringStart, last_line
from qfleet.run.versions import package_versions
from rl.errors import RunFault

PACKAGES = ("qfleet", "ray", "torch")
TIMEOUT = 60.0  # seconds for all answers

remote: Any = ray.remote


class Survey(NamedTuple):
    """What a node has answered."""

    versions: dict[str, str]  # by package, and of Python
    autoscaler: bool  # whether Ray's autoscaler runs there, which can launch nodes


def survey_nodes(addresses: Mapping[str, str], stopping: Callable[[], bool]) -> dict[str, Survey]:
    """The answer of every node; ``addresses`` gives the node's address by Ray's id, the result has the same keys.

    Raises RunFault, which names the node, if one does not answer within TIMEOUT seconds; StoppedDuringStart once
    ``stopping`` returns True.
    """
    gcs = ray.get_runtime_context().gcs_address
    calls = {node: _survey_on(node, gcs) for node in addresses}
    deadline = time.monotonic() + TIMEOUT
    waiting = list(calls.values())
    while waiting and time.monotonic() < deadline:
        if stopping():
            raise StoppedDuringStart
        _, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=0.5)
    found = {}
    for node, call in calls.items():
        if call in waiting:
            raise RunFault(
                f"the node {addresses[node]} has not told its versions within {TIMEOUT:g} s: look at it in the Ray "
                "dashboard, or stop Ray there"
            )
        try:
            found[node] = ray.get(call)
        except ray.exceptions.RayError as error:
            raise RunFault(
                f"the node {addresses[node]} could not tell its versions ({last_line(error)}): install Qfleet there as on "
                "the other nodes"
            ) from error
    return found


def _survey_on(node: str, gcs: str) -> Any:
    affinity = NodeAffinitySchedulingStrategy(node, soft=False)
    return remote(survey_here).options(num_cpus=0, max_retries=0, scheduling_strategy=affinity).remote(gcs)


def survey_here(gcs: str) -> Survey:
    """The answer of this node; ``gcs``: address of the control service, which distinguishes several Rays of a machine."""
    return Survey(versions_here(), _runs_autoscaler(gcs))


def versions_here() -> dict[str, str]:
    """The versions of this process, by package, without importing the packages."""
    return {"Python": platform.python_version(), **package_versions(PACKAGES)}


def _runs_autoscaler(gcs: str) -> bool:
    """Whether this node runs the monitor of the Ray at ``gcs`` with a cluster file.

    Ray's monitor also runs without one; then it launches no nodes, but reports the same figures. Ray stores nowhere
    which of the two it is.
    """
    port = gcs.rpartition(":")[2]  # the host may be written in several ways
    for process in psutil.process_iter(["cmdline"]):
        flags = dict(a.split("=", 1) for a in process.info["cmdline"] or [] if a.startswith("--") and "=" in a)
        if "--autoscaling-config" in flags and flags.get("--gcs-address", "").endswith(f":{port}"):
            return True
    return False


def check_versions(driver: Mapping[str, str], nodes: Mapping[str, Mapping[str, str]]) -> None:
    """Raise RunFault if a node, by its address in ``nodes``, has another version of a package than the driver.

    Builds of one version, such as torch 2.13.0+cpu and 2.13.0, may be mixed. The third number of Python's version may
    differ: bytecode, which Ray sends, depends on the first two. Ray itself lets such a node join only if it is told to.
    """
    for address, found in sorted(nodes.items()):
        for name, version in driver.items():
            if _compared(name, found[name]) != _compared(name, version):
                raise RunFault(
                    f"the node {address} has {name} {found[name]}, and `qfleet train` runs with {name} {version}: install "
                    "the same version on all nodes"
                )


def _compared(name: str, version: str) -> str:
    """The part of a version that must be the same on all nodes."""
    return ".".join(version.split(".")[:2]) if name == "Python" else version.partition("+")[0]
