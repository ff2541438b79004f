"""What a user's mistakes and a cluster's faults print on the laptop, each within a stated time, on one set of hosts."""

from __future__ import annotations

import re
import time

import pytest

from tests.cluster.cluster_file import FILE, declare, write_cluster_file
from tests.cluster.hosts import Hosts
from tests.cluster.scenario import Scenario
from tests.cluster.steps import STEPS

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

SUBMIT = f"qfleet submit --cluster {FILE} --name fault --detach -- train cartpole"
PORTS = (50051, 50082)
AFTER = r"qfleet: \S+ has ended\n  fetch it .*\n  continue it .*"


@pytest.fixture(scope="module")
def cluster():
    """A scenario whose cluster is up: a head, and two workers of which the second declares a GPU that it lacks."""
    with Hosts(workers=2) as hosts:
        scenario = Scenario(hosts)
        scenario.do(STEPS["ray-up"])
        scenario.do(STEPS["nodes"])
        yield scenario


def says(scenario, command, seconds, status, line):
    """Check that ``command``, typed on the laptop, ends within ``seconds`` with ``status``, its last line being ``line``.

    ``line`` is a pattern of `re`. After it there may be the hints AFTER, but nowhere a traceback. Returns the output.
    """
    scenario.start_clock(seconds)
    started = time.monotonic()
    result = scenario.type(command, check=False)
    output = result.output.strip()
    assert re.search(rf"(?m)^{line}(\n{AFTER})?\Z", output), output
    assert (result.status, "Traceback" in output) == (status, False), output
    assert time.monotonic() - started < seconds
    return output


def trains(scenario, flags, seconds, status, line):
    """Check as `says` what a run with ``flags`` of train prints, which ends by itself."""
    name = f"fault-{time.monotonic_ns()}"
    return says(
        scenario, f"qfleet submit --cluster {FILE} --name {name} -- train cartpole {flags}", seconds, status, line
    )


@pytest.mark.parametrize(
    ("auth", "user"), [({"ssh_private_key": "~/.ssh/id_other"}, "root"), ({"ssh_user": "nobody"}, "nobody")]
)
def test_a_wrong_key_and_a_wrong_user(cluster, auth, user):
    hosts = cluster.hosts
    hosts.laptop.run("[ -e ~/.ssh/id_other ] || ssh-keygen -q -t ed25519 -N '' -f ~/.ssh/id_other")
    write_cluster_file(hosts, **auth)
    try:
        reason = rf"{user}@{hosts.head.address}: Permission denied \(publickey.*\)\."
        says(cluster, SUBMIT, 30, 2, f"qfleet: the cluster of {FILE} cannot be reached: {reason}")
    finally:
        write_cluster_file(hosts)


def test_another_version_of_torch_on_a_worker(cluster):
    worker = cluster.hosts.workers[0]
    packages = worker.path("~/qfleet/.venv").glob("lib/python*/site-packages/torch-*.dist-info/METADATA")
    (metadata,) = packages
    before = metadata.read_text()
    metadata.write_text(re.sub(r"(?m)^Version: .*$", "Version: 1.2.3", before, count=1))
    try:
        here = r"`qfleet train` runs with torch \S+"
        wanted = (
            rf"qfleet: the node {worker.address} has torch 1\.2\.3, and {here}: install the same version on all nodes"
        )
        trains(cluster, "", 90, 1, wanted)
    finally:
        metadata.write_text(before)


def test_a_gpu_where_the_learners_node_has_none(cluster):
    head = cluster.hosts.head.address
    line = (
        f"qfleet: the learner's node {head} has no GPU, and `learner.device` is cuda: write cpu or auto, or start Ray "
    )
    trains(cluster, "--learner.device cuda", 90, 2, line + "with --num-gpus on a node that has one")


def test_too_little_room_for_shards_and_for_actors(cluster):
    head = cluster.hosts.head.address
    needs = r"the learner and 9 replay shard\(s\) beside it need 11 CPU"
    line = rf"qfleet: {needs}, and the learner's node {head} has 4 CPU in all \(short of 7 CPU\): write .*"
    trains(cluster, "--replay.shards 9", 90, 2, line)
    output = trains(cluster, "--actors.count 40 --max-steps 3000", 180, 0, r"(not solved|solved): .*")
    assert (
        "the cluster has room for 7 of 40 actors now (short of 33 CPU); the others start when there is room" in output
    )


