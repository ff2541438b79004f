"""A run grows as Ray's autoscaler adds nodes and goes on when idle ones leave, with Ray's fake multi-node provider.

The cluster runs in Linux namespaces of its own (process ids, network, /tmp/ray, /dev/shm), which takes root.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time

import psutil
import pytest

from tests.conftest import ROOT
from tests.integration.runs import FAST, read_rows, run_command, start_process, wait_for_output

HEAD = "f" * 51 + "00000"  # the id that the fake provider gives to the head node
STORE = 100_000_000  # bytes of each node's object store
CONFIG = {
    "cluster_name": "fake",
    "max_workers": 4,
    "upscaling_speed": 100.0,
    "idle_timeout_minutes": 0.1,
    "provider": {
        "type": "external",
        "module": "tests.integration.fake_nodes.PatientProvider",
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
        "launch_multiple": True,
        "head_node_id": HEAD,
    },
    "auth": {},
    "available_node_types": {
        "worker": {
            "resources": {"CPU": 2, "object_store_memory": STORE},
            "node_config": {},
            "min_workers": 0,
            "max_workers": 4,
        },
        "ray.head.default": {"resources": {"CPU": 3}, "node_config": {}, "max_workers": 0},
    },
    "head_node_type": "ray.head.default",
    "file_mounts": {},
    "cluster_synced_files": [],
    "file_mounts_sync_continuously": False,
    "rsync_exclude": [],
    "rsync_filter": [],
    "initialization_commands": [],
    "setup_commands": [],
    "head_setup_commands": [],
    "worker_setup_commands": [],
    "head_start_ray_commands": [],
    "worker_start_ray_commands": [],
}
SCRIPT = """
mount --make-rprivate / && mount -t proc proc /proc && mount -t tmpfs -o size=2g tmpfs /dev/shm &&
mkdir -p /tmp/ray && mount -t tmpfs tmpfs /tmp/ray && ip link set lo up || exit 3
start() {{
    "$0" -m ray.scripts.scripts stop --force
    "$0" -m ray.scripts.scripts start --head --port 6379 --num-cpus 3 --object-store-memory {store} \
        --autoscaling-config={config} --include-dashboard false --disable-usage-stats
}}
(start || start || start) && "$0" -m qfleet "$@"  # a loaded machine may take longer than Ray waits for its start
"""
UNSHARE = ["unshare", "--net", "--pid", "--mount", "--uts", "--ipc", "--fork", "--kill-child"]


def raylets(process):
    """Number of Ray nodes among the descendants of ``process``."""
    found = 0
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            found += child.name() == "raylet" and child.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            continue
    return found


@pytest.fixture
def training(tmp_path):
    """(process, run directory, file of its output) of a run on a head with 3 CPUs and up to 4 nodes with 2."""
    if os.geteuid() or not shutil.which("unshare") or not shutil.which("ip"):
        pytest.skip("the fake cluster needs root and the commands unshare and ip")
    config, run, output = tmp_path / "cluster.json", tmp_path / "run", tmp_path / "output"
    config.write_text(json.dumps(CONFIG))
    args = ["train", "cartpole", "--address", "auto", "--run-dir", run, "--actors.count", 6, "--actors.environments", 2]
    args += [
        "--exploration.kind",
        "ladder",
        "--evaluation.goal",
        "inf",
        "--max-steps",
        10_000_000,
        "--ready-timeout",
        500,
        *FAST,
    ]
    env = {"RAY_enable_autoscaler_v2": "1", "RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    env |= {"RAY_CLOUD_INSTANCE_ID": HEAD, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD, "PYTHONUNBUFFERED": "1"}
    env |= {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}  # where the fake nodes' provider is found
    env |= {"RAY_AUTH_MODE": "disabled"}  # a token in the home directory of whoever runs the tests would turn it on
    script = SCRIPT.format(store=STORE, config=config)
    with output.open("w") as file:
        process = start_process(
            [*UNSHARE, "bash", "-c", script, sys.executable, *args], stdout=file, env={**os.environ, **env}
        )
    yield process, run, output
    if process.poll() is None:
        process.kill()
        process.wait(timeout=30)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_run_grows_with_the_autoscaler_and_shrinks_again(training):
    process, run, output = training

    def status(condition, what, seconds=600):
        deadline, now = time.monotonic() + seconds, {}
        while not (now.get("updates") is not None and condition(now)):
            assert process.poll() is None, output.read_text()
            assert time.monotonic() < deadline, f"not within {seconds} s: {what}\n{now}\n{output.read_text()}"
            time.sleep(0.5)
            now = json.loads((run / "status.json").read_text()) if (run / "status.json").exists() else {}
        return now

    status(lambda s: s["actors"] == s["actors_wanted"] == 6, "6 living actors")
    grown = raylets(process)
    assert 4 <= grown <= 5  # the head, and nodes for all processes that do not fit there
    code, text = run_command("scale", run, "--actors", 2, "--timeout", 300)
    assert code == 0, text
    deadline = time.monotonic() + 300
    while raylets(process) >= grown:
        assert time.monotonic() < deadline, f"no node has left\n{output.read_text()}"
        time.sleep(0.5)
    before = status(lambda s: s["actors"] == s["actors_wanted"] == 2, "2 living actors")
    status(lambda s: s["agent_steps"] > before["agent_steps"] + 500, "500 more agent steps")
    status(lambda s: s["updates"] > before["updates"] + 50, "50 more updates")
    for child in psutil.Process(process.pid).children(recursive=True):
        if "qfleet" in child.cmdline() and "train" in child.cmdline():
            child.send_signal(signal.SIGINT)
            break
    wait_for_output(process, 180)
    assert process.returncode == 130, output.read_text()
    actors = [int(row["actors"]) for row in read_rows(run / "metrics.csv")]
    assert (max(actors), actors[-1]) == (6, 2)
    assert "Traceback" not in output.read_text()
