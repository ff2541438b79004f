"""Versions of the nodes of a cluster; tests/integration asks real nodes."""

from __future__ import annotations

import platform
import sys

import psutil
import pytest
import torch

from qfleet.cluster.versions import check_versions, survey_here, versions_here
from qfleet.cluster.workers import ActorWorker
from qfleet.presets import cartpole
from replay.security import UNPROTECTED
from rl.errors import RunFault

SAME = {"Python": "3.11.7", "ray": "2.60.0", "torch": "2.13.0+cpu", "qfleet": "0.1.0"}


def test_the_versions_of_this_process():
    found = versions_here()
    assert found["Python"] == platform.python_version()
    assert found["torch"] == torch.__version__
    assert set(found) == set(SAME)


def test_equal_versions_and_other_builds_of_one_are_accepted():
    check_versions(SAME, {"10.0.0.1": SAME, "10.0.0.2": {**SAME, "torch": "2.13.0+cu130"}})


def test_only_the_third_number_of_pythons_version_may_differ():
    check_versions(SAME, {"10.0.0.2": {**SAME, "Python": "3.11.9"}})
    with pytest.raises(RunFault, match=r"10.0.0.2 has Python 3.12.7, and `qfleet train` runs with Python 3.11.7: "):
        check_versions(SAME, {"10.0.0.2": {**SAME, "Python": "3.12.7"}})
    with pytest.raises(RunFault, match=r"10.0.0.2 has torch 2.13.1, "):
        check_versions(SAME, {"10.0.0.2": {**SAME, "torch": "2.13.1"}})


@pytest.mark.parametrize(("name", "version"), [("ray", "2.59.1"), ("Python", "3.12.1"), ("qfleet", "not installed")])
def test_a_node_with_another_version_is_named(name, version):
    with pytest.raises(RunFault) as caught:
        check_versions(SAME, {"10.0.0.1": SAME, "10.0.0.2": {**SAME, name: version}})
    assert str(caught.value) == (
        f"the node 10.0.0.2 has {name} {version}, and `qfleet train` runs with {name} {SAME[name]}: install the same "
        "version on all nodes"
    )


@pytest.mark.parametrize(
    ("cluster_file", "port", "runs"),
    [("ray_bootstrap_config.yaml", 1, True), ("", 1, False), ("x.yaml", 2, False)],
)
def test_an_autoscaler_is_known_by_its_cluster_file(cluster_file, port, runs):
    """Ray's monitor as it is started with and without a cluster file, and that of another Ray of this machine."""
    flags = [f"--gcs-address=10.0.0.1:{port}", *([f"--autoscaling-config={cluster_file}"] if cluster_file else [])]
    monitor = psutil.Popen([sys.executable, "-c", "import time; time.sleep(60)", *flags])
    try:
        assert survey_here("10.0.0.1:1").autoscaler is runs
    finally:
        monitor.kill()
        monitor.wait()


def test_an_actor_on_a_node_that_joined_late_with_another_version_does_not_start():
    with pytest.raises(
        RunFault, match=r"^the node \S+ has torch \S+, and `qfleet train` runs with torch 1.2.3: install "
    ):
        ActorWorker(cartpole(), 0, 0, "run", 0, UNPROTECTED, {**versions_here(), "torch": "1.2.3"})