def test_a_name_that_is_taken_and_a_place_that_cannot_be_written(cluster):
    long = f"qfleet submit --cluster {FILE} --name taken --detach -- train cartpole --max-steps 50000000"
    cluster.start_clock(90)
    cluster.type(long)
    says(cluster, long, 30, 2, "qfleet: taken is running as job taken: write another --name")
    cluster.start_clock(90)
    cluster.until("the run trains", lambda: cluster.status("taken")["agent_steps"])
    cluster.type(f"qfleet stop taken --cluster {FILE}")
    again = f"qfleet submit --cluster {FILE} --name taken -- train cartpole"
    holds = "qfleet: runs/taken already holds a run: write another directory, or continue that run with --resume"
    says(cluster, again, 60, 2, holds)
    nowhere = f"qfleet submit --cluster {FILE} --run-dir file:///sys/qfleet -- train cartpole"
    says(cluster, nowhere, 60, 2, r"qfleet: /sys/qfleet cannot be written \(.*\): write another directory")


def test_shard_ports_that_a_firewall_drops(cluster):
    hosts = cluster.hosts
    hosts.close_ports(hosts.head, *PORTS)
    try:
        flags = f"--replay.ports {PORTS[0]}-{PORTS[1]} --ready-timeout 60"
        line = rf"qfleet: .*{hosts.head.address}:50051.*"
        trains(cluster, flags, 240, 1, line)
    finally:
        hosts.open_ports(hosts.head)


def test_a_device_that_is_declared_but_missing_is_named_with_its_node(cluster):
    worker = cluster.hosts.workers[1]
    declare(worker, gpus=1)
    try:
        _start_again(cluster)
        flags = f"--placement.learner {worker.address} --learner.device cuda --replay.shards 1 --actors.count 1"
        trains(cluster, flags, 120, 1, rf"qfleet: .*Ray has a GPU on the node {worker.address}, but torch .*")
    finally:
        declare(worker)


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("bin/ray", "#!/bin/sh\necho 'ray is not installed' >&2\nexit 127\n", "ray is not installed"),
        ("lib/python*/site-packages/ray/_version.py", 'version = "1.2.3"\ncommit = "0"\n', "Version mismatch"),
    ],
    ids=["without", "of another version"],
)
def test_ray_that_is_missing_or_of_another_version_on_a_worker(cluster, file, content, reason):
    """The run starts on the other worker, and names the one that has not joined; Ray's log says why."""
    worker = cluster.hosts.workers[1]
    (file,) = worker.path("~/qfleet/.venv").glob(file)
    before = file.read_text()
    file.write_text(content)
    try:
        cluster.start_clock(180)
        cluster.type(f"ray up -y {FILE}")
        log = "cat /tmp/ray/session_latest/logs/monitor.out"
        cluster.until(
            "the worker's set-up has failed", lambda: "update-failed" in cluster.hosts.head.run(log, check=False).output
        )
        assert reason in cluster.hosts.head.run(log).output
        output = trains(cluster, "--actors.count 6 --max-steps 1000", 180, 0, r"(not solved|solved): .*")
        assert re.search(rf"of 6 actors now .*; not in the cluster: {worker.address} \(\w+\); `ray monitor .*", output)
    finally:
        file.write_text(before)


def test_a_head_that_dies_while_a_run_is_watched(cluster):
    _start_again(cluster)
    hosts = cluster.hosts
    command = f"qfleet submit --cluster {FILE} --name watched -- train cartpole --max-steps 50000000"
    with hosts.laptop.path("/tmp/watched.log").open("wb") as out:
        watching = hosts.laptop.start(f". .venv/bin/activate && {command}", out)
        cluster.start_clock(120)
        log = hosts.laptop.path("/tmp/watched.log")
        cluster.until("the run's first figures are shown", lambda: "samples/insert" in log.read_text())
        hosts.kill(hosts.head)
        assert watching.wait(120) == 1
    last = log.read_text().strip().splitlines()[-1]
    assert re.fullmatch(
        rf"qfleet: the cluster of {FILE}.*; the run goes on if the head node does: `qfleet logs watched --cluster {FILE}` "
        "shows it again",
        last,
    ), last


def test_a_head_that_no_ssh_reaches(cluster):
    """The last test: Ray's autoscaler restarts Ray on workers from which it has heard nothing for 30 s."""
    hosts = cluster.hosts
    if hosts.head.is_up:
        hosts.kill(hosts.head)
    reason = f"ssh: connect to host {hosts.head.address} port 22: No route to host"
    says(cluster, SUBMIT, 75, 2, f"qfleet: the cluster of {FILE} cannot be reached: {reason}")


def _start_again(cluster):
    """`ray up`, which restarts Ray on all hosts.

    The autoscaler never sets up a host again on which that failed once (docs/cluster.md).
    """
    cluster.start_clock(300)
    cluster.type(f"ray up -y {FILE}")
    cluster.do(STEPS["nodes"])
