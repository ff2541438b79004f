"""The hosts of the cluster test: separate, connected, and gone afterwards however the test ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.cluster.host import HostError
from tests.cluster.hosts import Hosts
from tests.conftest import ROOT

pytestmark = pytest.mark.cluster

SERVE = ".venv/bin/python -m http.server --directory /run"
BACKGROUND = "setsid sleep"  # `Host.run` ends what stays in its process group
GET = "import sys, urllib.request as web; print(web.urlopen(sys.argv[1], timeout=3).status)"
# Prints the process ids of the site and the hosts, then goes on until it is killed.
HOLD = """
import time
from tests.cluster.hosts import Hosts
with Hosts(workers=1) as hosts:
    hosts.head.run("setsid sleep 1000 & sleep 1")
    print(hosts.site_pid, *(host.pid for host in hosts.all), flush=True)
    time.sleep(1000)
"""


@pytest.fixture(scope="module")
def hosts():
    with Hosts(workers=2) as hosts:
        yield hosts


@contextlib.contextmanager
def watched(pids):
    """Yields a function that lists the processes in the namespaces of ``pids``. Open files keep their names unique."""
    files = [os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY) for pid in pids for kind in ("pid", "mnt", "net")]
    own = {os.readlink(f"/proc/self/fd/{file}") for file in files}

    def inside():
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(OSError, psutil.Error):
                names = {os.readlink(f"/proc/{process.pid}/ns/{kind}") for kind in ("pid", "mnt", "net")}
                found += [process.cmdline()] if names & own else []
        return found

    try:
        yield inside
    finally:
        for file in files:
            os.close(file)


def fetches(client, server, port):
    """Whether ``client`` gets an answer from the web server at this port of ``server``."""
    return client.run(f".venv/bin/python -c '{GET}' http://{server.address}:{port}/", 20, check=False).status == 0


def test_each_host_has_its_own_name_address_processes_files_and_environment(hosts):
    for host in hosts.all:
        host.run("mkdir -p ~/qfleet && echo $(hostname) > /tmp/own && echo $(hostname) > ~/own && touch .venv/own")
        assert host.run("cat /tmp/own ~/own && hostname -I").output.split() == [host.name, host.name, host.address]
    assert hosts.head.run("ls .venv/own /mnt").output.split() == [".venv/own", "/mnt:"]
    assert not Path(sys.prefix, "own").exists()
    hosts.head.run(f"{BACKGROUND} 999 & sleep 1")
    assert len(hosts.head.processes("sleep")) == 1
    assert not hosts.workers[0].processes("sleep")
    count = "cat /proc/[0-9]*/comm | grep -c sleep"
    assert [host.run(count, check=False).output.strip() for host in hosts.all[1:]] == ["1", "0", "0"]


def test_the_laptop_has_a_copy_of_the_checkout_and_imports_it(hosts):
    (version,) = [line for line in (ROOT / "pyproject.toml").read_text().splitlines() if line.startswith("version")]
    assert version in hosts.laptop.run("cat pyproject.toml").output
    for command in (".venv/bin/python -c 'import qfleet; print(qfleet.__file__)'", "make .venv/.installed"):
        output = hosts.laptop.run(command, 60).output
        assert "/root/qfleet/qfleet/__init__.py" in output or "is up to date" in output, output
    assert hosts.laptop.run(". .venv/bin/activate && which python qfleet ray").output.split() == [
        f"/root/qfleet/.venv/bin/{name}" for name in ("python", "qfleet", "ray")
    ]


def test_only_the_laptop_has_the_key(hosts):
    ssh = "ssh -o BatchMode=yes -o StrictHostKeyChecking=no"
    for host in (hosts.head, *hosts.workers):
        assert "hello" in hosts.laptop.run(f"{ssh} -i ~/.ssh/id_cluster {host.address} echo hello").output
        refused = hosts.laptop.run(f"{ssh} {host.address} echo hello", check=False)
        assert (refused.status, "Permission denied" in refused.output) == (255, True)


def test_a_cut_link_closed_ports_and_a_dead_host_do_not_answer_until_they_are_mended(hosts):
    server, client = hosts.workers
    with open(os.devnull, "wb") as nowhere:
        for port in (8000, 8001):
            server.start(f"exec {SERVE} {port}", nowhere)
        deadline = time.monotonic() + 20
        while not all(fetches(client, server, port) for port in (8000, 8001)):
            assert time.monotonic() < deadline
        hosts.cut(server)
        assert not fetches(client, server, 8000)
        hosts.mend(server)
        assert fetches(client, server, 8000)
        hosts.close_ports(server, 8001, 8010)
        assert fetches(client, server, 8000)
        started = time.monotonic()
        assert not fetches(client, server, 8001)
        assert time.monotonic() - started > 3  # dropped, not refused
        hosts.open_ports(server)
        assert fetches(client, server, 8001)
        server.path("/tmp/kept").touch()
        hosts.kill(server)
        assert not server.is_up
        assert not server.processes()
        assert [host.is_up for host in Hosts.attach(hosts.site_pid).workers] == [False, True]
        assert not fetches(client, server, 8000)
        hosts.boot(server)
        assert server.run("ls /tmp/kept").status == 0
        assert not fetches(client, server, 8000)
        assert fetches(hosts.head, client, 8000) is False  # it never served


def test_a_command_is_ended_at_its_deadline_with_what_it_started(hosts):
    wait = "echo begun; tail -f /dev/null; echo"
    with pytest.raises(HostError, match=f"^head: `{wait}` has not ended after 2 s:\nbegun$"):
        hosts.head.run(wait, 2)
    assert not hosts.head.processes("tail")
    with pytest.raises(HostError, match=r"^head: `echo no && exit 4` ended with status 4:\nno$"):
        hosts.head.run("echo no && exit 4")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_when_the_test_is_ended_by_a_signal(number):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT
    )
    pids = [int(word) for word in process.stdout.readline().split()]
    with watched(pids) as inside:
        assert len(inside()) > len(pids)
        process.send_signal(number)
        process.wait(30)
        deadline = time.monotonic() + 20
        while (left := inside()) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not left


def test_nothing_is_left_after_an_exception_while_other_hosts_live_on(hosts):
    with pytest.raises(ZeroDivisionError), Hosts(workers=1) as others:
        pids = [others.site_pid, *(host.pid for host in others.all)]
        stack = contextlib.ExitStack()
        inside = stack.enter_context(watched(pids))
        assert others.head.address == hosts.head.address
        assert others.head.pid != hosts.head.pid
        others.head.run(f"{BACKGROUND} 1000 & sleep 1")
        assert len(inside()) > len(pids)
        _ = 1 / 0
    assert not inside()
    stack.close()
    assert all(host.is_up for host in hosts.all)
    machine = subprocess.run(["ip", "-br", "link"], capture_output=True, text=True, check=True).stdout
    assert "v-head" not in machine
    assert "switch" not in machine
    assert " /mnt/head" not in Path("/proc/self/mountinfo").read_text()
