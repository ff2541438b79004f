"""The deploy/local.yaml of the laptop: that of the checkout, with the addresses of the hosts."""

from __future__ import annotations

import re
from typing import Any

import yaml

from tests.cluster.disks import KEY
from tests.cluster.host import Host
from tests.cluster.hosts import Hosts
from tests.conftest import ROOT

FILE = "deploy/local.yaml"
RESOURCES = "~/ray-resources"  # on each host: what it declares to Ray
OBJECT_STORE_BYTES = 200_000_000
CPUS = 4  # of each host; the run needs 7 on any two workers, and 4 on the head


def write_cluster_file(hosts: Hosts, **changes: Any) -> None:
    """Write deploy/local.yaml on the laptop for ``hosts``; ``changes`` replace keys of its section auth."""
    config = fill_in((ROOT / FILE).read_text(), hosts)
    config["auth"].update(changes)
    hosts.laptop.path(f"~/qfleet/{FILE}").write_text(yaml.safe_dump(config, sort_keys=False, width=1000))
    for host in (hosts.head, *hosts.workers):
        declare(host)


def declare(host: Host, gpus: int = 0) -> None:
    """Let ``host`` declare CPUS, and ``gpus`` that it may not have, when Ray starts there the next time."""
    flags = f"--num-cpus={CPUS} --num-gpus={gpus} --object-store-memory={OBJECT_STORE_BYTES}"
    host.path(RESOURCES).write_text(flags)


def fill_in(text: str, hosts: Hosts) -> dict[str, Any]:
    """The cluster file ``text`` as data, with what a user fills in for ``hosts``: addresses, number of workers, key.

    In addition each `ray start` gets the flags in RESOURCES, because every host would declare the whole machine.
    """
    config: dict[str, Any] = yaml.safe_load(text)
    provider, workers = config["provider"], [w.address for w in hosts.workers]
    head_of_file = provider["head_ip"]
    provider.update(head_ip=hosts.head.address, worker_ips=workers)
    config["auth"].update(ssh_user="root", ssh_private_key=KEY)
    config.update({key: len(workers) for key in ("min_workers", "max_workers") if key in config})
    starts = 0
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        commands = [command.replace(head_of_file, hosts.head.address) for command in config[key]]
        config[key] = [re.sub(r"\bray start\b", f"ray start $(cat {RESOURCES})", c, count=1) for c in commands]
        starts += sum(RESOURCES in c for c in config[key])
    assert starts == 2, f"{FILE} has {starts} `ray start`, not one for the head and one for the workers"
    return config
