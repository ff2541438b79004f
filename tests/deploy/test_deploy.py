"""The cluster files: Ray accepts them, and each typo is an error here."""

from __future__ import annotations

import copy
import re
import shlex
import subprocess

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import start

from tests.conftest import ROOT

FILES = ["local", "aws", "gcp"]
PROVIDER = {  # Ray's schema allows any key here
    "local": {"type", "head_ip", "worker_ips"},
    "aws": {"type", "region", "availability_zone", "cache_stopped_nodes"},
    "gcp": {"type", "region", "availability_zone", "project_id"},
}
TO_FILL_IN = {
    "local": ["head_ip", "worker_ips", "ssh_user", "ssh_private_key"],
    "aws": ["ImageId", "ImageId"],
    "gcp": ["project_id"],
}
GOOGLE = {  # the keys of node_config in gcp.yaml, which were looked up in Google's API
    *("machineType", "scheduling", "onHostMaintenance", "provisioningModel", "instanceTerminationAction", "disks"),
    *("boot", "autoDelete", "initializeParams", "diskSizeGb", "sourceImage"),
}
LABELS = {"head": {"qfleet": "learner"}, "actors": {"qfleet": "actors"}}
PREFIX = {  # settings that may precede `ray start`
    "RAY_worker_niceness=0",
    "RAY_enable_autoscaler_v2=0",
    "RAY_health_check_failure_threshold=12",
    "RAY_health_check_timeout_ms=5000",
    "AUTOSCALER_HEARTBEAT_TIMEOUT_S=120",
}


def text(name):
    return (ROOT / "deploy" / f"{name}.yaml").read_text()


def load(name):
    return yaml.safe_load(text(name))


def ray_start(commands):
    """(the settings before it, its parsed flags) of the one `ray start` among ``commands``; Ray rejects other flags."""
    (command,) = [c for c in commands if "ray start" in c]
    before, flags = command.split("ray start")
    settings = set(before.split(";")[-1].split())
    return settings, start.make_context("ray start", shlex.split(flags)).params


def check(config):
    """Raise an exception, of any kind, if Ray or Qfleet can't use this cluster file."""
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    kind = config["provider"]["type"]
    assert set(config["provider"]) == PROVIDER[kind]
    assert {"ssh_user"} <= set(config["auth"])
    assert {"~/qfleet", "~/.ray/auth_token"} == set(config["file_mounts"])
    assert {"**/runs", "**/.venv", "**/.git"} <= set(config["rsync_exclude"])
    assert any("deploy/setup.sh python3" in c for c in config["setup_commands"])
    head_settings, head = ray_start(config["head_start_ray_commands"])
    worker_settings, worker = ray_start(config["worker_start_ray_commands"])
    assert head["head"]
    assert head["autoscaling_config"] == "~/ray_bootstrap_config.yaml"
    assert worker["address"] == f"$RAY_HEAD_IP:{head['port']}"
    for settings in (head_settings, worker_settings):
        assert "RAY_worker_niceness=0" in settings
        assert settings <= PREFIX
    assert ports(head) == ports(worker) == (6380, 6381, 6382, 6383, 6384, 6385, 10002, 19999)
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        assert commands[0] == "ray stop"
    if kind == "local":
        assert head["labels"] == "qfleet=learner"
        assert worker["labels"] == "qfleet=actors"
        assert head["node_ip_address"] == worker["node_ip_address"] == "$3"
        assert "RAY_enable_autoscaler_v2=0" in head_settings  # v2 starts a worker too few
        assert "watch_head.py" in config["worker_start_ray_commands"][-1]
        assert "ssh_private_key" in config["auth"]  # without it the head cannot reach the workers
    else:
        types = config["available_node_types"]
        assert {name: t["labels"] for name, t in types.items()} == LABELS
        assert config["head_node_type"] == "head"
        assert types["head"]["resources"].keys() == {"CPU", "GPU"}
        assert types["actors"]["resources"].keys() == {"CPU"}
        assert 0 < types["actors"]["min_workers"] <= types["actors"]["max_workers"] <= config["max_workers"]
        assert config["upscaling_speed"] > 0
        assert config["idle_timeout_minutes"] > 0
        assert any(".venv/bin/python -m pip" in c for c in config["head_setup_commands"])  # not the system's Python
        assert config["worker_setup_commands"] == []  # Ray's defaults install a Ray of their own

    if kind == "gcp":
        assert {path[-1] for t in types.values() for path in keys(t["node_config"])} == GOOGLE


def ports(flags):
    """The ports of a node that other nodes connect to, as `ray start` was told."""
    names = "node_manager_port object_manager_port runtime_env_agent_port dashboard_agent_grpc_port "
    names += "dashboard_agent_listen_port metrics_export_port min_worker_port max_worker_port"
    return tuple(flags[name] for name in names.split())


def keys(config, path=()):
    """The path of each key of ``config``, also of those in lists."""
    items = config.items() if isinstance(config, dict) else enumerate(config) if isinstance(config, list) else ()
    for key, value in items:
        if isinstance(config, dict):
            yield (*path, key)
        yield from keys(value, (*path, key))


@pytest.mark.parametrize("name", FILES)
def test_ray_and_qfleet_accept_a_cluster_file(name):
    check(load(name))


@pytest.mark.parametrize("name", FILES)
def test_a_typo_in_any_key_is_an_error(name):
    config = load(name)
    for path in keys(config):
        if name == "aws" and "node_config" in path[:-1]:
            continue  # tests/deploy/test_aws.py
        wrong = copy.deepcopy(config)
        inner = wrong
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1] + "s"] = inner.pop(path[-1])
        with pytest.raises((Exception, SystemExit)):
            check(wrong)
            pytest.fail(f"{name}.yaml: a typo in {'.'.join(path)} is not found", pytrace=False)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["head", "worker"])
def test_a_typo_in_a_flag_of_ray_start_is_an_error(name, kind):
    config = load(name)
    commands = config[f"{kind}_start_ray_commands"]
    at = next(i for i, c in enumerate(commands) if "ray start" in c)
    for flag in re.findall(r"--[a-z-]+", commands[at]):
        wrong = copy.deepcopy(config)
        wrong[f"{kind}_start_ray_commands"][at] = commands[at].replace(flag, flag + "s")
        with pytest.raises((Exception, SystemExit)):
            check(wrong)
            pytest.fail(f"{name}.yaml: a typo in {flag} is not found", pytrace=False)


@pytest.mark.parametrize("name", FILES)
def test_only_the_documented_lines_are_to_be_filled_in(name):
    lines = text(name).splitlines()
    marked = []
    for i, line in enumerate(lines):
        if "FILL IN" in line and not line.startswith("#"):
            at = next(j for j in range(i, len(lines)) if lines[j].split("#")[0].strip())  # comment above, or at the end
            marked.append(lines[at].split(":")[0].strip())
    assert marked == TO_FILL_IN[name]
    docs = (ROOT / "docs" / "cluster.md").read_text()
    assert all(f"`{key}`" in docs for key in TO_FILL_IN[name])


@pytest.mark.parametrize("name", FILES)
def test_the_commands_are_valid_shell_and_their_files_exist(name):
    config = load(name)
    commands = [c for key, value in config.items() if key.endswith("_commands") for c in value]
    for command in commands:
        subprocess.run(["bash", "-n", "-c", command], check=True)
        for path in re.findall(r"~/qfleet/(deploy/\S+)", command):
            assert (ROOT / path).is_file()
